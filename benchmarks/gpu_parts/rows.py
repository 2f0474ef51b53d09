"""Cells that are run once, each in a time box, and the rows they leave.

A cell says beforehand which rows it gives (their keys are functions of its parameters alone) and
about how long it takes. It is skipped where every key has a row, or where the time that is left
does not suffice. Whatever is raised inside it becomes the row of the key that it was about.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Values = dict[str, Any]
Found = Iterator[tuple[str, Values]]


@dataclass
class Cell:
    """One thing to find out.

    Attributes:
        stage: 0, 1, 2a, 2b or 3.
        keys: of its rows, without the stage.
        seconds: that it takes on an H100, about; its time box is three times that.
        call: gets the keys that have no row yet; yields (key, values) as they are found.
    """

    stage: str
    keys: list[str]
    seconds: float
    call: Callable[[list[str]], Found]

    def rows(self) -> list[str]:
        """The keys as they stand in the file."""
        return [f"{self.stage}/{key}" for key in self.keys]


class TimeBox(BaseException):
    """The cell's time is up. Not an Exception: a check that takes those for findings passes it."""


@contextlib.contextmanager
def time_box(seconds: float) -> Iterator[None]:
    """Raise `TimeBox` inside the block once so many seconds have passed."""

    def ring(*_: Any) -> None:
        raise TimeBox

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Rows:
    """JSON lines that are only ever added to, flushed to the disk one by one.

    Args:
        out: the file; rows that are there count as done.
        done: further files whose rows count as done.
        common: what every row says (device, versions, commit).
        retry: rows with an error do not count as done.
    """

    def __init__(self, out: Path, done: list[Path], common: Values, retry: bool) -> None:
        self.out, self.common = out, common
        self.files = [out, *done]
        self.have: set[str] = set()
        for path in (out, *done):
            for row in read(path):
                if row.get("ok") or not retry:
                    self.have.add(row["key"])

    def known(self) -> list[Values]:
        """All rows that there are, of earlier calls too; the newest last."""
        return [row for path in reversed(self.files) for row in read(path)]

    def add(self, stage: str, key: str, values: Values, seconds: float) -> Values:
        """Write one row."""
        row = {
            "key": f"{stage}/{key}", "ok": "error" not in values, "seconds": round(seconds, 3),
            "t": time.strftime("%Y-%m-%dT%H:%M:%S"), **self.common, **values,
        }  # fmt: skip
        self.have.add(row["key"])
        self.out.parent.mkdir(parents=True, exist_ok=True)
        cut_off = self.out.is_file() and not self.out.read_bytes().endswith(b"\n")
        with self.out.open("a") as file:
            file.write("\n" * cut_off + json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return row


def read(path: Path) -> list[Values]:
    """The rows of a file; a line that was cut off by an end of the machine is passed over."""
    found = []
    if path.is_file():
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found


def run(cells: list[Cell], rows: Rows, ends: float, clean: Callable[[], None]) -> list[Values]:
    """Every cell that has rows to give and fits the time.

    Args:
        cells: the most valuable first.
        rows: gets what they give.
        ends: `time.monotonic()` after which nothing is begun.
        clean: is called after each cell, to give memory back.

    Returns:
        The rows of this call.
    """
    made: list[Values] = []
    for cell in cells:
        missing = [key for key in cell.keys if f"{cell.stage}/{key}" not in rows.have]
        left = ends - time.monotonic()
        if not missing:
            continue
        if left < cell.seconds:
            print(f"{cell.stage}/{missing[0]}: left out, {left:.0f} s are left", flush=True)
            continue
        open_, started = list(missing), time.monotonic()
        try:
            with time_box(min(3 * cell.seconds + 10, left)):
                for key, values in cell.call(missing):
                    made.append(rows.add(cell.stage, key, values, time.monotonic() - started))
                    open_.remove(key)
                    started = time.monotonic()
                    print(f"{cell.stage}/{key}: {brief(values)}", flush=True)
            error: Values = {"error": "the cell gave no such row"}
        except TimeBox:
            error = {"error": "its time box ended"}
        except Exception as raised:
            error = described(raised)
        for key in open_:
            made.append(rows.add(cell.stage, key, error, time.monotonic() - started))
            print(f"{cell.stage}/{key}: {brief(error)}", flush=True)
        clean()
    return made


def described(raised: BaseException) -> Values:
    """What is kept of an exception."""
    if "OutOfMemory" in type(raised).__name__ or "out of memory" in str(raised):
        return {"error": "oom"}
    lines = traceback.format_exception(raised)
    return {"error": f"{type(raised).__name__}: {raised}"[:500], "trace": "".join(lines)[-1500:]}


def brief(values: Values) -> str:
    """A row in a line of the terminal."""
    parts = []
    for name, value in values.items():
        if name == "trace" or isinstance(value, list | dict):
            continue
        parts.append(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}")
    return " ".join(parts)[:300]
