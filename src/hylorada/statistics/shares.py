"""How sure a share is, where questions stand alone and where one example is asked several times.

One example is asked at every depth and under every seed, so its answers are one cluster. Credits
are means over the depths of an example, in [seeds, examples].
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from hylorada.statistics.clustered import FEWEST, LEVEL, two_way
from hylorada.statistics.student import t_quantile, t_two_sided

_Z = 1.959963984540054  # 95 %, two-sided
_ENUMERATED = 14  # examples whose 2^n signs are gone through one by one
_DRAWS = 20_000
_SEED = 20230701  # of the drawn signs; fixed, so that a report is a function of its records


def wilson_interval(correct: float, total: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927); stays within 0 and 1 and holds at the ends."""
    assert total > 0
    share = correct / total
    centre = share + _Z**2 / (2 * total)
    spread = _Z * math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2))
    scale = 1 + _Z**2 / total
    # At 0 and 1 the ends are exact; rounding must not put the share outside its interval.
    return min(share, max(0.0, (centre - spread) / scale)), max(
        share, min(1.0, (centre + spread) / scale)
    )


@dataclass(frozen=True)
class Mean:
    """A mean over examples and seeds, with its 95 % interval; None where none can be given."""

    value: float
    low: float | None
    high: float | None


def clustered_share(credit_SE: np.ndarray) -> Mean:
    """A share of right answers, clustered by example and by seed.

    Args:
        credit_SE: for each seed and example the mean over what it was asked, between 0 and 1.
    """
    return _mean(bounded_intervals(credit_SE, 0.0, 1.0))


def clustered_difference(difference_SE: np.ndarray) -> Mean:
    """A difference of credits, of two arms or of edges and middle, clustered in the same way.

    Args:
        difference_SE: for each seed and example, between -1 and 1.
    """
    return _mean(bounded_intervals(difference_SE, -1.0, 1.0))


def edges_less_middle(credit_SEK: np.ndarray) -> np.ndarray:
    """For each seed and example the credit at the two ends less that between them, [S, E].

    Args:
        credit_SEK: at three depths or more, from the first to the last.
    """
    return credit_SEK[..., [0, -1]].mean(axis=-1) - credit_SEK[..., 1:-1].mean(axis=-1)


def _mean(found: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Mean:
    value, low, high = map(float, found)
    return Mean(value, low, high) if math.isfinite(low) else Mean(value, None, None)


def bounded_intervals(
    value_SE: np.ndarray, lowest: float, highest: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of bounded values and the ends of their 95 % intervals.

    The interval is that of the data and of two more examples, at a quarter and at three quarters
    of the range (in the manner of Agresti and Coull 1998 and, for paired shares, Agresti and Min
    2005): a handful of examples that all happen to agree are no certainty. With the data alone,
    forty examples near 0 or 1 cover as little as 64 %, and ten 30 %. The mean is that of the data.

    Args:
        value_SE: [..., S, E]; leading dimensions are kept.
        lowest: that a value can be.
        highest: that a value can be.

    Returns:
        Means, lower and upper ends; nan where there are fewer than three examples.
    """
    examples = value_SE.shape[-1]
    value = value_SE.mean(axis=(-2, -1))
    if examples < FEWEST:
        return value, np.full(value.shape, np.nan), np.full(value.shape, np.nan)
    centre, variance, df = _with_two_more(value_SE, lowest, highest)
    reach = t_quantile((1 + LEVEL) / 2, df) * np.sqrt(variance)
    low = np.maximum(lowest, np.minimum(value, centre - reach))
    return value, low, np.minimum(highest, np.maximum(value, centre + reach))


def _with_two_more(
    value_SE: np.ndarray, lowest: float, highest: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    quarters = lowest + np.array([0.25, 0.75]) * (highest - lowest)
    more_S2 = np.broadcast_to(quarters, (*value_SE.shape[:-1], 2))
    widened_SE = np.concatenate([value_SE, more_S2], axis=-1)
    return two_way(widened_SE, np.ones((*value_SE.shape[:-2], widened_SE.shape[-1])))


def difference_p(difference_SE: np.ndarray) -> float:
    """The p-value of no difference between two arms on the same prompts.

    Of one seed by `sign_flip_p`, which is exact; of several by the interval of
    `clustered_difference`, since reversing examples would hold the seeds fixed.

    Args:
        difference_SE: for each seed and example, between -1 and 1.
    """
    if len(difference_SE) == 1:
        return sign_flip_p(difference_SE[0])
    centre, variance, df = _with_two_more(difference_SE, -1.0, 1.0)
    return float(t_two_sided(centre / np.sqrt(variance), df))


def sign_flip_p(difference_E: np.ndarray) -> float:
    """How often a sum of differences as far from 0 arises if each might as well be reversed.

    A paired permutation test over examples, two-sided. Where every difference is -1, 0 or 1 it is
    McNemar's exact test. All reversals are gone through up to 14 differences that are not 0; above,
    20,000 are drawn and the observed one is counted among them.

    Args:
        difference_E: one for each example, over its depths.
    """
    moved_E = difference_E[difference_E != 0]
    observed = abs(moved_E.sum()) * (1 - 1e-9)
    if len(moved_E) <= _ENUMERATED:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(moved_E))))
        return float(np.mean(np.abs(signs @ moved_E) >= observed))
    signs = np.random.default_rng(_SEED).choice((-1.0, 1.0), (_DRAWS, len(moved_E)))
    found = int(np.sum(np.abs(signs @ moved_E) >= observed))
    return (1 + found) / (1 + _DRAWS)
