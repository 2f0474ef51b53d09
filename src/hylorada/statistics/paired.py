"""What a difference between two arms is worth: paired, with an interval where one can be given.

Two arms are compared on the same tokens of the same documents, seed by seed. The change in
perplexity is exp((N_a - N_b) / T) - 1 with N the NLL summed over documents and seeds and T the
tokens: the ratio of the two pooled perplexities, and the same as pooling the paired differences.
Its interval is that of the exponent, by `clustered`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hylorada.process.counts import number_of
from hylorada.statistics.clustered import (
    FEWEST,
    ONE_SEED,
    Estimate,
    clustered_mean,
    few_seeds,
)


@dataclass(frozen=True)
class Change:
    """A relative change in perplexity; negative is better.

    Attributes:
        percent: 100 * (PPL / PPL of the reference - 1).
        low: lower end of the 95 % interval, percent; None where none can be given.
        high: upper end.
        seeds: seeds that both arms have.
        documents: documents compared.
        basis: in words, what the interval rests on, or why there is none.
        log_ratio: the logarithm of PPL / PPL of the reference, with its standard error; None where
            only the percents are known.
    """

    percent: float
    low: float | None
    high: float | None
    seeds: int
    documents: int
    basis: str
    log_ratio: Estimate | None = None

    @property
    def remark(self) -> str:
        """What must stand beside the interval: that it is of few seeds; often empty."""
        return "" if self.low is None else few_seeds(self.seeds)


def pooled_ppl(metrics: Sequence[Mapping[str, Any]]) -> float:
    """exp(NLL summed over runs / tokens summed over runs); infinite where a run overflowed."""
    if any(metric.get("sum_nll") is None for metric in metrics):
        return math.inf
    mean = sum(m["sum_nll"] for m in metrics) / sum(m["tokens"] for m in metrics)
    return math.exp(mean) if mean < 709.0 else math.inf


def ppl_interval(metrics: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """The 95 % interval of a pooled perplexity itself, over documents and seeds.

    Of one arm alone: two arms share their documents, so that `paired_change` knows their difference
    far better than two such intervals tell. None where none can be given.

    Args:
        metrics: one for each seed, with `by_document`.
    """
    rows = [metric.get("by_document") or [] for metric in metrics]
    counted = [[(d["name"], d["tokens"]) for d in row] for row in rows]
    if not counted or not counted[0] or any(each != counted[0] for each in counted):
        return None
    if any(d["sum_nll"] is None for row in rows for d in row):
        return None
    scored_D = np.array([tokens for _, tokens in counted[0]], dtype=np.float64)
    nll_SD = np.array([[d["sum_nll"] for d in row] for row in rows], dtype=np.float64)
    found = clustered_mean(nll_SD[:, scored_D > 0], scored_D[scored_D > 0]).interval()
    return None if found is None else (math.exp(min(found[0], 700)), math.exp(min(found[1], 700)))


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample (n - 1); None below two values."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    return float(np.std(np.asarray(values), ddof=1))


def paired_change(
    arm: Mapping[int, Mapping[str, Any]], reference: Mapping[int, Mapping[str, Any]]
) -> Change | str:
    """The change in perplexity of an arm against another, over the seeds that both have.

    Args:
        arm: seed -> metric of a record, with `by_document`.
        reference: the same of the other arm.

    Returns:
        The change, or in words why there is none.
    """
    differences = _differences(arm, reference, sorted(set(arm) & set(reference)))
    return differences if isinstance(differences, str) else _change(*differences)


def mean_change(
    pairs: Sequence[tuple[Mapping[int, Mapping[str, Any]], Mapping[int, Mapping[str, Any]]]],
) -> Change | str:
    """The mean change of several pairs of arms: the main effect of what each pair differs by.

    The mean is that of the logarithms, over the seeds that all arms have; its interval is clustered
    in the same way, by documents and seeds, so that what pairs share is not counted twice.

    Args:
        pairs: an arm and its reference, as in `paired_change`; one at least.

    Returns:
        The change, or in words why there is none.
    """
    seeds = sorted(set.intersection(*(set(each) for pair in pairs for each in pair)))
    found = [_differences(arm, reference, seeds) for arm, reference in pairs]
    known = [each for each in found if not isinstance(each, str)]
    if len(known) < len(found):
        return next(each for each in found if isinstance(each, str))
    tokens_D = known[0][1]
    if any(not np.array_equal(tokens, tokens_D) for _, tokens in known):
        return "different tokens were scored"
    return _change(np.mean([difference for difference, _ in known], axis=0), tokens_D)


def _differences(
    arm: Mapping[int, Mapping[str, Any]],
    reference: Mapping[int, Mapping[str, Any]],
    seeds: Sequence[int],
) -> tuple[np.ndarray, np.ndarray] | str:
    """Differences of summed NLL, [S, D], and tokens, [D]; or in words why there are none."""
    if not seeds:
        return "no seed in common"
    a_SD, b_SD, tokens_D = [], [], None
    for seed in seeds:
        a, b = arm[seed], reference[seed]
        if not a.get("by_document") or not b.get("by_document"):
            return "no sums by document in the record"
        if a["convention"] != b["convention"]:
            return "different conventions"
        for metric in (a, b):
            counted = [(d["name"], d["tokens"]) for d in metric["by_document"]]
            if tokens_D is not None and counted != tokens_D:
                return "different tokens were scored"
            tokens_D = counted
        a_SD.append([d["sum_nll"] for d in a["by_document"]])
        b_SD.append([d["sum_nll"] for d in b["by_document"]])
    if any(v is None for row in a_SD + b_SD for v in row):
        return "a loss is not finite"
    assert tokens_D is not None
    scored_D = np.array([n for _, n in tokens_D], dtype=np.float64)
    difference_SD = np.array(a_SD) - np.array(b_SD)
    return difference_SD[:, scored_D > 0], scored_D[scored_D > 0]


def _change(difference_SD: np.ndarray, tokens_D: np.ndarray) -> Change:
    seeds, documents = difference_SD.shape
    log_ratio = clustered_mean(difference_SD, tokens_D)
    interval = log_ratio.interval()
    low, high = map(_percent, interval) if interval else (None, None)
    basis = _basis(seeds, documents, log_ratio)
    return Change(_percent(log_ratio.value), low, high, seeds, documents, basis, log_ratio)


def _basis(seeds: int, documents: int, log_ratio: Estimate) -> str:
    count = [number_of(seeds, "seed"), number_of(documents, "document")]
    if max(seeds, documents) < FEWEST:
        return f"{' and '.join(count)}, too few for an interval"
    if log_ratio.df is None:
        return "one document holds most of the tokens: no interval"
    shared = [text for text, number in zip(count, (seeds, documents), strict=True) if number > 1]
    basis = f"paired, clustered by {' and '.join(shared)}, t with {log_ratio.df:.1f} df"
    if seeds == 1:
        basis += f"; one seed: {ONE_SEED}"
    elif seeds == 2:
        basis += "; two seeds: variation between seeds is poorly estimated"
    if documents == 1:
        basis += "; one document: variation between documents is not included"
    return basis


def _percent(log_ratio: float) -> float:
    return 100 * math.expm1(log_ratio) if log_ratio < 700 else math.inf


@dataclass(frozen=True)
class Price:
    """Parameters for each percent of perplexity gained, with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def params_per_percent(parameters: int, change: Change | str) -> Price | str:
    """Parameters for each percent of perplexity gained, by those that an arm has more.

    811,008 parameters and 57.40 in place of 69.00 are 16.8 %, so 48,243 parameters for 1 %. The
    number of parameters has no error, so the ends are those of the gain's interval, turned over;
    where that reaches 0 the quotient has no bound, and is no number to print.

    Args:
        parameters: that the arm trains more than the other one.
        change: of its perplexity against the other one's.

    Returns:
        The price, or in words why there is none.
    """
    if isinstance(change, str):
        return change
    if parameters <= 0:
        return "no additional parameters"
    if change.percent >= 0:
        return "no gain"
    if change.low is None or change.high is None:
        return "gain without an interval"
    if change.high >= 0:
        return "no significant gain"
    return Price(parameters / -change.percent, parameters / -change.low, parameters / -change.high)
