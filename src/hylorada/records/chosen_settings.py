"""Settings as they would be typed, and what a record says of how its own were chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def chosen_in(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """How the settings of a run were chosen, the latest time (`schema.Chosen`); None: not at all.

    Args:
        record: a result.json.
    """
    entries = reversed(record.get("evaluations") or [])
    return next((entry["chosen"] for entry in entries if entry.get("chosen")), None)


def choice_in_words(chosen: Mapping[str, Any]) -> str:
    """As in "train.lr=0.003, by the loss on the validation split among 3 (0.001, 0.003, 0.01)".

    Args:
        chosen: of a record.
    """
    keys, among = (
        list(chosen["settings"]),
        [list(each["settings"].values()) for each in chosen["among"]],
    )
    tried = [value_in_words(v[0]) if len(keys) == 1 else in_words(keys, v) for v in among]
    return (
        f"{in_words(keys, list(chosen['settings'].values()))}, by the loss on the "
        f"{chosen['split']} split among {len(among)} ({', '.join(tried)})"
    )


def in_words(keys: Sequence[str], values: Sequence[Any]) -> str:
    """A combination as it would be typed: "train.lr=0.003"."""
    return " ".join(
        f"{key}={value_in_words(value)}" for key, value in zip(keys, values, strict=True)
    )


def value_in_words(value: Any) -> str:
    """A value as it would be typed."""
    if is_number(value):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")


def is_number(value: Any) -> bool:
    """Whether it is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
