"""A sweep while it goes: which cells are done, running, failed, and when the last one will end.

It is read from the directories of the cells, whoever runs them: a cell has begun when its run.log
or the note in its lock changes, and has ended when its record does. There is a line for each cell
that ends; where other processes run them and a terminal is there, also a view below the lines. A
cell that runs in this process has a bar of its own, and the count before it.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from hylorada.config import RunConfig
from hylorada.errors import DataError
from hylorada.evaluation.measurement import measurements
from hylorada.process import progress
from hylorada.process.counts import number_of
from hylorada.process.phases import duration, side_by_side
from hylorada.records.result import RESULT, read_result

RENEWED = 1.0
"""Seconds between two looks at the directories."""
_BEGUN = ("run.log", ".lock-owner")


@dataclass
class _Cell:
    """A cell: its directory, what it is called, how its files were, and what became of it."""

    directory: Path
    name: str
    kind: tuple[str, str]
    before: dict[str, Any]
    started: float | None = None
    seconds: float | None = None
    failed: bool = False

    @property
    def ended(self) -> bool:
        return self.seconds is not None

    def elapsed(self, now: float) -> float:
        return 0.0 if self.started is None else now - self.started


class Overview:
    """What became of the cells of a sweep so far.

    Args:
        cells: directory -> settings, of those that are to run.
        done: how many cells were done before.
        refused: how many cannot run.
        jobs: cells side by side.
        console: where lines go; default: standard error.
        clock: seconds.
    """

    def __init__(
        self,
        cells: Mapping[str, RunConfig],
        done: int,
        refused: int,
        jobs: int = 1,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console(stderr=True, highlight=False, emoji=False)
        self._clock, self._jobs = clock, jobs
        self._done, self._failed = done, refused
        self._total = len(cells) + done + refused
        self._lock = threading.Lock()
        self._cells = [
            _Cell(
                Path(directory),
                f"{config.method.name} {config.length.name} seed {config.seed}",
                (config.method.name, config.length.name),
                _signatures(Path(directory)),
            )
            for directory, config in cells.items()
        ]

    def look(self) -> None:
        """Look at the directories, and say which cells have ended since the last time."""
        with self._lock:
            now = self._clock()
            for cell in self._cells:
                if not cell.ended:
                    self._look_at(cell, now)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Look each second, in a thread, while other processes run the cells."""
        over = threading.Event()
        live: Any = contextlib.nullcontext()
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            # What others write to the terminal stays what it is: only these lines are renewed.
            live = Live(
                get_renderable=self._view, console=self._console, transient=True,
                refresh_per_second=1 / RENEWED, redirect_stdout=False, redirect_stderr=False,
            )  # fmt: skip

        def watch() -> None:
            while not over.wait(RENEWED):
                self.look()

        thread = threading.Thread(target=watch, daemon=True)
        with live:
            thread.start()
            try:
                yield
            finally:
                over.set()
                thread.join()
                self.look()

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Inside the block the next cell runs here, and what it shows begins with the count."""
        self.look()
        current = next((cell for cell in self._cells if not cell.ended), None)
        number = self._done + self._failed + 1
        if current is None:
            yield
            return
        current.started = self._clock()
        left = self._left()
        counts = f"{number}/{self._total} {current.name}"
        counts += f", {self._failed} failed" * bool(self._failed)
        progress.head(f"[{counts}{f', about {duration(left)} left' if left else ''}] ")
        try:
            yield
        finally:
            progress.head("")
            self.look()
            if not current.ended:  # it left no record, as where its directory cannot be made
                with self._lock:
                    self._end(current, self._clock(), None)

    def running(self) -> list[Path]:
        """The directories of the cells that have begun and not ended."""
        self.look()
        with self._lock:
            cells = [cell for cell in self._cells if cell.started is not None and not cell.ended]
            return [cell.directory for cell in cells]

    def _look_at(self, cell: _Cell, now: float) -> None:
        signatures = _signatures(cell.directory)
        if signatures[RESULT] != cell.before[RESULT]:
            try:
                record = read_result(cell.directory)
            except DataError:
                record = None
            if record is not None:
                self._end(cell, now, record)
        elif cell.started is None and any(
            signatures[name] not in (None, cell.before[name]) for name in _BEGUN
        ):
            cell.started = now

    def _end(self, cell: _Cell, now: float, record: Mapping[str, Any] | None) -> None:
        cell.seconds = cell.elapsed(now)
        cell.failed = record is None or record["status"] != "ok"
        if cell.failed:
            self._failed += 1
            what = "no record"
            if record is not None:
                what = f"{record['status']}: {record['error']}"
        else:
            assert record is not None
            self._done += 1
            what = f"{_number(record)}{duration(cell.seconds)}"
        left = self._left()
        after = f"; about {duration(left)} left" if left else ""
        place = f"[{self._done + self._failed}/{self._total}]"
        self._console.print(
            f"{place} {cell.name}: {what}{after}", markup=False, emoji=False, soft_wrap=True
        )

    def _left(self) -> float | None:
        """Seconds until the last cell ends, from those that ended well; None while none did."""
        took = [(cell.kind, cell.seconds) for cell in self._cells if cell.ended and not cell.failed]
        if not took:
            return None

        def expected(cell: _Cell) -> float:
            alike = [s for kind, s in took if kind == cell.kind and s is not None]
            alike = alike or [s for kind, s in took if kind[1] == cell.kind[1] and s is not None]
            return mean(alike or [s for _, s in took if s is not None])

        now = self._clock()
        open_cells = [cell for cell in self._cells if not cell.ended]
        running = [cell for cell in open_cells if cell.started is not None]
        left = [max(0.0, expected(c) - c.elapsed(now)) for c in running]
        left += [expected(cell) for cell in open_cells if cell.started is None]
        return side_by_side(left, self._jobs)

    def _view(self) -> Text:
        """The lines that are renewed: each running cell, and the counts."""
        now, lines = self._clock(), []
        running = [cell for cell in self._cells if cell.started is not None and not cell.ended]
        for cell in running:
            lines.append(f"  {cell.name}  {duration(cell.elapsed(now))}{_step(cell)}")
        left = self._left()
        lines.append(
            f"{number_of(self._total, 'cell')}: {self._done} done, {len(running)} running, "
            f"{self._failed} failed" + (f"; about {duration(left)} left" if left else "")
        )
        return Text("\n".join(lines), no_wrap=True, overflow="ellipsis")


def _signatures(directory: Path) -> dict[str, Any]:
    """How some files are: another time, size or inode tells that they were written."""
    found: dict[str, Any] = {}
    for name in (RESULT, *_BEGUN):
        try:
            stat = (directory / name).stat()
            found[name] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        except OSError:
            found[name] = None
    return found


def _number(record: Mapping[str, Any]) -> str:
    """The first number that the record has a name for, as in "PPL, blocks 54.340, "."""
    metrics = record["metrics"]
    for measurement in measurements():
        for shown in (*measurement.of_each_run(), *measurement.shown):
            if shown.metric in metrics:
                return f"{shown.heading} {shown.text(metrics[shown.metric]['value'])}, "
    return ""


def _step(cell: _Cell) -> str:
    """The last step that is in its timing.jsonl."""
    with contextlib.suppress(OSError, IndexError, ValueError, KeyError, TypeError):
        path = cell.directory / "timing.jsonl"
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            last = json.loads(file.read().splitlines()[-1])
        return f"  step {int(last['step'])}"
    return ""
