"""What commands say beside their results: one line each, on standard error."""

from __future__ import annotations

import logging
import sys


def complain(program: str, message: str) -> None:
    """Say why a command, or a cell of it, failed."""
    sys.stderr.write(f"{program}: error: {' '.join(message.split())}\n")
    sys.stderr.flush()


def say(message: str) -> None:
    """Say what is no result."""
    sys.stderr.write(f"{message}\n")


def log_to_terminal() -> None:
    """Messages of this package to standard error, as Hydra does it for a training run."""
    package = logging.getLogger("hylorada")
    if not package.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        package.addHandler(handler)
