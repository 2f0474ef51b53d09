"""Right answers by depth (the U-curve), drawn from records."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import PercentFormatter

from hylorada.comparison.arms import Comparison
from hylorada.comparison.drawing import figure_and_axes, finish, lines_of, picture, where
from hylorada.comparison.picture import Picture
from hylorada.evaluation.retrieval_cells import at_depth
from hylorada.records.metric_names import SCORINGS
from hylorada.statistics.clustered import ONE_SEED


def accuracy_by_depth(comparison: Comparison, suffix: str, name: str) -> Picture | None:
    """The share of right answers against the depth of what was asked for, and the chance level.

    A point is the mean over seeds; its bar is the 95 % interval (see `at_depth`).
    """
    lines = lines_of(comparison, f"lim/accuracy{suffix}")
    if not lines:
        return None
    some = lines[0][2][0]
    depths = [score["depth"] for score in some["by_depth"]]
    step = min(0.012, 0.084 / len(lines)) * (min(np.diff(depths)) / 0.25 if len(depths) > 1 else 1)
    with figure_and_axes() as (figure, axes):
        for i, (label, style, metrics) in enumerate(lines):
            found = [at_depth(metrics, place) for place in range(len(depths))]
            shares = [each.value for each in found]
            errors = [(m.value - (m.low or 0), (m.high or 0) - m.value) for m in found]
            # Side by side, so that bars do not hide one another.
            x = np.array(depths) + step * (i - (len(lines) - 1) / 2)
            axes.errorbar(
                x, shares, yerr=np.array(errors).T, capsize=2.5, elinewidth=1,
                label=label, **style,
            )  # fmt: skip
        if suffix == "":
            axes.axhline(
                some["chance"], color="#000000", linestyle=(0, (1, 1.5)), linewidth=1.1, zorder=1,
                label=f"chance, {some['chance']:.1%}",
            )  # fmt: skip
        axes.set_ylim(0, 1.02)
        axes.set_xlim(min(depths) - 0.05, max(depths) + 0.05)
        axes.set_xticks(depths)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("depth of the target (0: first)")
        axes.set_ylabel(f"accuracy, {SCORINGS[suffix]}")
        seeds = max(len(metrics) for _, _, metrics in lines)
        low, high = some["prompt_tokens"]
        caption = (
            f"Accuracy by depth, {where(comparison)}: {some['form']} ({some['source']}), "
            f"{some['prompts']} prompts of {low:,} to {high:,} tokens with {some['items']} items, "
            f"{SCORINGS[suffix]}; bars: 95 % intervals for the prompts at a depth"
            + (" and seeds; mean over seeds." if seeds > 1 else f"; one seed: {ONE_SEED}.")
        )
        finish(figure, axes, "Accuracy by depth", comparison)
        return picture(figure, name, caption)
