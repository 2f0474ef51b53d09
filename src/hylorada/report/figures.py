"""Pictures of records: those of each measurement, and how training went."""

from __future__ import annotations

import re
import statistics as stdlib_statistics
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from hylorada.comparison.arms import Comparison
from hylorada.comparison.by_length import by_length
from hylorada.comparison.collect import Record
from hylorada.comparison.drawing import (
    figure_and_axes,
    finish,
    length_axis,
    mean_and_range,
    method_style,
    picture,
    where,
)
from hylorada.comparison.picture import Picture
from hylorada.evaluation.measurement import measurements


def draw_all(comparisons: Sequence[Comparison], reference: str) -> list[Picture]:
    """Every picture that the records hold the numbers for: by length first, then of each length.

    Args:
        comparisons: all of the report.
        reference: name of the method that the others are compared with.
    """
    tables: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in comparisons:
        tables.setdefault((comparison.model, comparison.dataset), []).append(comparison)
    names = _Names()
    drawn: list[Picture | None] = []
    for (model, dataset), table in tables.items():
        for group in by_length(table):
            name = names.new(f"{model}-{dataset}")
            for each in measurements():
                drawn += each.figures_by_length(group, reference, name)
            drawn += costs_by_length(group, name)
    for comparison in comparisons:
        name = names.new(f"{comparison.model}-{comparison.dataset}-{comparison.length}")
        drawn += [figure for each in measurements() for figure in each.figures(comparison, name)]
        drawn.append(training_curves(comparison, f"{name}-training"))
    return [picture for picture in drawn if picture is not None]


class _Names:
    """A file name for each group of pictures; numbered where two would be the same."""

    def __init__(self) -> None:
        self._given: list[str] = []

    def new(self, text: str) -> str:
        name = re.sub(r"[^A-Za-z0-9.-]+", "-", text).strip("-.")
        same = sum(other == name or other.startswith(f"{name}.") for other in self._given)
        self._given.append(f"{name}.{same + 1}" if same else name)
        return self._given[-1]


def costs_by_length(comparisons: Sequence[Comparison], name: str) -> list[Picture]:
    """Time and memory of training against the length."""
    drawn = (
        _cost_by_length(
            comparisons, f"{name}-time-by-length", "Training time by length",
            "seconds per 1,000 tokens", "median over seeds, bars: range between seeds",
            lambda runs: _median_and_range([1000 / s for s in runs]), "tokens_per_second",
        ),
        _cost_by_length(
            comparisons, f"{name}-memory-by-length", "Peak memory of training by length",
            "peak memory, MiB", "largest over seeds", lambda runs: (max(runs) / 2**20,) * 3,
            "peak_memory_bytes",
        ),
    )  # fmt: skip
    return [each for each in drawn if each is not None]


def _median_and_range(values: list[float]) -> tuple[float, float, float]:
    return stdlib_statistics.median(values), min(values), max(values)


def _cost_by_length(
    comparisons: Sequence[Comparison],
    name: str,
    title: str,
    axis: str,
    over: str,
    value: Callable[[list[float]], tuple[float, float, float]],
    field: str,
) -> Picture | None:
    lines: dict[str, tuple[dict, dict[int, tuple[float, float, float]]]] = {}
    for comparison in comparisons:
        for arm in comparison.arms:
            found = [run.part("training").get(field) for run in arm.ok]
            if known := [each for each in found if each]:
                style = method_style(arm, comparison)
                lines.setdefault(arm.label, (style, {}))[1][comparison.length] = value(known)
    if not any(len(points) > 1 for _, points in lines.values()):
        return None
    with figure_and_axes() as (figure, axes):
        for label, (style, points) in lines.items():
            lengths = sorted(points)
            y, low, high = np.array([points[length] for length in lengths]).T
            axes.plot(lengths, y, label=label, **style)
            apart = high > low
            axes.errorbar(
                np.array(lengths)[apart], y[apart], yerr=[(y - low)[apart], (high - y)[apart]],
                fmt="none", color=style["color"], elinewidth=1, capsize=2.5,
            )  # fmt: skip
        length_axis(axes, [comparison.length for comparison in comparisons])
        axes.set_ylim(bottom=0)
        axes.set_ylabel(axis)
        axes.yaxis.set_major_formatter("{x:,g}")
        first = comparisons[0]
        caption = f"{title}, {first.model} on {first.dataset}: {axis}, {over}; lower is better."
        finish(figure, axes, title, *comparisons)
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
            style = {**method_style(arm, comparison), "marker": ""}
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
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlim(left=0)
        several = any(len(arm.runs) > 1 for arm in comparison.arms)
        caption = (
            f"Training loss, {where(comparison)}: running mean of the last {smoothed} logged steps"
            + ("; mean over seeds, bands: range between seeds." if several else "; one seed.")
        )
        finish(figure, axes, "Training loss", comparison)
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
