"""What a person sees of a run: a bar on a terminal, a plain line now and then in a pipe."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TextIO, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

QUIET_SECONDS = 10.0
"""Between two plain lines."""


_heading = ""


def head(text: str) -> None:
    """Put a text before the title of every phase from now on: which cell of a sweep it is of."""
    global _heading
    _heading = text


class Reporter:
    """Reports phases (text, gate, base, training, evaluation), most of them counted to a total.

    While a bar is shown, messages of the log that go to a terminal are written above it; when its
    phase is done the bar goes.

    Args:
        console: where to; default: standard error, so that standard output holds results alone.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, emoji=False)
        self._bar: Progress | None = None
        self._redirected: list[tuple[logging.StreamHandler, TextIO]] = []
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
        self.console.print(text, markup=False, emoji=False, soft_wrap=True)

    def begin(self, title: str, total: int, done: int = 0) -> None:
        """Start a phase, and end the former one.

        Args:
            title: of the phase.
            total: steps or tokens it will take.
            done: how many an earlier attempt has done.
        """
        self._end()
        self._title, self._total, self._first = f"{_heading}{title}", total, done
        self._started = self._spoke = time.monotonic()
        if done < total:
            self._show_count(done)

    def update(self, done: int, detail: str, *, total: int | None = None) -> None:
        """Show how far the phase is.

        Args:
            done: steps or tokens so far.
            detail: the numbers to show, as text.
            total: a better estimate of the total.
        """
        self._total = total or self._total
        if self._on_terminal:
            if self._bar is None and done < self._total:
                self._show_count(done)
            if self._bar is not None:
                task = self._bar.task_ids[0]
                self._bar.update(task, completed=done, total=self._total, detail=detail)
            if done >= self._total:
                self._end()
            return
        now = time.monotonic()
        if now - self._spoke >= QUIET_SECONDS or done >= self._total:
            self._spoke = now
            self.say(f"{self._title} {done}/{self._total}  {detail}{self._time_left(done, now)}")

    @contextmanager
    def working(self, title: str) -> Iterator[None]:
        """A phase that nobody can count, for the time of a block; shown on a terminal alone."""
        self._end()
        self._title = f"{_heading}{title}"
        self._show(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        try:
            yield
        finally:
            self._end()

    @property
    def _on_terminal(self) -> bool:
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def _show_count(self, done: int) -> None:
        self._show(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(),
            done=done,
        )

    def _show(self, *columns: ProgressColumn, done: int = 0) -> None:
        if not self._on_terminal:
            return
        self._bar = Progress(*columns, console=self.console, transient=True)
        self._bar.add_task(self._title, total=self._total, completed=done, detail="")
        self._bar.start()
        above = cast("TextIO", _AboveTheBar(self.console))
        for handler in _terminal_handlers():
            self._redirected.append((handler, handler.stream))
            handler.setStream(above)

    def _time_left(self, done: int, now: float) -> str:
        if done <= self._first or done >= self._total:
            return ""
        rate = (now - self._started) / (done - self._first)
        minutes, seconds = divmod(round(rate * (self._total - done)), 60)
        return f"  {minutes}:{seconds:02d} left"

    def _end(self) -> None:
        bar, self._bar = self._bar, None
        while self._redirected:
            handler, stream = self._redirected.pop()
            handler.setStream(stream)
        if bar is not None:
            bar.stop()


class _AboveTheBar:
    """A stream for log handlers: whole lines go to the console, which knows where its bar is."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._line = ""

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back but the beginning of a line."""


def _terminal_handlers() -> list[logging.StreamHandler]:
    """The handlers of all loggers that write to a terminal by themselves."""
    loggers = [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]
    return [
        handler
        for logger in loggers
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler)
        and not isinstance(handler, logging.FileHandler)
        and "stream" in vars(handler)  # some look standard error up anew, which the bar has taken
        and _is_terminal(handler.stream)
    ]


def _is_terminal(stream: object) -> bool:
    try:
        return getattr(stream, "isatty", bool)()
    except ValueError:  # closed, or taken off its buffer, and forgotten by the handler's library
        return False
