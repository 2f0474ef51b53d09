"""The loss of the same targets by the context before them, drawn from records."""

from __future__ import annotations

import numpy as np

from hylorada.comparison.arms import Comparison
from hylorada.comparison.drawing import (
    figure_and_axes,
    finish,
    lines_of,
    mean_and_range,
    picture,
    where,
)
from hylorada.comparison.picture import Picture
from hylorada.records.metric_names import GAIN


def loss_by_context(comparison: Comparison, name: str) -> Picture | None:
    """The loss of the same targets against the tokens of context before them.

    A line is the mean over seeds, its band the range between them.
    """
    lines = lines_of(comparison, GAIN)
    if not lines:
        return None
    some = lines[0][2][0]
    contexts = [score["context"] for score in some["by_context"]]
    with figure_and_axes() as (figure, axes):
        for label, style, metrics in lines:
            rows_SK = np.array(
                [[s["sum_nll"] / s["tokens"] for s in m["by_context"]] for m in metrics]
            )
            mean_and_range(axes, contexts, rows_SK, label=label, **style)
        axes.set_xscale("log", base=2)
        axes.set_xticks(contexts)
        axes.minorticks_off()
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("context before the first target, tokens")
        axes.set_ylabel("loss, nats per token")
        seeds = max(len(metrics) for _, _, metrics in lines)
        caption = (
            f"Loss by context, {where(comparison)}: the same {some['places']} x "
            f"{some['targets']} target tokens, {some['split']} split, with more and more context "
            "before them; a falling line means that context helps"
            + ("; mean over seeds, bands: range between seeds." if seeds > 1 else "; one seed.")
        )
        finish(figure, axes, "Loss by context", comparison)
        return picture(figure, name, caption)
