"""Single checks; each says which setting, what is wrong with it and what to do."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from hylorada.command_line.suggest import did_you_mean
from hylorada.config import RunConfig
from hylorada.config.fields import Facts
from hylorada.config.rules import FACTS
from hylorada.errors import ConfigError

LARGEST = 2**53
"""Of whole numbers without a limit of their own: up to here a float is as exact."""


def fields(config: RunConfig) -> None:
    """Each setting by itself, as `config` describes it: its choices, its range, its form.

    Raises:
        ConfigError: naming the first that is wrong.
    """
    for key, facts in FACTS.items():
        one_field(key, attrgetter(key)(config), facts)


def one_field(key: str, value: Any, facts: Facts) -> None:
    """A setting by itself, as its facts describe it."""
    if facts.choices:
        check = each_once if isinstance(value, list) else choice
        check(key, value, facts.choices)
    if facts.label and (value or facts.label != "optional"):
        label(key, value)
    if facts.bounded:
        for item in value if isinstance(value, list) else [value]:
            bounds(key, item, facts)


def bounds(key: str, value: float, facts: Facts) -> None:
    """A number in its range, and finite; 0 too where it stands for something."""
    if facts.zero and value == 0:
        return
    if isinstance(value, int) and value > LARGEST and facts.most is None:
        raise ConfigError(f"{key} is {value}; it must be {LARGEST} or less")
    if not (
        math.isfinite(value)
        and (facts.least is None or value >= facts.least)
        and (facts.above is None or value > facts.above)
        and (facts.most is None or value <= facts.most)
        and (facts.below is None or value < facts.below)
    ):
        low = f"above {facts.above:g}" if facts.least is None else f"{facts.least:g} or more"
        if facts.most is not None:
            low = f"from {facts.least:g} to {facts.most:.10g}"
        elif facts.below is not None:
            low += f" and below {facts.below:g}"
        if not math.isfinite(value):
            low = f"a finite number, {low}"
        zero = f", or 0 for {facts.zero}" if facts.zero else ""
        raise ConfigError(f"{key} is {value}; it must be {low}{zero}")


def each_once(key: str, values: Sequence[str], choices: Sequence[str]) -> None:
    """A list of choices without repetition."""
    if len(set(values)) < len(values):
        raise ConfigError(
            f"{key} is {values}; name {', '.join(choices[:-1])} or {choices[-1]}, each once"
        )
    for value in values:
        choice(key, value, choices)


def not_twice(key: str, values: Sequence[str]) -> None:
    """A list of names without repetition."""
    for name in values:
        if values.count(name) > 1:
            raise ConfigError(f"{key} names {name} {values.count(name)} times; name it once")


def choice(key: str, value: str, choices: Sequence[str]) -> None:
    """One of the choices; the nearest is named."""
    if value not in choices:
        raise ConfigError(
            f"{key} is {value!r}; choose {', '.join(choices[:-1])} or {choices[-1]}"
            f"{did_you_mean(value, choices)}"
        )


def between(key: str, value: float, low: float, high: float) -> None:
    """From `low` to `high`."""
    if not low <= value <= high:
        raise ConfigError(f"{key} is {value}; it must be from {low:g} to {high:.10g}")


def label(key: str, value: str) -> None:
    """A name that becomes part of a path or of a key in a record."""
    if not re.fullmatch(r"[\w][\w.+-]*", value):
        raise ConfigError(f"{key} is {value!r}; use letters, digits, '.', '_', '+' and '-' only")
