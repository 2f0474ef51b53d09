"""LongBench and RULER in a run: where their rows come from, and how their scores stand in a record.

`evaluation` never reads data sets: the rows of LongBench are read here and handed over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from hylorada.config import DatasetConfig, HarnessConfig
from hylorada.data.kinds.longbench import read_tasks
from hylorada.errors import DataError
from hylorada.evaluation.harness import Reply
from hylorada.evaluation.harness_questions import (
    Question,
    lm_eval_version,
    make_questions,
)
from hylorada.evaluation.harness_scores import score_replies
from hylorada.evaluation.longbench_metrics import score_row
from hylorada.process.signals import Stop
from hylorada.settings.harness_tasks import expand, is_ruler, longbench_file


def load_questions(
    settings: HarnessConfig, tokenizer: Any, window: int, stop: Stop
) -> list[Question]:
    """The questions that the settings ask for.

    Args:
        settings: the tasks, and where LongBench lies.
        tokenizer: of the base.
        window: tokens of a prompt and its answer.
        stop: a signal ends it after a task.

    Raises:
        Interrupted: a signal came.
        DataError: LongBench's rows or what a task of RULER is made from is not available, a task
            does not fit the window, or an answer cannot be scored.
    """
    tasks = expand(settings.tasks)
    rows: dict[str, list[dict[str, Any]]] = {task: [] for task in tasks if not is_ruler(task)}
    if rows:
        dataset = DatasetConfig(
            name="longbench",
            kind="longbench",
            hub_id=settings.longbench_hub_id,
            revision=settings.longbench_revision,
            path=settings.longbench_path,
        )
        try:
            for row in read_tasks(dataset, [longbench_file(task) for task in rows]):
                rows[f"longbench_{row.task}"].append(dataclasses.asdict(row))
        except DataError as error:
            raise DataError(f"eval.harness: {error}") from error
    with stop.deferred():  # lm-eval and its samplers swallow what is raised inside them
        questions = make_questions(tasks, rows, tokenizer, window, settings.limit, stop.check)
    for question in questions:
        if question.task.startswith("longbench_passage_retrieval"):
            # An answer that cannot be scored is known now, not when all questions were asked.
            score_row(longbench_file(question.task), "", question.document["answers"])
    return questions


def benchmark_metrics(
    settings: HarnessConfig, questions: Sequence[Question], replies: Sequence[Reply], window: int
) -> dict[str, dict[str, Any]]:
    """``longbench/<task>``, ``ruler/<task>`` and their averages, 0 to 100."""
    common = {"window": window, "limit": settings.limit, "lm_eval": lm_eval_version()}
    scores = score_replies(questions, replies)
    return {name: {**score, **common} for name, score in scores.items()}
