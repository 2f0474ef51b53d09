"""Perplexity against the length of the text, drawn from the records of several comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from hylorada.comparison.arms import Comparison
from hylorada.comparison.changes import ppl_change
from hylorada.comparison.drawing import (
    BASE,
    base_style,
    figure_and_axes,
    finish,
    length_axis,
    method_style,
    picture,
)
from hylorada.comparison.picture import Picture
from hylorada.comparison.subjects import Metric, bases, shown_arms
from hylorada.records.metric_names import COMPARED
from hylorada.statistics.clustered import ONE_SEED
from hylorada.statistics.paired import pooled_ppl, ppl_interval

Point = tuple[float, float, float]
"""A value and the ends of its interval; nan where there is none."""
Points = dict[int, Point]
"""By length."""


def ppl_by_length(comparisons: Sequence[Comparison], metric: str, name: str) -> Picture | None:
    """The pooled perplexity of each arm and of the extended base, with its own interval."""
    lines: dict[str, tuple[dict, Points]] = {}
    for comparison in comparisons:
        for place, base in enumerate(bases(comparison, "extended")):
            if found := base.values(metric):
                # It is called "base" up to its trained length: one line all the same.
                label = "base, untrained" if place == 0 else base.label
                line = lines.setdefault(label, (base_style(place), {}))[1]
                line[comparison.length] = _pooled(found)
        for arm in shown_arms(comparison):
            if metrics := list(arm.metrics(metric).values()):
                style = method_style(arm, comparison)
                line = lines.setdefault(arm.label, (style, {}))[1]
                line[comparison.length] = _pooled(metrics)
    convention = next(key for key, value in COMPARED.items() if value == metric)

    def finished(axes: Axes) -> None:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel(f"PPL, {convention}")

    return _drawn(
        comparisons, lines, "Perplexity by length", name, finished,
        f"Perplexity by length, {_of(comparisons)}: {convention} convention; bars: 95 % confidence "
        "intervals. Methods share documents, so overlapping bars do not mean that methods are "
        "equal: see the difference by length.",
    )  # fmt: skip


def _pooled(metrics: list[Metric]) -> Point:
    low, high = ppl_interval(metrics) or (math.nan, math.nan)
    return pooled_ppl(metrics), low, high


def change_by_length(
    comparisons: Sequence[Comparison], reference: str, name: str
) -> Picture | None:
    """The paired change of each arm against one, with its interval."""
    lines: dict[str, tuple[dict, Points]] = {}
    seeds = set()
    for comparison in comparisons:
        against = comparison.reference(reference)
        if against is None:
            continue
        for arm in shown_arms(comparison):
            change = ppl_change(arm, against) if arm.ok and against is not arm else ""
            if isinstance(change, str):
                continue
            seeds.add(change.seeds)
            line = lines.setdefault(arm.label, (method_style(arm, comparison), {}))[1]
            line[comparison.length] = (
                change.percent,
                math.nan if change.low is None else change.low,
                math.nan if change.high is None else change.high,
            )

    def finished(axes: Axes) -> None:
        axes.axhline(0, color=BASE, linewidth=1, zorder=1)
        axes.set_ylabel(f"change in PPL vs {reference}, %")

    one = f"; one seed: {ONE_SEED}" if seeds == {1} else ""
    return _drawn(
        comparisons, lines, f"Difference from {reference} by length", name, finished,
        f"Change in perplexity vs {reference} by length, {_of(comparisons)}; bars: 95 % "
        f"intervals, paired, clustered by documents and seeds{one}. Below 0 is better.",
    )  # fmt: skip


def _of(comparisons: Sequence[Comparison]) -> str:
    first = comparisons[0]
    return f"{first.model} on {first.dataset}" + (f" ({first.label})" if first.label else "")


def _drawn(
    comparisons: Sequence[Comparison],
    lines: dict[str, tuple[dict, Points]],
    title: str,
    name: str,
    finished: Callable[[Axes], None],
    caption: str,
) -> Picture | None:
    """Lines of points with bars, those of one length side by side."""
    if not any(len(points) > 1 for _, points in lines.values()):
        return None
    with figure_and_axes() as (figure, axes):
        for place, (label, (style, points)) in enumerate(lines.items()):
            apart = 1.035 ** (place - (len(lines) - 1) / 2)
            y, low, high = np.array([points[length] for length in sorted(points)]).T
            axes.errorbar(
                [length * apart for length in sorted(points)], y,
                yerr=[np.nan_to_num(y - low), np.nan_to_num(high - y)],
                capsize=2.5, elinewidth=1, label=label, **style,
            )  # fmt: skip
        length_axis(axes, [comparison.length for comparison in comparisons])
        finished(axes)
        finish(figure, axes, title, *comparisons)
        return picture(figure, name, caption)
