"""Comparisons that differ by their length alone: what is drawn against the length."""

from __future__ import annotations

from collections.abc import Sequence

from hylorada.comparison.arms import Comparison


def by_length(comparisons: Sequence[Comparison]) -> list[list[Comparison]]:
    """Groups of two lengths or more, each length once, in their order.

    Args:
        comparisons: of one model and data set.
    """
    groups: dict[str, dict[int, list[Comparison]]] = {}
    for comparison in comparisons:
        lengths = groups.setdefault(comparison.label, {})
        lengths.setdefault(comparison.length, []).append(comparison)
    found = [
        [same[0] for _, same in sorted(lengths.items()) if len(same) == 1]
        for lengths in groups.values()
    ]
    return [group for group in found if len(group) > 1]
