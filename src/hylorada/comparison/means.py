"""A cell for what the seeds of an arm measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hylorada.comparison.cells import Cell, with_interval
from hylorada.comparison.subjects import Metric
from hylorada.statistics.clustered import clustered_mean, few_seeds
from hylorada.statistics.paired import deviation


def mean_cell(
    metrics: Sequence[Metric], scale: float, digits: int, sign: str = "", *, trained: bool = True
) -> Cell:
    """The mean over seeds with the deviation between them; of one seed its own interval.

    Seeds of one arm are asked the same, so what was asked is not counted once more for each seed.

    Args:
        metrics: one for each seed.
        scale: of what is shown, 100 for percent.
        digits: behind the point.
        sign: "+" to write one before positive numbers too.
        trained: whether another seed would give another number; False for a base.
    """
    values = [scale * m["value"] for m in metrics]
    value = float(np.mean(values))
    text = f"{value:{sign}.{digits}f}"
    spread = deviation(values)
    if spread is not None:
        return Cell(f"{text} ± {spread:.{digits}f}", value)
    low, high = metrics[0].get("low"), metrics[0].get("high")
    if low is None or high is None:
        return Cell(text, value)
    low, high = scale * low, scale * high
    ends = (f"{low:{sign}.{digits}f}", f"{high:{sign}.{digits}f}")
    return Cell(with_interval(text, *ends, few_seeds(1) if trained else ""), value, low, high)


def clustered_cell(
    sums_SD: Sequence[Sequence[float]],
    weights_D: Sequence[float],
    digits: int,
    sign: str = "",
    *,
    trained: bool = True,
) -> Cell:
    """The weighted mean over seeds and documents, with an interval where one can be given.

    Args:
        sums_SD: for each seed and document the value times its weight.
        weights_D: of each document.
        digits: behind the point.
        sign: "+" to write one before positive numbers too.
        trained: whether another seed would give another number; False for a base.
    """
    found = clustered_mean(np.array(sums_SD), np.array(weights_D))
    text, interval = f"{found.value:{sign}.{digits}f}", found.interval()
    if interval is None:
        return Cell(text, found.value)
    ends = [f"{end:{sign}.{digits}f}" for end in interval]
    text = with_interval(text, ends[0], ends[1], few_seeds(len(sums_SD)) if trained else "")
    return Cell(text, found.value, *interval)
