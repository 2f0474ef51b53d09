"""Scores of LongBench and RULER, 0 to 100, by their authors' scorers.

LongBench: `longbench_metrics`; LongBench-E has a score in each bucket of lengths, and its value is
the mean over the buckets that hold examples. RULER: lm-eval's own `process_results` (the share of
the wanted strings that the answer contains); for its two question-answering tasks officially the
best reference counts (`string_match_part` of RULER's scorer), where lm-eval averages over them.

Intervals are 95 %, Wilson's: exact for right and wrong, and on the safe side for scores between.
Those of a mean of scores are combined by the squares of the distances to their ends (Zou & Donner
2008).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from hylorada.evaluation.harness import Reply
from hylorada.evaluation.harness_questions import Question, questions_sha256
from hylorada.evaluation.longbench_metrics import score_row, score_task
from hylorada.settings.harness_tasks import benchmark, is_ruler, longbench_file, metric_name
from hylorada.statistics.shares import wilson_interval

LENGTH_BUCKETS = ((0, 4000, "0-4k"), (4000, 8000, "4-8k"), (8000, None, "8k+"))  # words
Scores = dict[str, dict[str, Any]]
_BEST_REFERENCE = ("ruler_qa_squad", "ruler_qa_hotpot")


def ruler_score(task: str, document: Mapping[str, Any], text: str) -> float:
    """The score of one answer, 0 to 1.

    Args:
        task: lm-eval's name.
        document: `outputs`, the wanted strings, and `max_length`, as lm-eval made them.
        text: what the model said.
    """
    from lm_eval.tasks.ruler.common_utils import process_results

    def by_lm_eval(wanted: Sequence[str]) -> float:
        length = document["max_length"]
        found = process_results({"outputs": list(wanted), "max_length": length}, [text])
        return found[str(length)]

    if task in _BEST_REFERENCE:
        return max(by_lm_eval([reference]) for reference in document["outputs"])
    return by_lm_eval(document["outputs"])


def score_replies(questions: Sequence[Question], replies: Sequence[Reply]) -> Scores:
    """The metric of each task by its name in records, and the mean over tasks of a kind.

    Args:
        questions: of one or more tasks.
        replies: one to each.
    """
    said = {(reply.task, reply.index): reply for reply in replies}
    by_task: dict[str, list[tuple[Question, Reply]]] = {}
    for question in questions:
        pair = question, said[question.task, question.index]
        by_task.setdefault(question.task, []).append(pair)
    scores: Scores = {}
    for task, pairs in by_task.items():
        prompts = [reply.prompt_tokens for _, reply in pairs]
        scores[metric_name(task)] = {
            **(_ruler(task, pairs) if is_ruler(task) else _longbench(task, pairs)),
            "examples": len(pairs),
            "cut": sum(reply.cut for _, reply in pairs),
            "prompt_tokens": [min(prompts), max(prompts)],
            "answer_tokens": pairs[0][0].answer_tokens,
            "questions_sha256": questions_sha256([question for question, _ in pairs]),
        }
    return scores | _averages(scores)


def _ruler(task: str, pairs: Sequence[tuple[Question, Reply]]) -> dict[str, Any]:
    total = sum(ruler_score(task, question.document, reply.text) for question, reply in pairs)
    return {"value": 100 * total / len(pairs), **_wilson(total, len(pairs))}


def _longbench(task: str, pairs: Sequence[tuple[Question, Reply]]) -> dict[str, Any]:
    name = longbench_file(task)
    rows = [{**question.document, "pred": reply.text} for question, reply in pairs]
    if not name.endswith("_e"):
        return _of_rows(name, rows, rows[-1]["all_classes"])
    buckets = []
    for low, high, label in LENGTH_BUCKETS:
        inside = [r for r in rows if low <= r["length"] and (high is None or r["length"] < high)]
        if inside:
            found = _of_rows(name, inside, rows[-1]["all_classes"])
            buckets.append({"words": label, "examples": len(inside), **found})
    return {**_mean(buckets), "by_length": buckets}


def _of_rows(name: str, rows: list[dict[str, Any]], classes: Any) -> dict[str, Any]:
    """The published score and its interval; as published, the last row's classes hold for all."""
    rows = [{**row, "all_classes": classes} for row in rows]
    total = sum(score_row(name, row["pred"], row["answers"], classes) for row in rows)
    return {"value": score_task(name, rows), **_wilson(total, len(rows))}


def _wilson(total: float, count: int) -> dict[str, float]:
    low, high = wilson_interval(total, count)
    return {"low": 100 * low, "high": 100 * high}


def _mean(parts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The plain mean of scores and its interval."""
    value = sum(part["value"] for part in parts) / len(parts)
    below = math.hypot(*(part["value"] - part["low"] for part in parts)) / len(parts)
    above = math.hypot(*(part["high"] - part["value"] for part in parts)) / len(parts)
    return {"value": value, "low": value - below, "high": value + above}


def _averages(scores: Scores) -> Scores:
    """``longbench/average``, ``longbench/average_e``, ``ruler/average``: where there are two."""
    kinds: dict[str, dict[str, dict[str, Any]]] = {}
    for name, score in scores.items():
        kind, _, task = name.partition("/")
        even = "_e" if benchmark(name) == "longbench_e" else ""
        kinds.setdefault(f"{kind}/average{even}", {})[task] = score
    return {
        name: {
            **_mean(list(parts.values())),
            "tasks": list(parts),
            "examples": sum(part["examples"] for part in parts.values()),
            "cut": sum(part["cut"] for part in parts.values()),
            "questions_sha256": hashlib.sha256(
                " ".join(part["questions_sha256"] for part in parts.values()).encode()
            ).hexdigest(),
        }
        for name, parts in kinds.items()
        if len(parts) > 1
    }
