"""Student's t against printed tables and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from hylorada.statistics.student import t_quantile, t_two_sided

# Any textbook's table, two-sided 5 % and 1 %.
TABLE = {1: (12.706, 63.657), 2: (4.303, 9.925), 4: (2.776, 4.604), 10: (2.228, 3.169),
         30: (2.042, 2.750), 120: (1.980, 2.617), float("inf"): (1.960, 2.576)}  # fmt: skip
FRACTIONS = np.array([0.3, 1.0, 1.37, 2.0, 4.7, 11.2, 100.0, 1e4, 3e6])


def test_the_printed_table():
    for df, (five, one) in TABLE.items():
        assert float(t_quantile(0.975, df)) == pytest.approx(five, abs=5e-4)
        assert float(t_quantile(0.995, df)) == pytest.approx(one, abs=5e-4)


@pytest.mark.parametrize("probability", [0.6, 0.8, 0.95, 0.975, 0.9999])
def test_quantiles_for_broken_degrees_of_freedom(probability):
    expected = stats.t.ppf(probability, FRACTIONS)
    np.testing.assert_allclose(t_quantile(probability, FRACTIONS), expected, rtol=1e-7)


def test_probabilities():
    t = np.array([0.0, -0.01, 1.0, 2.0, -10.0, 100.0])[:, None]
    expected = 2 * stats.t.sf(np.abs(t), FRACTIONS)
    np.testing.assert_allclose(t_two_sided(t, FRACTIONS), expected, rtol=1e-7, atol=1e-300)


def test_the_median_is_zero_and_what_is_not_known_stays_so():
    assert float(t_quantile(0.5, 3.0)) == pytest.approx(0, abs=1e-12)
    assert np.isnan(t_quantile(0.975, np.nan))
    known = t_quantile(0.975, [1.0, np.nan])
    assert known[0] == pytest.approx(12.7062, abs=1e-4)
    assert np.isnan(known[1])
