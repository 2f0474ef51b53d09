"""What may be said of several differences at once, of no difference, and of too little data."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hylorada.statistics.clustered import LEVEL, Estimate
from hylorada.statistics.student import t_quantile, t_two_sided

MARGIN = 0.005
"""Perplexities within this share of one another are said to match."""

POWER = 0.8


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of a family of contrasts, in the order given.

    Below 0.05 is a contrast that stands in a family with at most 5 % of one false finding or more,
    however the contrasts depend on one another (Holm 1979, Scand. J. Stat. 6(2)).
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def equivalence_p(log_ratio: Estimate, margin: float = MARGIN) -> float | None:
    """The p-value of "the ratio lies outside of 1 / (1 + margin) to 1 + margin".

    Two one-sided tests, of which the weaker counts (Schuirmann 1987, J. Pharmacokinet. Biopharm.
    15(6)). Below 0.05, two arms match; above, nothing is known: no difference found is no match.

    Args:
        log_ratio: the logarithm of the ratio of two perplexities.
        margin: a share, as in 0.005 for half a percent.
    """
    if log_ratio.se is None or log_ratio.df is None:
        return None
    room = math.log1p(margin) - abs(log_ratio.value)
    if not log_ratio.se:
        return 0.0 if room > 0 else 1.0
    beyond = float(t_two_sided(room / log_ratio.se, log_ratio.df)) / 2
    return beyond if room > 0 else 1 - beyond


def minimum_detectable(noise: Estimate, power: float = POWER, level: float = LEVEL) -> float | None:
    """The smallest effect that would be found with the given power, on the scale of the estimate.

    Args:
        noise: the difference of two arms between which there is none: the noise floor.
        power: share of studies like this one that would find it.
        level: of the interval that must not reach 0.
    """
    if noise.se is None or noise.df is None:
        return None
    tails = t_quantile((1 + level) / 2, noise.df) + t_quantile(power, noise.df)
    return float(tails) * noise.se
