"""What the functions of the Python interface are called with: a wrong type or range is one line.

Settings that come by YAML or from the command line are checked in `hylorada.settings`.
"""

from __future__ import annotations

import errno
import math
import operator
import os
from pathlib import Path
from typing import Any

from hylorada.errors import ConfigError

LARGEST_SEED = 2**64 - 1
"""What torch's generator takes."""


def whole_number(where: str, value: Any, least: int, most: int = 2**53) -> int:
    """An integer of Python, NumPy or the like in a range; no truth value.

    Args:
        where: the function and the argument, as in "adapt: max_length".
        value: as given.
        least: the smallest.
        most: the largest.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise ConfigError(f"{where} is {shown(value)}; use a whole number")
    if number < least:
        raise ConfigError(f"{where} is {number}; use at least {least}")
    if number > most:
        raise ConfigError(f"{where} is {shown(value)}; use at most {most}")
    return number


def real_number(where: str, value: Any) -> float:
    """A finite number as given; no text and no truth value."""
    try:
        finite = not isinstance(value, bool | str | bytes) and math.isfinite(value)
    except (TypeError, OverflowError, ValueError, RuntimeError):
        finite = False
    if not finite:
        raise ConfigError(f"{where} is {shown(value)}; use a finite number")
    return value


def true_or_false(where: str, value: Any) -> bool:
    """A truth value itself: a text such as "false" would count as true."""
    if not isinstance(value, bool):
        raise ConfigError(f"{where} is {shown(value)}; use True or False")
    return value


def path(where: str, value: Any) -> Path:
    """A path as text or `pathlib.Path`, of a form that the system can look up."""
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise ConfigError(f"{where} is {shown(value)}; use a path, as text or pathlib.Path")
    try:
        os.lstat(value)
    except ValueError as error:
        raise ConfigError(f"{where} is {shown(value)}; that is no path ({error})") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ConfigError(f"{where} is {shown(value)}; that is too long for a path") from error
    return Path(value)


def shown(value: Any, most: int = 60) -> str:
    """A value in one short line: its representation, or its type where that is long."""
    try:
        text = repr(value)
    except Exception:  # whatever a stranger's __repr__ raises: its type is shown instead
        text = "\n"
    if len(text) <= most and "\n" not in text and " at 0x" not in text:
        return text
    if isinstance(value, str | bytes | int | float):
        return f"{text[:most]}..."
    kind = value if isinstance(value, type) else type(value)
    return f"the class {kind.__name__}" if kind is value else f"of type {kind.__name__}"
