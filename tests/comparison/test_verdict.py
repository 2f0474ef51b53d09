"""Each comparison's sentence: by one rule, from the numbers, against scipy where it computes."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from hylorada.comparison.verdict import contrasts, verdict
from hylorada.statistics.clustered import Estimate
from hylorada.statistics.contrasts import holm
from hylorada.statistics.paired import Change


def change(percent: float, se: float, seeds: int = 3, df: float = 12.0) -> Change:
    log_ratio = Estimate(math.log1p(percent / 100), se, df)
    low, high = (100 * math.expm1(end) for end in log_ratio.interval())
    return Change(percent, low, high, seeds, 11, "paired", log_ratio)


def said(*changes: Change | str) -> list[tuple[str, str]]:
    family = contrasts([(f"arm{i}", each) for i, each in enumerate(changes)])
    return [(v.kind, v.text) for v in (verdict(c, "lora", "At 4,096 tokens") for c in family)]


def test_the_sentence_of_the_demo():
    log_ratio = Estimate(math.log(1.0503), 0.0074, 10.0)
    measured = Change(5.03, 3.37, 6.73, 1, 11, "", log_ratio)
    (contrast,) = contrasts([("hylorada", measured)])
    assert verdict(contrast, "lora", "At 4,096 tokens").text == (
        "At 4,096 tokens, hylorada is 5.0 % worse than lora [3.4, 6.7], one seed: no result yet."
    )


@pytest.mark.parametrize(("seeds", "word"), [(1, "one seed"), (2, "two seeds")])
@pytest.mark.parametrize("percent", [-30.0, 0.01, 30.0])
def test_below_three_seeds_nothing_is_a_result(seeds, word, percent):
    ((kind, text),) = said(change(percent, 0.0005, seeds))
    assert kind == "no result"
    assert text.endswith(f", {word}: no result yet.")


def test_a_difference_that_stands_is_better_or_worse():
    (better, worse) = said(change(-8.0, 0.005), change(5.0, 0.005))
    assert better[0] == "better"
    assert "At 4,096 tokens, arm0 is 8.0 % better than lora [7.0, 9.0], 3 seeds, p" in better[1]
    assert better[1].endswith("p < 0.001 (Holm, 2 comparisons).")
    assert worse[0] == "worse"
    assert "arm1 is 5.0 % worse than lora [3.9, 6.2], 3 seeds, p < 0.001" in worse[1]


def test_it_must_stand_in_its_family():
    """The same numbers alone and among others; the p-value is Holm's."""
    near = change(-1.5, 0.0062)
    p = 2 * stats.t.sf(abs(math.log1p(-0.015)) / 0.0062, 12)
    assert 0.02 < p < 0.05
    ((kind, text),) = said(near)
    assert kind == "better"
    assert f"p = {p:.2g}." in text
    others = [change(0.9, 0.02)] * 4
    (kind, text), *_ = said(near, *others)
    assert kind == "none shown"
    q = 2 * stats.t.sf(math.log1p(0.009) / 0.02, 12)
    assert f"p = {holm([p, q, q, q, q])[0]:.2f} (Holm, 5 comparisons)" in text


def test_within_the_margin_it_is_equivalent_even_if_it_differs():
    ((kind, text),) = said(change(0.1, 0.0004))
    assert kind == "matches"
    assert text.startswith(
        "At 4,096 tokens, arm0 is equivalent to lora within 0.5 %: +0.10 % [+0.01, +0.19]"
    )
    ((kind, _),) = said(change(0.1, 0.004))  # the same, and not known well enough
    assert kind == "none shown"


def test_no_difference_found_says_which_could_have_been():
    first, second = said(change(0.4, 0.01), change(-0.2, 0.01))
    reach = stats.t.ppf(1 - 0.05 / 2 / 2, 12) + stats.t.ppf(0.8, 12)
    smallest = 100 * math.expm1(reach * 0.01)
    for (kind, text), sign in ((first, "+0.40"), (second, "-0.20")):
        assert kind == "none shown"
        assert f"does not differ significantly from lora: {sign} % [" in text
        assert text.endswith(f"; minimum detectable effect {smallest:.1f} % (80 % power).")


def test_what_cannot_be_compared_says_why():
    few = Change(4.0, None, None, 1, 2, "1 seed and 2 documents, too few for an interval")
    (apart, short, other) = said("different tokens were scored", few, change(3.0, 0.001))
    assert apart == (
        "no result",
        "At 4,096 tokens, arm0 is not compared with lora: different tokens were scored.",
    )  # fmt: skip
    assert short[1] == (
        "At 4,096 tokens, arm1 is 4.0 % worse than lora, 1 seed and 2 documents, too few for an "
        "interval: no result yet."
    )
    assert other[1].endswith("p < 0.001.")  # alone in its family
