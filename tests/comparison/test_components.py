"""Arms that differ by one component alone, and what it changes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from helpers.records import factorial, make_record

from hylorada.comparison.arms import compare
from hylorada.comparison.changes import component_change, ppl_change
from hylorada.comparison.collect import Record
from hylorada.comparison.components import component_pairs
from hylorada.statistics.paired import mean_change, paired_change


def comparison_of(records):
    ((comparison,), problems) = compare([Record(Path(r["name"]), r) for r in records])
    assert not problems
    return comparison


def test_each_component_is_found_alone_and_beside_all_others():
    pairs = component_pairs(comparison_of(factorial(seeds=1)))
    named = {
        name: [(pair.with_it.label, pair.without.label) for pair in found]
        for name, found in pairs.items()
    }
    assert named["landmark"] == [
        ("rslora_landmark", "rslora"), ("hylorada", "hylorada_no_landmark")
    ]  # fmt: skip
    assert named["s2_attn"] == [("rslora_s2", "rslora"), ("hylorada", "hylorada_no_s2")]
    assert set(named) == {"position_bias", "landmark", "s2_attn", "position_embeddings", "norms"}


def test_a_switch_that_does_not_act_is_no_component():
    """At 512 tokens `auto` leaves everything off: the arms are the same by another name."""
    on = make_record("hylorada", length=512)
    off = make_record("hylorada_no_landmark", length=512, method__landmark__enabled="false")
    for record in (on, off):
        record["parameters"] = {"total": 9, "trainable": 5, "by_group": {"lora": 5, "landmark": 0}}
    assert component_pairs(comparison_of([on, off])) == {}


def test_what_a_component_changes_is_what_was_put_in():
    comparison = comparison_of(factorial(seeds=3, noise=0.0))
    for name, gain in (("landmark", -0.01), ("position_embeddings", 0.12)):
        for pair in component_pairs(comparison)[name]:
            change = component_change([pair])
            assert change.percent == pytest.approx(100 * math.expm1(-gain), rel=1e-9)
            assert change == ppl_change(pair.with_it, pair.without)


def test_the_main_effect_is_the_mean_of_the_logarithms():
    comparison = comparison_of(factorial(seeds=3))
    pairs = component_pairs(comparison)["norms"]
    sides = [(p.with_it.metrics("eval/ppl"), p.without.metrics("eval/ppl")) for p in pairs]
    each = [paired_change(*side) for side in sides]
    mean = mean_change(sides)
    assert math.log1p(mean.percent / 100) == pytest.approx(
        sum(math.log1p(change.percent / 100) for change in each) / 2
    )
    assert mean.low < mean.percent < mean.high
    # Independent noise: the mean of two is better known than either.
    assert mean.high - mean.low < max(change.high - change.low for change in each)
    assert mean_change(sides[:1]) == each[0]
    other = {seed: m | {"by_document": m["by_document"][:-1]} for seed, m in sides[1][0].items()}
    assert mean_change([sides[0], (other, other)]) == "different tokens were scored"
