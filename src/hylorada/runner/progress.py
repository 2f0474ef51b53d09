"""What a person sees of a run: a bar on a terminal, a plain line now and then in a pipe."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

QUIET_SECONDS = 10.0
"""Between two plain lines."""


class Reporter:
    """Reports phases (base, training, evaluation), each counted to a total.

    Args:
        console: where to; default: standard error, so that standard output holds results alone.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._title = ""
        self._total = 0
        self._first = 0
        self._started = self._spoke = 0.0

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def say(self, text: str) -> None:
        """One line, above the bar if there is one."""
        (self._bar.console if self._bar else self.console).print(text, markup=False, soft_wrap=True)

    def begin(self, title: str, total: int, done: int = 0) -> None:
        """Start a phase, and end the former one.

        Args:
            title: of the phase.
            total: steps or tokens it will take.
            done: how many an earlier attempt has done.
        """
        self._end()
        self._title, self._total, self._first = title, total, done
        self._started = self._spoke = time.monotonic()
        if self.console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.fields[detail]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._bar.add_task(title, total=total, completed=done, detail="")
            self._bar.start()

    def update(self, done: int, detail: str, *, total: int | None = None) -> None:
        """Show how far the phase is.

        Args:
            done: steps or tokens so far.
            detail: the numbers to show, as text.
            total: a better estimate of the total.
        """
        self._total = total or self._total
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=done, total=self._total, detail=detail)
            return
        now = time.monotonic()
        if now - self._spoke >= QUIET_SECONDS or done >= self._total:
            self._spoke = now
            self.say(f"{self._title} {done}/{self._total}  {detail}{self._time_left(done, now)}")

    def _time_left(self, done: int, now: float) -> str:
        if done <= self._first or done >= self._total:
            return ""
        rate = (now - self._started) / (done - self._first)
        minutes, seconds = divmod(round(rate * (self._total - done)), 60)
        return f"  {minutes}:{seconds:02d} left"

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
