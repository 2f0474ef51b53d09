"""Loss by position in the window, drawn from records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hylorada.comparison.arms import Comparison
from hylorada.comparison.drawing import (
    BASE,
    base_style,
    figure_and_axes,
    finish,
    mean_and_range,
    method_style,
    picture,
    where,
)
from hylorada.comparison.picture import Picture
from hylorada.comparison.subjects import bases
from hylorada.records.metric_names import COMPARED


def loss_by_position(comparison: Comparison, metric: str, name: str) -> Picture | None:
    """NLL per token against the tokens of context, one line for each arm and the base.

    The band is the range between seeds. The base in its own window, whose context is always short,
    is a level line, the mean over its window.
    """
    lines = [
        _Line(base.label, base_style(i), values)
        for i, base in enumerate(bases(comparison, "extended"))
        if (values := base.values(metric))
    ]
    for arm in comparison.arms:
        measured = arm.metrics(metric)
        if measured and arm.method != "baseline":
            lines.append(_Line(arm.label, method_style(arm, comparison), list(measured.values())))
    lines = [line for line in lines if line.rows_SK.size]
    if not lines:
        return None
    some = lines[-1].metrics[0]
    with figure_and_axes() as (figure, axes):
        for line in lines:
            mean_and_range(axes, line.x_K, line.rows_SK, label=line.label, **line.style)
        own = next(
            (
                m
                for base in bases(comparison, "own_window")
                for m in base.values(COMPARED["sliding"])
            ),
            None,
        )
        if own and own.get("sum_nll") is not None:
            axes.axhline(
                own["sum_nll"] / own["tokens"], color=BASE, linestyle=(0, (1, 1.5)), linewidth=1.2,
                label=f"base, own window {own['window']:,} (sliding)", zorder=1,
            )  # fmt: skip
        axes.set_xlim(0, some["window"])
        edges = [0, *(bucket["end"] for bucket in some["by_position"])]
        axes.set_xticks(edges[:: max(1, len(edges) // 4)])
        axes.set_xlabel("context before the token, tokens")
        axes.set_ylabel("loss, nats per token")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        seeds = max(len(line.metrics) for line in lines)
        between = "; bands: range between seeds" if seeds > 1 else "; one seed"
        caption = (
            f"Loss by position, {where(comparison)}: {some['convention']} convention, window "
            f"{some['window']:,}, split {some['split']}; a point at the centre of each slice of "
            f"the window, mean over seeds{between}. Lower is better."
        )
        finish(figure, axes, "Loss by position in the window", comparison)
        return picture(figure, name, caption)


@dataclass
class _Line:
    """One line of `loss_by_position`: runs x slices of the window that were scored in all."""

    label: str
    style: dict[str, Any]
    metrics: list[dict[str, Any]]

    def __post_init__(self) -> None:
        rows = [m.get("by_position") or [] for m in self.metrics]
        same = len({tuple((b["start"], b["end"]) for b in row) for row in rows}) == 1
        # A slice without tokens, or with a loss that overflowed, is not a point.
        keep = [
            i
            for i in range(len(rows[0]) if same else 0)
            if all(row[i]["tokens"] and row[i]["sum_nll"] is not None for row in rows)
        ]
        self.x_K = np.array([(rows[0][i]["start"] + rows[0][i]["end"]) / 2 for i in keep])
        self.rows_SK = np.array([[r[i]["sum_nll"] / r[i]["tokens"] for i in keep] for r in rows])
