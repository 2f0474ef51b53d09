"""What each component adds, drawn from arms that differ by it alone."""

from __future__ import annotations

from hylorada.comparison.arms import Comparison
from hylorada.comparison.changes import component_change
from hylorada.comparison.components import Pair, component_pairs
from hylorada.comparison.drawing import (
    BASE,
    INK,
    figure_and_axes,
    finish,
    in_lines,
    picture,
    where,
)
from hylorada.comparison.picture import Picture
from hylorada.statistics.clustered import ONE_SEED
from hylorada.statistics.paired import Change

_LABEL_WIDTH = 40
_EACH = 2  # pairs of one component that have a row each; more are one row, their mean


def component_effects(comparison: Comparison) -> list[tuple[str, Change]]:
    """What is in a row, and the change in perplexity by adding the component.

    Up to two pairs of arms of a component stand each by themselves: alone and beside all others
    are two questions. Of a whole factorial it is the main effect, the mean over all pairs.
    """
    found = []
    for pairs in component_pairs(comparison).values():
        groups = [[pair] for pair in pairs] if len(pairs) <= _EACH else [pairs]
        for group in groups:
            change = component_change(group)
            if isinstance(change, Change):
                found.append((_label(group), change))
    return found


def _label(group: list[Pair]) -> str:
    first = group[0]
    if len(group) > 1:
        return f"{first.words}\nmean of {len(group)} pairs"
    return "\n".join([first.words, *in_lines(f"on {first.without.label}", _LABEL_WIDTH)])


def gain_by_component(comparison: Comparison, name: str) -> Picture | None:
    """A row for each component, with the interval of what it changes."""
    effects = component_effects(comparison)
    if not effects:
        return None
    lines = max(label.count("\n") + 1 for label, _ in effects)
    with figure_and_axes(height=1.5 + max(0.42, 0.17 * lines) * len(effects)) as (figure, axes):
        for place, (_, change) in enumerate(effects):
            ends = None
            if change.low is not None and change.high is not None:
                ends = [[change.percent - change.low], [change.high - change.percent]]
            axes.errorbar(
                [change.percent], [-place], xerr=ends, marker="o", color=INK, capsize=3,
                elinewidth=1.4,
            )  # fmt: skip
        axes.axvline(0, color=BASE, linewidth=1, zorder=1)
        axes.set_yticks([-place for place in range(len(effects))], [label for label, _ in effects])
        axes.tick_params(axis="y", labelsize=9)
        axes.set_ylim(-len(effects) + 0.4, 0.6)
        axes.grid(False, axis="y")
        axes.set_xlabel("change in PPL by adding it, %")
        seeds = {change.seeds for _, change in effects}
        one = f"; one seed: {ONE_SEED}" if seeds == {1} else ""
        caption = (
            f"What each component adds, {where(comparison)}: change in perplexity between arms "
            "that differ by it alone; bars: 95 % intervals, paired, clustered by documents and "
            f"seeds{one}. Left of 0 is better."
        )
        finish(figure, axes, "Gain per component", comparison)
        return picture(figure, name, caption)
