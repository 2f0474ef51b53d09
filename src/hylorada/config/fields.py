"""What a field of the config says of itself, and the functions that make such fields.

Each rule about fields follows from here (`config.rules`) and is written nowhere else: choices and
ranges are checked (`settings.checks.fields`), what changes nothing stays out of the fingerprint and
may differ when a run is continued, only what changes numbers is compared, and what is marked
`remeasured` may differ when a finished run is measured again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CHANGES = {
    "numbers": "results; runs with different values are not compared",
    "rounding": "only the last digits, besides speed and memory",
    "record": "what the record contains or proves, but not the numbers that are compared",
    "question": "what is measured; the metrics concerned record it themselves",
    "arm": "what is compared: methods and their seeds",
    "beside": "whether an additional number is measured; the run stays the same",
    "nothing": "no number and no table",
}
"""What another value of a setting changes. That of a part holds for what is in it, too."""

SWITCHES = ("true", "false", "auto")
"""A component is on, off, or follows the length by the paper's adaptive rule (section 2.3)."""


@dataclass(frozen=True)
class Facts:
    """What is known of one field.

    Attributes:
        means: in words, where the name, the unit and the choices do not say it all.
        unit: of a number or of each in a list, as in "tokens".
        choices: all values that a text, or a text in a list, may have; empty: any text.
        least: the smallest value.
        above: values are larger than this.
        most: the largest value.
        below: values are smaller than this.
        zero: what 0 stands for, where it is outside of the range or means something else.
        place: "local" for a file or a folder, "hub" for a repository too.
        label: "label" of what becomes part of a path or of a key in a record, "optional" if it
            may be empty.
        changes: one of `CHANGES`.
        remeasured: whether it may differ when a finished run is measured again.
        open: whether it is a group whose keys another package names.
    """

    means: str = ""
    unit: str = ""
    choices: tuple[str, ...] = ()
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    zero: str = ""
    place: str = ""
    label: str = ""
    changes: str = "numbers"
    remeasured: bool = False
    open: bool = False

    def __post_init__(self) -> None:
        assert self.changes in CHANGES, self.changes

    @property
    def bounded(self) -> bool:
        """Whether it is a number with a range."""
        return any(limit is not None for limit in (self.least, self.above, self.most, self.below))


_KEY = "facts"


def number(default: float, unit: str, **facts: Any) -> Any:
    """A number with its unit; `least`, `above`, `most`, `below` bound it, `zero` says what 0 is."""
    return _field(default, Facts(unit=unit, **facts))


def choice(default: str, *others: str, among: tuple[str, ...] = (), **facts: Any) -> Any:
    """One of the default and some others, or one `among` texts with an order of their own."""
    return _field(default, Facts(choices=among or (default, *others), **facts))


def switch(default: str = "auto", **facts: Any) -> Any:
    """A component that is on, off, or follows the length."""
    return choice(default, among=SWITCHES, **facts)


def flag(default: bool, means: str = "", **facts: Any) -> Any:
    """True or false."""
    return _field(default, Facts(means=means, **facts))


def text(default: str, means: str, **facts: Any) -> Any:
    """A text that no list of choices bounds."""
    return _field(default, Facts(means=means, **facts))


def label(default: str, means: str, *, form: str = "label") -> Any:
    """A name that stands in a path or in a key of a record, and changes nothing else."""
    return _field(default, Facts(means=means, label=form, changes="nothing"))


def place(default: str, means: str, *, hub: bool = False, **facts: Any) -> Any:
    """A file or a folder, or a repository of the hub too."""
    return _field(default, Facts(means=means, place="hub" if hub else "local", **facts))


def several(default: Sequence[Any] | dict[str, Any], means: str = "", **facts: Any) -> Any:
    """A list (or a dict), of which each run has its own; bounds and choices hold for each item."""
    copy = dict if isinstance(default, dict) else list
    return dataclasses.field(
        default_factory=lambda: copy(default), metadata={_KEY: Facts(means=means, **facts)}
    )


def part(kind: type, **facts: Any) -> Any:
    """A group of settings. Its `changes` and `remeasured` hold for all in it."""
    return dataclasses.field(default_factory=kind, metadata={_KEY: Facts(**facts)})


def _field(default: Any, facts: Facts) -> Any:
    return dataclasses.field(default=default, metadata={_KEY: facts})


def facts_of(field: dataclasses.Field[Any]) -> Facts | None:
    """What a field says of itself; None of one that was made by no function of this module."""
    return field.metadata.get(_KEY)


def described(tree: Any) -> dict[str, Facts]:
    """Dotted key -> facts, of all values and parts of a tree of dataclasses, as declared.

    Raises:
        KeyError: a field that was not made by a function of this module.
    """
    found: dict[str, Facts] = {}

    def walk(branch: Any, prefix: str, above: Facts) -> None:
        for item in dataclasses.fields(branch):
            key, facts = f"{prefix}{item.name}", item.metadata[_KEY]
            if facts.changes == "numbers":
                facts = dataclasses.replace(facts, changes=above.changes)
            facts = dataclasses.replace(facts, remeasured=facts.remeasured or above.remeasured)
            found[key] = facts
            inner = getattr(branch, item.name)
            if dataclasses.is_dataclass(inner):
                walk(inner, f"{key}.", facts)

    walk(tree, "", Facts())
    return found


def topmost(keys: Sequence[str]) -> tuple[str, ...]:
    """The keys that lie within no other one of them."""
    return tuple(key for key in keys if not within(key.rpartition(".")[0], keys))


def within(key: str, parts: Sequence[str] | frozenset[str]) -> bool:
    """Whether a dotted key is one of these keys or lies in a part that is."""
    return any(key == name or key.startswith(f"{name}.") for name in parts)
