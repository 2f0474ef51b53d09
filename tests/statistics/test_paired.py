"""Paired differences against a bootstrap written as a loop, and what they refuse to say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers.records import metric

from hylorada.statistics.paired import (
    Change,
    deviation,
    paired_change,
    params_per_percent,
    pooled_ppl,
)


def arm(level: float, seeds: int, noise: float = 0.05) -> dict[int, dict]:
    return {s: metric(level, "blocks", 512, s, noise) for s in range(seeds)}


def naive_bootstrap(a, b, draws, rng):
    """Draw seeds, draw documents, add up, divide, exponentiate; one draw after the other."""
    seeds, changes = sorted(a), []
    count = len(a[0]["by_document"])
    for _ in range(draws):
        nll_a = nll_b = tokens = 0.0
        some_seeds = [seeds[i] for i in rng.integers(0, len(seeds), len(seeds))]
        some_documents = rng.integers(0, count, count)
        for s in some_seeds:
            for d in some_documents:
                nll_a += a[s]["by_document"][d]["sum_nll"]
                nll_b += b[s]["by_document"][d]["sum_nll"]
                tokens += a[s]["by_document"][d]["tokens"]
        changes.append(100 * (math.exp(nll_a / tokens) / math.exp(nll_b / tokens) - 1))
    return np.quantile(changes, [0.025, 0.975])


@pytest.mark.parametrize("seeds", [1, 3])
def test_equals_the_bootstrap_as_a_loop(seeds):
    a, b = arm(3.8, seeds), arm(4.0, seeds)
    change = paired_change(a, b)
    assert isinstance(change, Change)
    low, high = naive_bootstrap(a, b, 3000, np.random.default_rng(7))
    # Quantiles of 3000 draws: their standard error is some 4 % of the width of the interval.
    assert change.low == pytest.approx(low, abs=0.12 * (high - low))
    assert change.high == pytest.approx(high, abs=0.12 * (high - low))
    assert change.low < change.percent < change.high
    assert ("one seed" in change.basis) == (seeds == 1)
    assert "12 documents" in change.basis


def test_the_point_is_the_ratio_of_the_pooled_perplexities():
    a, b = arm(3.8, 3), arm(4.0, 3)
    ratio = pooled_ppl(list(a.values())) / pooled_ppl(list(b.values()))
    assert paired_change(a, b).percent == pytest.approx(100 * (ratio - 1))


def test_pairing_removes_what_both_arms_share():
    """Documents differ by 0.3 nats, the arms by a constant: the interval is a point."""
    a = {0: metric(4.0, "blocks", 512, noise=0.0)}
    b = {0: metric(4.2, "blocks", 512, noise=0.0)}
    change = paired_change(a, b)
    assert change.high - change.low < 1e-9
    assert change.percent == pytest.approx(100 * (math.exp(-0.2) - 1))


def test_only_seeds_that_both_have_are_compared():
    a, b = arm(3.8, 4), arm(4.0, 2)
    assert paired_change(a, b) == paired_change({s: a[s] for s in (0, 1)}, b)
    assert paired_change(a, b).seeds == 2
    assert paired_change({0: a[0]}, {1: b[1]}) == "no seed in common"


def test_one_seed_and_one_document_have_no_interval():
    a, b = metric(3.8, "blocks", 512), metric(4.0, "blocks", 512)
    for m in (a, b):
        m["by_document"] = m["by_document"][:1]
    change = paired_change({0: a}, {0: b})
    assert change.low is change.high is None
    assert "no interval" in change.basis


def test_two_seeds_of_one_document_have_one():
    a, b = arm(3.8, 2), arm(4.0, 2)
    for m in [*a.values(), *b.values()]:
        m["by_document"] = m["by_document"][:1]
    change = paired_change(a, b)
    assert change.low < change.high
    assert change.basis.startswith("paired bootstrap over 2 seeds,")


def test_other_tokens_or_conventions_are_not_compared():
    a, b = metric(3.8, "blocks", 512), metric(4.0, "blocks", 512)
    fewer = {**b, "by_document": b["by_document"][:-1]}
    assert paired_change({0: a}, {0: fewer}) == "different tokens were scored"
    sliding = metric(4.0, "sliding", 512)
    assert paired_change({0: a}, {0: sliding}) == "different conventions"
    assert "by document" in paired_change({0: a}, {0: {**b, "by_document": []}})


def test_the_same_arm_changes_nothing():
    a = arm(3.8, 3)
    change = paired_change(a, a)
    assert (change.percent, change.low, change.high) == (0.0, 0.0, 0.0)


def test_a_report_is_a_function_of_its_records():
    assert paired_change(arm(3.8, 3), arm(4.0, 3)) == paired_change(arm(3.8, 3), arm(4.0, 3))


def test_pooled_is_not_the_mean_of_perplexities():
    one = {"sum_nll": 200.0, "tokens": 100, "value": math.exp(2)}
    two = {"sum_nll": 1200.0, "tokens": 300, "value": math.exp(4)}
    assert pooled_ppl([one, two]) == pytest.approx(math.exp(1400 / 400))
    assert pooled_ppl([one, {**two, "sum_nll": None}]) == math.inf


def test_deviation_needs_two_values():
    assert deviation([1.0]) is None
    assert deviation([1.0, 3.0]) == pytest.approx(math.sqrt(2))


def test_parameters_per_percent_of_the_papers_example():
    """811,008 parameters, 57.40 in place of 69.00: 16.81 %, 48,241 parameters for 1 %."""
    percent = 100 * (57.40 / 69.00 - 1)
    change = Change(percent, None, None, 1, 1, "")
    assert params_per_percent(811_008, change) == pytest.approx(811_008 / 16.8116, rel=1e-5)
    assert params_per_percent(811_008, Change(2.0, None, None, 1, 1, "")) is None
    assert params_per_percent(811_008, "different tokens were scored") is None
