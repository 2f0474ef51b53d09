"""Which arm another one contains, so that what it trains more can be weighed against its gain."""

from __future__ import annotations

from hylorada.comparison.arms import Arm, Comparison, differing_settings
from hylorada.config.fields import within


def nested_in(arm: Arm, comparison: Comparison) -> Arm | None:
    """The arm whose trained groups are a part of this one's; None: only the untrained base is.

    A group is the same if it has as many parameters. Arms that differ from this one by nothing but
    what they leave untrained go before others, whose gain is not that of parameters alone (shifted
    attention has none). Of several the one with the most trained parameters is taken, and of equals
    the one whose settings differ in the fewest.
    """
    own = _groups(arm)
    candidates = [
        other
        for other in comparison.arms
        if other.ok and (groups := _groups(other)) and groups.items() < own.items()
    ]
    return max(
        candidates,
        key=lambda other: (
            _of_groups(differing_settings(arm, other)),
            sum(_groups(other).values()),
            -len(differing_settings(arm, other)),
        ),
        default=None,
    )


# What switches a group of parameters on, shapes it, and says how fast it learns.
_OF_GROUPS = ("position_bias", "landmark", "train_embeddings", "train_norms", "train.lr_scale")


def _of_groups(keys: list[str]) -> bool:
    """Whether settings are all of groups of parameters."""
    return all(within(key, _OF_GROUPS) for key in keys)


def _groups(arm: Arm) -> dict[str, int]:
    """Trained groups with their parameters."""
    found = (run.part("parameters").get("by_group") for run in arm.ok)
    return {name: count for name, count in next(filter(None, found), {}).items() if count}
