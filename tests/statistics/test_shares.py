"""Shares and their differences against scipy and against arithmetic by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from hylorada.statistics.shares import (
    Mean,
    clustered_difference,
    clustered_share,
    difference_p,
    sign_flip_p,
    wilson_interval,
)


def test_wilson_is_scipys():
    for correct, total in ((0, 7), (3, 7), (50, 400), (7, 7)):
        expected = stats.binomtest(correct, total).proportion_ci(method="wilson")
        assert wilson_interval(correct, total) == pytest.approx(tuple(expected), abs=1e-12)


def test_one_seed_is_a_t_interval_with_two_more_examples():
    credit = np.array([[1.0, 0.6, 0.8, 0.0, 0.4, 1.0]])
    more = [*credit[0], 0.25, 0.75]
    low, high = stats.ttest_1samp(more, 0.0).confidence_interval(0.95)
    found = clustered_share(credit)
    assert found.value == pytest.approx(credit.mean())
    assert (found.low, found.high) == pytest.approx((max(0.0, low), min(1.0, high)))


def test_examples_are_counted_once_for_all_their_depths_and_seeds():
    """Answers that repeat an example's own make nothing surer; independent seeds do not either."""
    rng = np.random.default_rng(0)
    credit = rng.integers(0, 2, (1, 40)).astype(float)
    once, thrice = clustered_share(credit), clustered_share(np.repeat(credit, 3, axis=0))
    assert thrice.high - thrice.low == pytest.approx(once.high - once.low)
    low, high = wilson_interval(3 * credit.sum(), 120)
    assert thrice.high - thrice.low > 1.5 * (high - low)


def test_all_right_is_no_certainty():
    found = clustered_share(np.ones((1, 10)))
    assert found.value == found.high == 1.0
    assert found.low < 0.93
    none = clustered_difference(np.zeros((1, 10)))
    assert none.low < -0.05
    assert none.low == pytest.approx(-none.high)


def test_below_three_examples_there_is_no_interval():
    assert clustered_share(np.ones((5, 2))) == Mean(1.0, None, None)
    assert clustered_difference(np.array([[0.5, -0.25]])) == Mean(0.125, None, None)


def test_reversing_signs_is_mcnemars_exact_test():
    """Nine prompts that only one arm answers, two that only the other does."""
    difference = np.array([1.0] * 9 + [-1.0] * 2 + [0.0] * 30)
    expected = stats.binomtest(2, 11, 0.5).pvalue
    assert sign_flip_p(difference) == pytest.approx(expected)


def test_reversing_signs_is_scipys_permutation_test():
    difference = np.array([0.4, 0.2, -0.2, 0.6, 0.8, 0.0, 0.2, -0.4, 0.6, 0.2])
    expected = stats.permutation_test(
        (difference,), np.sum, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert sign_flip_p(difference) == pytest.approx(expected)


def test_many_differences_are_drawn_and_give_the_same_each_time():
    difference = np.array([1.0] * 30 + [-1.0] * 14)
    expected = stats.binomtest(14, 44, 0.5).pvalue
    assert sign_flip_p(difference) == pytest.approx(expected, abs=0.004)
    assert sign_flip_p(difference) == sign_flip_p(difference)
    assert sign_flip_p(np.zeros(5)) == 1.0


def test_the_p_value_of_several_seeds_agrees_with_their_interval():
    """Seeds that differ more than examples: reversing examples alone would find too much."""
    rng = np.random.default_rng(0)
    for shift in np.linspace(-0.2, 0.6, 17):
        of_seed = shift + np.array([[-0.3], [0.0], [0.3]])
        difference = np.clip(of_seed + rng.normal(0, 0.2, (3, 40)), -1, 1)
        found = clustered_difference(difference)
        assert (difference_p(difference) < 0.05) == (not found.low <= 0 <= found.high)
    one = np.array([[1.0] * 9 + [-1.0] * 2 + [0.0] * 30])
    assert difference_p(one) == sign_flip_p(one[0])
