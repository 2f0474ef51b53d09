"""Pictures of records: those of each measurement, and how training went."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from hylorada.comparison.arms import Comparison
from hylorada.comparison.collect import Record
from hylorada.comparison.drawing import (
    figure_and_axes,
    finish,
    mean_and_range,
    method_style,
    picture,
    where,
)
from hylorada.comparison.picture import Picture
from hylorada.evaluation.measurement import measurements


def draw_all(comparison: Comparison, name: str) -> list[Picture]:
    """Every picture that the records of a comparison hold the numbers for."""
    drawn = [figure for each in measurements() for figure in each.figures(comparison, name)]
    curves = training_curves(comparison, f"{name}-training")
    return [*drawn, *([] if curves is None else [curves])]


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
