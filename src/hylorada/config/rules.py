"""What follows from what the fields of the config say of themselves: keys by what they do.

Nothing is listed by hand. A field that is added to `config` falls under each rule by its own line.
"""

from __future__ import annotations

from collections.abc import Callable

from hylorada.config import RunConfig
from hylorada.config.fields import SWITCHES, Facts, described, topmost

FACTS: dict[str, Facts] = described(RunConfig())
"""Dotted key -> what is known of that value or part, in the order of declaration."""

SWITCH_KEYS = tuple(key for key, facts in FACTS.items() if facts.choices == SWITCHES)
LOCAL_KEYS = frozenset(key for key, facts in FACTS.items() if facts.place == "local")
HUB_KEYS = frozenset(key for key, facts in FACTS.items() if facts.place == "hub")
OPEN_KEYS = frozenset(key for key, facts in FACTS.items() if facts.open)


def _topmost(holds: Callable[[Facts], bool]) -> tuple[str, ...]:
    return topmost([key for key, facts in FACTS.items() if holds(facts)])


ASIDE_KEYS = _topmost(lambda facts: facts.changes in ("nothing", "beside"))
"""Outside of the fingerprint; a run may be continued under other values."""
NOT_COMPARED = _topmost(lambda facts: facts.changes != "numbers")
"""What may differ between the runs of one comparison."""
REMEASURED = _topmost(lambda facts: facts.remeasured)
"""What may differ from a finished run's settings when it is measured again."""


def choices(key: str) -> tuple[str, ...]:
    """All values that a setting, or each in a list, may have."""
    return FACTS[key].choices
