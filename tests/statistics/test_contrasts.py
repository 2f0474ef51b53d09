"""Families, matches and what could have been found, against arithmetic by hand and scipy."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from hylorada.statistics.clustered import Estimate
from hylorada.statistics.contrasts import equivalence_p, holm, minimum_detectable


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([0.03]) == [0.03]


def test_holm_rejects_as_the_step_down_procedure_does():
    p_values = [0.001, 0.2, 0.018, 0.04, 0.011]
    rejected, open_ones = set(), sorted(p_values)
    while open_ones and open_ones[0] <= 0.05 / len(open_ones):
        rejected.add(open_ones.pop(0))
    adjusted = holm(p_values)
    assert {p for p, a in zip(p_values, adjusted, strict=True) if a <= 0.05} == rejected
    assert rejected == {0.001, 0.011}


@pytest.mark.parametrize("value", [0.0, 0.002, -0.004, 0.02, -0.5])
def test_equivalence_is_the_weaker_of_two_t_tests(value):
    found = equivalence_p(Estimate(value, 0.001, 7.3), margin=0.005)
    bound = math.log(1.005)
    above = stats.t.sf((value + bound) / 0.001, 7.3)  # of "below the lower bound"
    below = stats.t.cdf((value - bound) / 0.001, 7.3)
    assert found == pytest.approx(max(above, below), rel=1e-6)


def test_equivalence_is_the_interval_of_ninety_percent_within_the_margin():
    for value in (0.0, 0.0035, 0.0036, 0.0037, 0.004):
        estimate = Estimate(value, 0.0007, 9.0)
        low, high = estimate.interval(0.90)
        within = -math.log(1.005) < low and high < math.log(1.005)
        assert (equivalence_p(estimate) < 0.05) == within


def test_no_interval_is_no_match():
    assert equivalence_p(Estimate(0.0, None, None)) is None
    assert minimum_detectable(Estimate(0.0, None, None)) is None
    assert equivalence_p(Estimate(0.0, 0.0, 2.0)) == 0.0
    assert equivalence_p(Estimate(1.0, 0.0, 2.0)) == 1.0


def test_the_minimum_detectable_effect_of_many_units_is_2_8_standard_errors():
    """1.960 + 0.842, as in any table of sample sizes."""
    assert minimum_detectable(Estimate(0.3, 0.01, 1e9)) == pytest.approx(0.02802, abs=1e-5)
    few = minimum_detectable(Estimate(0.3, 0.01, 4.0))
    assert few == pytest.approx(0.01 * (stats.t.ppf(0.975, 4) + stats.t.ppf(0.8, 4)), rel=1e-6)
