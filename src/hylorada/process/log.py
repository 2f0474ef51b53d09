"""run.log: what is said to the user and every traceback, with the time and the place."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from hylorada.process.disk import disk_errors
from hylorada.process.redaction import RedactingFormatter

LogError = Callable[[BaseException], None]
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _File(logging.FileHandler):
    """A log that loses lines on a full disk; Python would print a traceback for each of them."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of what was not written
            super().close()


@contextlib.contextmanager
def log_file(path: Path, source: logging.Logger) -> Iterator[LogError]:
    """Append to a file what a logger gets, inside the block.

    Yields:
        A function that writes a traceback into the file and not on the terminal.

    Raises:
        DiskError: the file cannot be written.
    """
    with disk_errors(path):  # not delayed: it is found here
        file = _File(path, encoding="utf-8", errors="backslashreplace")
    file.setFormatter(RedactingFormatter(_FORMAT))

    def traceback(error: BaseException) -> None:
        trace = (type(error), error, error.__traceback__)
        file.handle(source.makeRecord("hylorada", logging.ERROR, "", 0, "the run ended", (), trace))

    source.addHandler(file)
    try:
        yield traceback
    finally:
        source.removeHandler(file)
        file.close()


def is_logged_to(path: Path) -> bool:
    """Whether everything goes to this file already."""
    target = os.path.abspath(path)  # noqa: PTH100, which keeps the `..` of a path
    handlers = logging.getLogger().handlers
    return any(getattr(handler, "baseFilename", None) == target for handler in handlers)


@contextlib.contextmanager
def log_to(path: Path) -> Iterator[LogError]:
    """Append this package's log to a file; under the command, which logs there by itself, do not.

    Yields:
        A function that writes a traceback into the file and not on the terminal.
    """
    if is_logged_to(path):
        yield lambda error: None
        return
    root, package = logging.getLogger(), logging.getLogger("hylorada")
    level = package.level
    with contextlib.ExitStack() as stack:
        traceback = stack.enter_context(log_file(path, package))
        if not root.handlers and len(package.handlers) == 1:  # a notebook: keep messages visible
            terminal = logging.StreamHandler(sys.stderr)
            terminal.setFormatter(logging.Formatter("%(message)s"))
            package.addHandler(terminal)
            stack.callback(package.removeHandler, terminal)
        if level == logging.NOTSET:
            package.setLevel(logging.INFO)
        stack.callback(package.setLevel, level)
        yield traceback
