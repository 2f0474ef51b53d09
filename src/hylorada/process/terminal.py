"""What is written to may go away; the work goes on.

A reader that closes its end (`| head -1`), a full disk under a redirected stream, a terminal that
is gone under nohup: none of them ends a run. What cannot be shown any more is in run.log. Python's
own streams raise at that point, and libraries make an exit of it, so the commands write through
`Lasting` streams. A terminal that is closed without nohup is a signal: see `process.signals`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from hylorada.process.redaction import redacted_text

logger = logging.getLogger(__name__)


class Lasting:
    """A text stream whose writes never fail and show no secret; all else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost = False

    def write(self, text: str) -> int:
        """Write, or drop what cannot be written."""
        shown = redacted_text(text)
        try:
            self._stream.write(shown)
        except UnicodeEncodeError as error:  # a terminal without these letters
            encoded = shown.encode(error.encoding, "backslashreplace")
            self.write(encoded.decode(error.encoding))
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self._lose(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hand over what was written, or drop it."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._lose(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _lose(self, error: Exception) -> None:
        if self.lost:
            return
        self.lost = True
        # What the stream still holds must fail neither now nor at the end of the process.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            number = self._stream.fileno()
            if number in (1, 2):
                with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
                    os.dup2(nowhere.fileno(), number)
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        logger.warning("the terminal is gone (%s); the work goes on, see run.log", reason)


@contextlib.contextmanager
def lasting_terminal() -> Iterator[None]:
    """Inside the block nothing that happens to standard output and error ends the process.

    Blocks may be nested.
    """
    former = sys.stdout, sys.stderr
    _fill_descriptors()
    sys.stdout, sys.stderr = _lasting(sys.stdout), _lasting(sys.stderr)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = former


@contextlib.contextmanager
def silent_terminal() -> Iterator[None]:
    """Inside the block nothing that this process writes reaches standard output or error."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(nowhere, number)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, former in zip((1, 2), kept, strict=True):
            os.dup2(former, number)
            os.close(former)
        os.close(nowhere)


def _lasting(stream: TextIO | None) -> Any:
    """The stream made to last; one that was closed at the start becomes a place for nothing."""
    if stream is None:
        stream = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    return stream if isinstance(stream, Lasting) else Lasting(stream)


def _fill_descriptors() -> None:
    """Let no file of a run get the number of a standard stream that was closed at the start."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
