"""The measurements there are, found by name, and the settings of those that are added.

They lie on a higher floor, in `evaluation/measurements`; here, as in `comparison`, they are only
asked for what they say of themselves. Their whole interface is `evaluation.measurement`.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from hylorada.command_line.suggest import did_you_mean
from hylorada.config import EvalConfig, RunConfig
from hylorada.config.fields import facts_of
from hylorada.errors import ConfigError
from hylorada.extensions import MEASUREMENTS
from hylorada.settings.checks import one_field

SLOT = "eval.measurements"
"""The key under which an added measurement has its settings."""


class Declared(Protocol):
    """What a measurement says of itself without a model; see `evaluation.measurement`."""

    name: str
    order: float
    title: str
    metrics: tuple[str, ...]
    settings_type: type[Any] | None
    switch: str

    def enabled(self, asked: EvalConfig) -> bool:
        """Whether these settings ask for it."""

    def check(self, config: RunConfig) -> None:
        """Refuse settings that are wrong."""


def declared() -> Sequence[Declared]:
    """Every measurement, in the order of records, summaries and tables.

    Raises:
        ConfigError: a module among them is not one.
    """
    return _loaded(tuple(MEASUREMENTS.names()))


def check_slot(asked: EvalConfig) -> None:
    """Refuse a name in ``eval.measurements`` that is no measurement with settings there.

    Raises:
        ConfigError: naming the nearest one.
    """
    there = {each.name: each for each in declared()}
    added = [name for name, each in there.items() if each.settings_type is not None]
    for name in asked.measurements:
        if name in there and name not in added:
            raise ConfigError(f"{SLOT}.{name}: its settings are in eval.{name}; set them there")
        if name not in there:
            known = f"there are {', '.join(added)}" if added else "no installed package adds one"
            raise ConfigError(
                f"{SLOT}: there is no measurement {name!r}{did_you_mean(name, added)}; {known} "
                "(how to add one, and where it must be installed: docs/EXTENDING.md)"
            )


def typed(measurement: str, schema: type[Any], values: Any) -> Any:
    """The dataclass of a measurement's settings, filled with what the user wrote.

    Args:
        measurement: its name.
        schema: a dataclass whose fields are bool, int, float, str or lists of these, plain or made
            by the functions of `config.fields`, whose ranges and choices are checked.
        values: as they stand in ``eval.measurements.<name>``.

    Raises:
        ConfigError: an unknown key (with the nearest one), or a wrong type or value.
    """
    key = f"{SLOT}.{measurement}"
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{key} is a group of settings; write {key}={{}} for its defaults, or set its keys"
        )
    names = {field.name for field in dataclasses.fields(schema)}
    kinds = typing.get_type_hints(schema)
    found = {}
    for name, value in values.items():
        if name not in names:
            raise ConfigError(f"unknown key {key}.{name}{did_you_mean(str(name), names)}")
        found[name] = _value(f"{key}.{name}", kinds[name], value)
    filled = schema(**found)
    for field in dataclasses.fields(schema):
        if (facts := facts_of(field)) is not None:
            one_field(f"{key}.{field.name}", getattr(filled, field.name), facts)
    return filled


_WORDS: dict[Any, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a text",
}  # fmt: skip


def _value(key: str, kind: Any, value: Any) -> Any:
    if typing.get_origin(kind) is list and isinstance(value, list):
        (inner,) = typing.get_args(kind)
        return [_value(key, inner, item) for item in value]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in _WORDS and type(value) is kind:
        return value
    shown = "null" if value is None else repr(value)
    raise ConfigError(f"{key} is {shown}; it must be {_WORDS.get(kind, 'a list, as in [a,b]')}")


@functools.cache
def _loaded(names: tuple[str, ...]) -> Sequence[Declared]:
    found: list[Declared] = []
    for name in names:
        measurement: Any = MEASUREMENTS.part(name, "MEASUREMENT")
        if getattr(measurement, "name", None) != name:
            raise ConfigError(
                f"the measurement {name}: the name of its MEASUREMENT must be {name!r}"
            )
        found.append(measurement)
    return sorted(found, key=lambda each: (each.order, each.name))
