"""How answers are scored."""

from __future__ import annotations

from collections.abc import Sequence

from hylorada.evaluation.longbench_metrics import normalize_answer


def best_subspan_em(prediction: str, answers: Sequence[str]) -> float:
    """1 if the normal form of an answer stands in the first line of the prediction, else 0.

    Liu et al.: the first line alone, since a model could otherwise score by repeating its context.
    """
    line = normalize_answer(prediction.split("\n")[0].strip())
    return float(any(normalize_answer(answer) in line for answer in answers))


def contains_value(prediction: str, value: str) -> float:
    """1 if the value stands in the prediction, whatever its case: Liu et al.'s key-value score."""
    return float(value.lower() in prediction.lower())


def rank_credit(log_likelihoods: Sequence[float], gold: int) -> float:
    """1 if the gold candidate is the most likely one; 1 / ties if it shares the first place.

    A model that sees no difference scores chance, 1 / candidates.
    """
    best = max(log_likelihoods)
    if log_likelihoods[gold] < best:
        return 0.0
    return 1 / sum(value == best for value in log_likelihoods)
