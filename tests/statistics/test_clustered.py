"""The two-way standard error against the analysis of variance, a loop, and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from hylorada.statistics.clustered import Estimate, clustered_mean, two_way


def example(seeds=3, documents=7, even=False):
    rng = np.random.default_rng(0)
    weights = np.full(documents, 50.0) if even else np.ceil(rng.lognormal(5, 1, documents))
    rates = 0.1 + rng.normal(0, 0.05, documents) + rng.normal(0, 0.03, (seeds, 1))
    return (rates + rng.normal(0, 0.01, (seeds, documents))) * weights, weights


def loop(x, weights):
    """The formula of docs/METHODOLOGY.md, one cell after the other."""
    seeds, documents = len(x), len(weights)
    total = sum(weights)
    mean = sum(map(sum, x)) / (seeds * total)
    w = [weight / total for weight in weights]
    error = [
        [(x[s][d] - mean * weights[d]) / total for d in range(documents)] for s in range(seeds)
    ]
    of_document = [sum(error[s][d] for s in range(seeds)) / seeds for d in range(documents)]
    of_seed = [sum(row) for row in error]
    left = [1 - 2 * w[d] + sum(v**2 for v in w) for d in range(documents)]
    documents_part = sum(of_document[d] ** 2 / left[d] for d in range(documents))
    seeds_part = sum(e**2 for e in of_seed) / (seeds * (seeds - 1))
    cells_part = sum(
        (error[s][d] - of_document[d] - w[d] * of_seed[s]) ** 2 / left[d]
        for s in range(seeds)
        for d in range(documents)
    ) / (seeds * (seeds - 1))
    variance = max(documents_part + seeds_part - cells_part, documents_part, seeds_part)
    df_documents = sum(weights) ** 2 / sum(v**2 for v in weights) - 1
    df = (documents_part + seeds_part) ** 2 / (
        documents_part**2 / df_documents + seeds_part**2 / (seeds - 1)
    )
    return mean, variance, df


def test_equals_the_formula_as_a_loop():
    x, weights = example()
    for found, expected in zip(two_way(x, weights), loop(x.tolist(), weights), strict=True):
        assert float(found) == pytest.approx(expected, rel=1e-12)


def test_with_equal_weights_it_is_the_analysis_of_variance():
    x, weights = example(seeds=4, documents=6, even=True)
    rates = x / weights
    seeds, documents = rates.shape
    grand, rows, columns = rates.mean(), rates.mean(axis=1), rates.mean(axis=0)
    ms_seeds = documents * ((rows - grand) ** 2).sum() / (seeds - 1)
    ms_documents = seeds * ((columns - grand) ** 2).sum() / (documents - 1)
    rest = rates - rows[:, None] - columns + grand
    ms_rest = (rest**2).sum() / ((seeds - 1) * (documents - 1))
    expected = (ms_seeds + ms_documents - ms_rest) / (seeds * documents)
    assert float(two_way(x, weights)[1]) == pytest.approx(expected, rel=1e-12)


def test_one_seed_and_equal_weights_are_scipys_t_test():
    x, weights = example(seeds=1, documents=9, even=True)
    expected = stats.ttest_1samp(x[0] / weights, 0.0)
    low, high = expected.confidence_interval(0.95)
    found = clustered_mean(x, weights)
    assert found.interval() == pytest.approx((low, high), rel=1e-8)
    assert found.p_value() == pytest.approx(expected.pvalue, rel=1e-6)
    seeds = clustered_mean((x / weights).T, np.ones(1))  # nine seeds of one document
    assert seeds.interval() == pytest.approx((low, high), rel=1e-8)


def test_the_variance_is_unbiased_whatever_the_weights():
    """Documents vary alike: over many draws the estimate equals the spread of the mean."""
    rng = np.random.default_rng(3)
    weights = np.array([10.0, 20.0, 40.0, 80.0, 160.0])
    x = rng.normal(0, 1, (20_000, 1, 5)) * weights
    mean, variance, _ = two_way(x, np.broadcast_to(weights, (20_000, 5)))
    assert variance.mean() == pytest.approx(mean.var(), rel=0.03)


def test_never_below_the_spread_of_documents_or_of_seeds():
    rng = np.random.default_rng(5)
    x = rng.normal(0, 1, (200, 3, 4))
    _, variance, _ = two_way(x, np.ones((200, 4)))
    documents = x.mean(axis=1).var(axis=1, ddof=1) / 4
    seeds = x.mean(axis=2).var(axis=1, ddof=1) / 3
    assert np.all(variance >= np.maximum(documents, seeds) * (1 - 1e-12))


@pytest.mark.parametrize(("shape", "known"), [
    ((1, 1), False), ((1, 2), False), ((2, 1), False), ((2, 2), False),
    ((1, 3), True), ((3, 1), True), ((2, 3), True), ((3, 2), True),
])  # fmt: skip
def test_no_interval_below_three_units(shape, known):
    x, weights = example(*shape, even=True)
    found = clustered_mean(x, weights)
    assert (found.interval() is not None) == known
    assert (found.p_value() is not None) == known
    assert found.value == pytest.approx(x.sum() / (shape[0] * weights.sum()))


def test_no_interval_where_one_document_is_nearly_all():
    x, weights = example(1, 4, even=True)
    weights[0] *= 50
    assert clustered_mean(x, weights).interval() is None


def test_no_spread_is_no_uncertainty():
    nothing = clustered_mean(np.zeros((3, 4)), np.ones(4))
    assert nothing == Estimate(0.0, 0.0, 3.0)
    assert nothing.interval() == (0.0, 0.0)
    assert nothing.p_value() == 1.0
    constant = clustered_mean(np.full((1, 4), 2.0), np.ones(4))
    assert constant.p_value() == 0.0


def test_studies_may_be_stacked():
    x, weights = example()
    stacked = two_way(np.stack([x, 2 * x]), np.stack([weights, weights]))
    for found, one, two in zip(stacked, two_way(x, weights), two_way(2 * x, weights), strict=True):
        assert found == pytest.approx([float(one), float(two)])
    assert math.isclose(stacked[1][1], 4 * stacked[1][0])
