"""Intervals hold the truth as often as they say, in studies whose truth is known.

`pytest -m "slow or long" -s tests/statistics/test_coverage.py` prints the tables of
docs/METHODOLOGY.md; CI runs one study in five.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from helpers.marks import LONG, SLOW, thinned
from helpers.simulated import CELLS, DRAWS, answers, bootstrapped, say, share, studies

from hylorada.statistics.clustered import Estimate, two_way
from hylorada.statistics.contrasts import equivalence_p, holm, minimum_detectable
from hylorada.statistics.shares import bounded_intervals, sign_flip_p
from hylorada.statistics.student import t_quantile


def studied(cases):
    """Slow, one in five of them."""
    return thinned(cases, 5, often=SLOW, seldom=LONG)


@pytest.mark.parametrize(("seeds", "documents", "noise"), studied(CELLS))
def test_a_change_of_perplexity_is_covered(seeds, documents, noise):
    study = studies(seeds, documents, noise, effect=-0.03)
    low, high = bootstrapped(study)
    before = share((low <= study.true_N) & (study.true_N <= high))
    now = study.covered()
    none = studies(seeds, documents, noise)
    found_before = share(np.prod(np.sign(bootstrapped(none)), axis=0) > 0)
    found = share(none.p_values() < 0.05)
    say(
        f"| {seeds} | {documents} | {noise:g} | {before:.1f} | {share(now):.1f} "
        f"| {found_before:.1f} | {found:.1f} | {100 * (1 - len(now) / DRAWS):.1f} |"
    )
    assert 92 <= share(now) <= 97
    assert before < 94.5
    # Where no interval is given, nothing is found either.
    assert 2 <= found <= 8


@pytest.mark.slow
def test_one_seed_knows_nothing_of_others():
    """Why its interval says so: of all seeds it holds the truth far too rarely."""
    for noise in (0.005, 0.02):
        study = studies(1, 11, noise, by_seed=False)
        say(
            f"one seed of 11 documents, noise {noise:g}: {share(study.p_values() < 0.05):.1f} found"
        )
        assert share(study.covered()) < 90
        assert 92 <= share(studies(1, 11, noise).covered()) <= 97


@pytest.mark.slow
def test_two_seeds_are_told_apart_from_three():
    covered = [share(studies(2, 62, noise).covered()) for noise in (0.0, 0.005, 0.02)]
    say("two seeds of 62 documents: " + " ".join(f"{each:.1f}" for each in covered))
    assert min(covered) < 92


@pytest.mark.parametrize(("seeds", "documents"), studied([(3, 11), (1, 11), (5, 62)]))
def test_a_family_without_effect_has_one_false_finding_in_twenty_studies(seeds, documents):
    """Six arms against one reference, whose own noise is in all six differences."""
    rng = np.random.default_rng(4)
    arms = [studies(seeds, documents, 0.005 * (seeds > 1), rng=rng) for _ in range(7)]
    single_NA, before = [], np.zeros(DRAWS, dtype=bool)
    for arm in arms[1:]:
        contrast = type(arm)(
            (arm.difference_NSD / arm.tokens_ND[:, None] - arms[0].difference_NSD
             / arms[0].tokens_ND[:, None]) * arms[0].tokens_ND[:, None],
            arms[0].tokens_ND, np.zeros(DRAWS),
        )  # fmt: skip
        single_NA.append(contrast.p_values())
        before |= np.prod(np.sign(bootstrapped(contrast)), axis=0) > 0
    p_NA = np.array(single_NA).T
    family = share([min(holm(list(p_A))) < 0.05 for p_A in p_NA])
    say(
        f"six arms, {seeds} seeds, {documents} documents: one or more found "
        f"{share(before):.1f} before, {share(p_NA.min(axis=1) < 0.05):.1f} each alone, "
        f"{family:.1f} by Holm"
    )
    assert family <= 6.5
    assert share(before) > 25


@pytest.mark.parametrize(("seeds", "documents"), studied([(3, 11), (5, 62)]))
def test_arms_that_differ_by_the_margin_match_in_one_study_of_twenty(seeds, documents):
    for effect, low, high in ((math.log(1.005), 0, 6.5), (math.log(1.02), 0, 0.5)):
        matched = _matched(studies(seeds, documents, 0.001, effect=effect))
        assert low <= matched <= high
    same = _matched(studies(5, 62, 0.0, effect=0.0))
    say(f"no difference, 5 seeds, 62 documents: {same:.1f} match")
    assert same > 50


def _matched(study):
    p_values = [
        equivalence_p(Estimate(float(v), float(se), float(df)))
        for v, se, df in zip(*study.estimated(), strict=True)
        if df >= 1
    ]
    return share(np.array(p_values) < 0.05)


@pytest.mark.slow
def test_the_minimum_detectable_effect_is_found_in_four_studies_of_five():
    noise = studies(5, 62, 0.005, number=500)
    effects = [
        minimum_detectable(Estimate(float(value), float(se), float(df)))
        for value, se, df in zip(*noise.estimated(), strict=True)
    ]
    effect = float(np.mean(effects))
    found = share(studies(5, 62, 0.005, effect=effect, rng=2).p_values() < 0.05)
    say(f"an effect of {100 * math.expm1(effect):.2f} % is found in {found:.1f} %")
    assert 75 <= found <= 85


@pytest.mark.parametrize(
    ("seeds", "documents", "effect"),
    studied(
        (*study, effect)
        for study in ((1, 11), (3, 5), (3, 11), (5, 62))
        for effect in (-0.01, -0.02, -0.05)
    ),
)
def test_parameters_per_percent_are_covered_where_they_are_a_number(seeds, documents, effect):
    study = studies(seeds, documents, 0.005 * (seeds > 1), effect=effect)
    value, se, df = study.estimated()
    reach = t_quantile(0.975, df) * se
    printed = (df >= 1) & (value + reach < 0)
    low, high = 1 / -np.expm1(value - reach), 1 / -np.expm1(np.where(printed, value + reach, -1))
    price = 1 / -math.expm1(effect)
    covered = share(((low <= price) & (price <= high))[printed])
    say(f"price {effect} {seeds} {documents}: {share(printed):.1f} printed, {covered:.1f} covered")
    assert 92 <= covered <= 97


SHARES = [
    (seeds, examples, level, alike)
    for seeds, examples in ((1, 10), (1, 40), (1, 200), (3, 40), (5, 200))
    for level in (0.02, 0.1, 0.5, 0.9)
    for alike in (0.0, 0.5, 0.9)
]


@pytest.mark.parametrize(("seeds", "examples", "level", "alike"), studied(SHARES))
def test_an_accuracy_is_covered(seeds, examples, level, alike):
    data = answers(examples, [level] * 5, alike, seeds, 0.02 * (seeds > 1) * (0.05 < level < 0.95))
    _, low, high = bounded_intervals(data.mean(axis=-1), 0.0, 1.0)
    covered = share((low <= level) & (level <= high))
    say(f"accuracy {seeds} {examples} {level} {alike}: {covered:.1f}")
    # Counts are whole: few right answers at few examples are covered more often.
    assert covered >= 92


GAPS = [
    (seeds, examples, depths, alike)
    for seeds, examples in ((1, 10), (1, 40), (1, 200), (3, 40))
    for depths in (
        (0.1, 0.03, 0.02, 0.03, 0.1), (0.5, 0.2, 0.1, 0.2, 0.5), (0.95, 0.5, 0.4, 0.5, 0.95),
        (0.98, 0.02, 0.02, 0.02, 0.98),
    )
    for alike in (0.0, 0.5)
]  # fmt: skip


@pytest.mark.parametrize(("seeds", "examples", "depths", "alike"), studied(GAPS))
def test_edges_less_middle_is_covered(seeds, examples, depths, alike):
    data = answers(examples, list(depths), alike, seeds)
    gap = data[..., [0, 4]].mean(axis=-1) - data[..., 1:4].mean(axis=-1)
    true = (depths[0] + depths[4]) / 2 - sum(depths[1:4]) / 3
    _, low, high = bounded_intervals(gap, -1.0, 1.0)
    covered = share((low <= true) & (true <= high))
    spread = gap.std(axis=2, ddof=1)[:, 0] / math.sqrt(examples)
    before = share(np.abs(gap.mean(axis=(1, 2)) - true) <= 1.96 * spread)
    say(f"gap {seeds} {examples} {depths} {alike}: {before:.1f} before, {covered:.1f}")
    assert covered >= 92


@pytest.mark.parametrize(
    ("seeds", "examples", "depths", "level"),
    studied(itertools.product((1, 3), (10, 40, 200), (1, 5), (0.05, 0.4))),
)
def test_a_paired_difference_of_accuracies_is_covered(seeds, examples, depths, level):
    """One arm 0.1 above the other, on the same prompts, which are as hard for both."""
    rng = np.random.default_rng(1)
    # Both arms as seeds of one study, so that they share what makes an example easy.
    both = answers(examples, [level] * depths, 0.5, 2 * seeds, rng=rng)
    better = rng.random(both[:, :seeds].shape) < 0.1 / (1 - level)
    arm, other = np.maximum(both[:, :seeds], better), both[:, seeds:]
    difference = arm.mean(axis=-1) - other.mean(axis=-1)
    _, low, high = bounded_intervals(difference, -1.0, 1.0)
    covered = share((low <= 0.1) & (high >= 0.1))
    say(f"difference {seeds} {examples} {depths} {level}: {covered:.1f}")
    assert covered >= 92


@pytest.mark.slow
def test_reversals_find_a_difference_where_there_is_none_in_one_study_of_twenty():
    both = answers(40, [0.3] * 5, 0.5, 2, number=500)
    difference = (both[:, 0] - both[:, 1]).mean(axis=-1)
    assert share(np.array([sign_flip_p(each) for each in difference]) < 0.05) <= 7.5


@pytest.mark.parametrize("documents", studied([4, 8, 20]))
def test_the_gain_of_context_is_covered(documents):
    """Places of one document gain alike, and a long document has more of them."""
    rng = np.random.default_rng(1)
    places_ND = np.minimum(rng.geometric(0.25, (DRAWS, documents)), 12)
    there_NDP = np.arange(12) < places_ND[..., None]
    gain_NDP = rng.normal(0.2, 0.1, (DRAWS, documents, 1)) + rng.normal(0, 0.1, there_NDP.shape)
    gain_NDP = np.where(there_NDP, gain_NDP, 0.0)
    value, variance, df = two_way(gain_NDP.sum(axis=-1)[:, None], places_ND)
    covered = np.abs(value - 0.2) <= t_quantile(0.975, df) * np.sqrt(variance)
    covered = covered[df >= 1]
    count = there_NDP.sum(axis=(1, 2))
    square = (gain_NDP**2).sum(axis=(1, 2)) / count - value**2
    before = np.abs(value - 0.2) <= 1.96 * np.sqrt(square / (count - 1))
    say(f"gain of context, {documents} documents: {share(before):.1f} before, {share(covered):.1f}")
    assert 92 <= share(covered) <= 97.5
    assert share(before) < 88
