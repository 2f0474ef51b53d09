"""What training and a later measurement work in: one process in a directory, heard and logged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hylorada.process.disk import exclusive
from hylorada.process.log import LogError, log_to
from hylorada.process.seeding import deterministic
from hylorada.process.signals import Stop


@contextmanager
def session(directory: Path) -> Iterator[tuple[Stop, LogError]]:
    """One process in the directory, signals heard, a log, and the same numbers each time.

    Yields:
        What knows whether a signal has come, and what writes a traceback into the log.

    Raises:
        DiskError: a live process holds the directory, or it cannot be written.
    """
    stop = Stop()
    with ExitStack() as stack:
        stack.enter_context(exclusive(directory))
        stack.enter_context(stop.listening())
        log = stack.enter_context(log_to(directory / "run.log"))
        stack.enter_context(deterministic())
        yield stop, log
