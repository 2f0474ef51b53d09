"""What training and a later measurement work in: one process in a directory, heard and logged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hylorada.errors import Interrupted
from hylorada.process.disk import exclusive
from hylorada.process.log import LogError, log_to
from hylorada.process.ranks import ALONE, Ranks
from hylorada.process.requeue import is_asked_for, requeue
from hylorada.process.seeding import deterministic
from hylorada.process.signals import Stop


@contextmanager
def session(
    directory: Path, *, held: bool = False, ranks: Ranks = ALONE
) -> Iterator[tuple[Stop, LogError]]:
    """One process in the directory, signals heard, a log, and the same numbers each time.

    Args:
        directory: of the run.
        held: whether the caller holds it already (`disk.exclusive`).
        ranks: the processes of the run; they agree on what signal has come.

    Yields:
        What knows whether a signal has come, and what writes a traceback into the log.

    Raises:
        DiskError: a live process holds the directory, or it cannot be written.
    """
    stop = Stop(shared=ranks.world > 1)
    if ranks.world > 1:
        ranks.stop = stop
    with ExitStack() as stack:
        if not held:
            stack.enter_context(exclusive(directory))
        stack.enter_context(stop.listening())
        log = stack.enter_context(log_to(directory / "run.log"))
        stack.enter_context(deterministic())
        try:
            yield stop, log
        except Interrupted as interrupted:
            if is_asked_for(interrupted.signal_number):
                stop.saved()  # SLURM ends the job that it starts again, by a signal of its own
            if ranks.is_first:
                interrupted.requeued = requeue(interrupted.signal_number)
            raise
