"""The errors a user can cause, each with the exit code its command ends with.

Every message is one line that says what is wrong, where, and what to do. A traceback never reaches
the terminal for these; it goes to the run's log.

| code | meaning                                             |
| ---- | --------------------------------------------------- |
| 0    | ok                                                  |
| 1    | a bug in hylorada                                   |
| 2    | configuration, found before any model loads         |
| 3    | data or model not available                         |
| 4    | training diverged                                   |
| 5    | out of memory                                       |
| 6    | disk                                                |
| 7    | the integrity gate refused the model                |
| 8    | another process of the run has ended                |
| 129, 130, 138, 140, 143 | SIGHUP, SIGINT, SIGUSR1, SIGUSR2, SIGTERM: interrupted and saved |
"""

from __future__ import annotations

from collections.abc import Iterator


class HyloradaError(Exception):
    """Base of the errors below; ``exit_code`` is what the command returns."""

    exit_code = 1


class ConfigError(HyloradaError, ValueError):
    """A setting that is wrong by itself, with another one, or with the model it is applied to."""

    exit_code = 2


class DataError(HyloradaError):
    """A data set or a model that is not available, or holds nothing usable."""

    exit_code = 3


class DivergedError(HyloradaError):
    """Too many non-finite losses or gradients in a row."""

    exit_code = 4


class OutOfMemoryError(HyloradaError):
    """The micro-batch does not fit, at any size."""

    exit_code = 5


class DiskError(HyloradaError):
    """A directory that cannot be written, is full, or is in use by a live run."""

    exit_code = 6


class IntegrityError(HyloradaError):
    """A component that does not act, or reads the future, or does not survive saving."""

    exit_code = 7


class PeerError(HyloradaError):
    """Another process of the same run has ended, without a word or by a bug."""

    exit_code = 8


class Interrupted(HyloradaError):
    """A signal asked the run to stop; its state is saved.

    Args:
        signal_number: the signal; the exit code is 128 + this number.
        message: one line.
        at_once: whether it was raised wherever the process was when the signal came, not at a place
            that asked for it. A library may then make an error of its own of it.

    Attributes:
        requeued: whether the queue that the run came from starts it again.
    """

    def __init__(self, signal_number: int, message: str, at_once: bool = False) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.at_once = at_once
        self.requeued = False
        self.exit_code = 128 + signal_number


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it was raised from or in the handling of, down to the first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def in_one_line(error: object, most: int | None = None) -> str:
    """What an error says, without line breaks, cut to ``most`` characters."""
    return " ".join(str(error).split())[:most]
