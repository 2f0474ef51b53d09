"""Paired differences of perplexities: their interval, what it rests on, what they refuse to say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers.records import metric

from hylorada.statistics.clustered import clustered_mean
from hylorada.statistics.paired import (
    Change,
    deviation,
    paired_change,
    params_per_percent,
    pooled_ppl,
)


def arm(level: float, seeds: int, noise: float = 0.05) -> dict[int, dict]:
    return {s: metric(level, "blocks", 512, s, noise) for s in range(seeds)}


def test_the_interval_is_that_of_the_mean_difference_in_nats():
    a, b = arm(3.8, 3), arm(4.0, 3)
    change = paired_change(a, b)
    assert isinstance(change, Change)
    tokens = np.array([d["tokens"] for d in a[0]["by_document"]])
    difference = [
        [x["sum_nll"] - y["sum_nll"] for x, y in zip(*pair, strict=True)]
        for pair in ((a[s]["by_document"], b[s]["by_document"]) for s in range(3))
    ]
    low, high = clustered_mean(np.array(difference), tokens).interval()
    assert change.low == pytest.approx(100 * (math.exp(low) - 1))
    assert change.high == pytest.approx(100 * (math.exp(high) - 1))
    assert change.low < change.percent < change.high
    assert change.basis.startswith("paired, clustered by 3 seeds and 12 documents, t with ")
    assert change.remark == ""


@pytest.mark.parametrize(("seeds", "remark"), [(1, "one seed"), (2, "two seeds"), (3, "")])
def test_few_seeds_say_so(seeds, remark):
    change = paired_change(arm(3.8, seeds), arm(4.0, seeds))
    assert change.remark == remark
    assert ("variation between seeds is not included" in change.basis) == (seeds == 1)


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
    assert "too few for an interval" in change.basis


@pytest.mark.parametrize(("seeds", "documents", "known"), [(2, 2, False), (3, 1, True)])
def test_two_of_each_have_none_and_three_seeds_of_one_document_have_one(seeds, documents, known):
    a, b = arm(3.8, seeds), arm(4.0, seeds)
    for m in [*a.values(), *b.values()]:
        m["by_document"] = m["by_document"][:documents]
    change = paired_change(a, b)
    assert (change.low is not None) == known
    assert ("too few for an interval" in change.basis) == (not known)
    assert ("variation between documents is not included" in change.basis) == known


def test_documents_without_a_scored_token_count_for_nothing():
    a, b = arm(3.8, 2), arm(4.0, 2)
    before = paired_change(a, b)
    for m in [*a.values(), *b.values()]:
        m["by_document"].append({"name": "empty", "sum_nll": 0.0, "tokens": 0})
    assert paired_change(a, b) == before


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
    price = params_per_percent(811_008, Change(percent, -20.0, -10.0, 1, 3, ""))
    assert price.value == pytest.approx(811_008 / 16.8116, rel=1e-5)
    assert (price.low, price.high) == (pytest.approx(40_550.4), pytest.approx(81_100.8))


@pytest.mark.parametrize(("change", "reason"), [
    (Change(2.0, 1.0, 3.0, 3, 9, ""), "no gain"),
    (Change(-0.12, -1.01, 0.86, 1, 11, ""), "no significant gain"),
    (Change(-5.0, None, None, 1, 1, ""), "gain without an interval"),
    ("different tokens were scored", "different tokens were scored"),
])  # fmt: skip
def test_parameters_per_percent_of_a_gain_that_may_be_nothing_are_no_number(change, reason):
    assert params_per_percent(811_008, change) == reason
    assert params_per_percent(0, Change(-5.0, -6.0, -4.0, 3, 9, "")) == "no additional parameters"
