"""Single checks; each says which setting, what is wrong with it and what to do."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from hylorada.command_line.suggest import did_you_mean
from hylorada.errors import ConfigError


def each_once(key: str, values: Sequence[str], choices: Sequence[str]) -> None:
    """A list of choices without repetition."""
    if len(set(values)) < len(values):
        raise ConfigError(
            f"{key} is {values}; name {', '.join(choices[:-1])} or {choices[-1]}, each once"
        )
    for value in values:
        choice(key, value, choices)


def choice(key: str, value: str, choices: Sequence[str]) -> None:
    """One of the choices; the nearest is named."""
    if value not in choices:
        raise ConfigError(
            f"{key} is {value!r}; choose {', '.join(choices[:-1])} or {choices[-1]}"
            f"{did_you_mean(value, choices)}"
        )


def at_least(key: str, value: float, low: float) -> None:
    """`low` or more, and finite."""
    if not (math.isfinite(value) and value >= low):
        raise ConfigError(f"{key} is {value}; it must be {low:g} or more")


def above(key: str, value: float, low: float) -> None:
    """More than `low`, and finite."""
    if not (math.isfinite(value) and value > low):
        raise ConfigError(f"{key} is {value}; it must be above {low:g}")


def between(key: str, value: float, low: float, high: float) -> None:
    """From `low` to `high`."""
    if not low <= value <= high:
        raise ConfigError(f"{key} is {value}; it must be from {low:g} to {high:.10g}")


def fraction(key: str, value: float) -> None:
    """0 or more and below 1."""
    if not 0 <= value < 1:
        raise ConfigError(f"{key} is {value}; it must be 0 or more and below 1")


def label(key: str, value: str) -> None:
    """A name that becomes part of a path or of a key in a record."""
    if not re.fullmatch(r"[\w][\w.+-]*", value):
        raise ConfigError(f"{key} is {value!r}; use letters, digits, '.', '_', '+' and '-' only")
