"""Pictures of records: loss by position in the window, and how training went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from hylorada.comparison.arms import Comparison
from hylorada.comparison.collect import Record
from hylorada.comparison.drawing import (
    BASE,
    Picture,
    base_style,
    figure_and_axes,
    finish,
    mean_and_range,
    method_style,
    picture,
    where,
)
from hylorada.comparison.subjects import bases
from hylorada.records.metric_names import COMPARED, SCORINGS
from hylorada.report.context_figures import accuracy_by_depth, context_gain


def draw_all(comparison: Comparison, name: str) -> list[Picture]:
    """Every picture that the records of a comparison hold the numbers for."""
    drawn: list[Picture | None] = []
    for convention, metric in COMPARED.items():
        drawn.append(loss_by_position(comparison, metric, f"{name}-loss-by-position-{convention}"))
        if drawn[-1] is not None:
            break  # one convention is enough: sliding holds the ends of windows only
    for suffix, scoring in SCORINGS.items():
        drawn.append(accuracy_by_depth(comparison, suffix, f"{name}-retrieval-{scoring}"))
    drawn.append(context_gain(comparison, f"{name}-context-gain"))
    drawn.append(training_curves(comparison, f"{name}-training"))
    return [each for each in drawn if each is not None]


def loss_by_position(comparison: Comparison, metric: str, name: str) -> Picture | None:
    """NLL per token against the tokens of context, one line for each arm and the base.

    The band is the range between seeds. The base in its own window, whose context is always short,
    is a level line.
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
            mean_and_range(
                axes, line.x_K, line.rows_SK, marker="o", markersize=3, label=line.label,
                **line.style,
            )  # fmt: skip
        own = next(
            (
                m
                for base in bases(comparison, "own_window")
                for m in base.values("eval/ppl_sliding")
            ),
            None,
        )
        if own and own.get("sum_nll") is not None:
            axes.axhline(
                own["sum_nll"] / own["tokens"], color=BASE, linestyle=(0, (1, 1.5)), linewidth=1.2,
                label=f"base, own window {own['window']:,} (sliding, mean)", zorder=1,
            )  # fmt: skip
        axes.set_xlim(0, some["window"])
        edges = [0, *(bucket["end"] for bucket in some["by_position"])]
        axes.set_xticks(edges[:: max(1, len(edges) // 8)])
        axes.set_xlabel("context before the predicted token, tokens")
        axes.set_ylabel("loss, nats per token")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        seeds = max(len(line.metrics) for line in lines)
        between = "; bands: range between seeds" if seeds > 1 else "; one seed"
        caption = (
            f"Loss by position, {where(comparison)}: {some['convention']} convention, window "
            f"{some['window']:,}, split {some['split']}; a point at the centre of each slice of "
            f"the window, mean over seeds{between}. Lower is better."
        )
        finish(figure, axes, f"Loss by position in the window, {where(comparison)}", comparison)
        return picture(figure, name, caption)


def training_curves(comparison: Comparison, name: str) -> Picture | None:
    """Training loss against tokens seen: a running mean, since one step is one or a few sequences.

    Seeds of an arm that logged the same steps are one line, their mean, with their range.
    """
    runs = [(arm, run, _losses(run)) for arm in comparison.arms for run in arm.runs]
    runs = [(arm, run, points) for arm, run, points in runs if len(points) >= 2]
    if not runs:
        return None
    smoothed = max(1, min(len(points) for _, _, points in runs) // 10)
    with figure_and_axes() as (figure, axes):
        for arm in comparison.arms:
            style = method_style(arm, comparison)
            by_steps: dict[tuple[float, ...], list[np.ndarray]] = {}
            for _, _, points in (entry for entry in runs if entry[0] is arm):
                x, y = zip(*points, strict=True)
                by_steps.setdefault(x, []).append(_running_mean(np.array(y), smoothed))
            label: str | None = arm.label
            for x, seeds in by_steps.items():
                mean_and_range(axes, x, np.stack(seeds), band=0.12, label=label, **style)
                label = None
        axes.set_xlabel("tokens trained on")
        axes.set_ylabel("training loss, nats per token")
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlim(left=0)
        several = any(len(arm.runs) > 1 for arm in comparison.arms)
        caption = (
            f"Training loss, {where(comparison)}: running mean of the last {smoothed} logged steps"
            + ("; mean over seeds, bands: range between seeds." if several else "; one seed.")
        )
        finish(figure, axes, f"Training loss, {where(comparison)}", comparison)
        return picture(figure, name, caption)


def _losses(run: Record) -> list[tuple[float, float]]:
    """(tokens trained on, loss) of every logged step that was taken."""
    return [
        (line["train/tokens"], line["train/loss"])
        for line in run.history
        if line.get("train/loss") is not None and line.get("train/tokens")
    ]


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


def _running_mean(y_N: np.ndarray, size: int) -> np.ndarray:
    """The mean of up to `size` values up to and including each."""
    total = np.concatenate([[0.0], np.cumsum(y_N)])
    end = np.arange(1, len(y_N) + 1)
    start = np.maximum(0, end - size)
    return (total[end] - total[start]) / (end - start)


def _thousands(value: float, _: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
