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
| 130, 138, 143 | SIGINT, SIGUSR1, SIGTERM: interrupted and saved |
"""

from __future__ import annotations


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


class Interrupted(HyloradaError):
    """A signal asked the run to stop; its state is saved.

    Args:
        signal_number: the signal; the exit code is 128 + this number.
        message: one line.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
