"""What records hold of LongBench and RULER: a column for each kind, every task in the notes.

A kind with several tasks shows their mean, one with a single task that task. As in `context`, seeds
of an arm are asked the same questions: a cell holds their mean and the deviation between them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hylorada.comparison.arms import Comparison
from hylorada.comparison.cells import Cell, Column
from hylorada.comparison.subjects import Metric, Subject, agreed, reference, subjects
from hylorada.statistics.paired import deviation

KINDS = {"longbench": "LongBench", "longbench_e": "LongBench-E", "ruler": "RULER"}
"""Kind -> its name for people; the kind is also the key of its column."""

_AVERAGES = {
    "longbench": "longbench/average", "longbench_e": "longbench/average_e", "ruler": "ruler/average"
}  # fmt: skip
_CUT = {
    "longbench": ", longer prompts cut in the middle",
    "longbench_e": ", longer prompts cut in the middle", "ruler": "",
}  # fmt: skip


def benchmark_columns(comparisons: Sequence[Comparison]) -> list[Column]:
    """The columns that some record has a number for."""
    present = {kind for comparison in comparisons for kind, _ in _names(comparison)}
    return [Column(kind, f"{name}, of 100") for kind, name in KINDS.items() if kind in present]


def benchmark_cells(comparison: Comparison, subject: Subject) -> dict[str, Cell]:
    """The cells of a row; one that was asked something else than most rows says so."""
    cells = {}
    for kind, name in _shown(comparison).items():
        alike = subject.alike(name, agreed(comparison, name))
        if alike:
            cells[kind] = _cell([metrics[name] for metrics in alike])
        elif any(subject.values(other) for k, other in _names(comparison) if k == kind):
            cells[kind] = Cell("other questions")
    return cells


def benchmark_notes(comparison: Comparison) -> list[str]:
    """What was asked, and the score of every task, base and arms."""
    notes = []
    for kind, title in KINDS.items():
        names = [name for k, name in _names(comparison) if k == kind and "/average" not in name]
        wanted = {name: agreed(comparison, name) for name in names}
        by_question: dict[str, list[str]] = {}
        for name in names:
            metric = reference(comparison, name)
            assert metric is not None  # the name is that of a metric
            by_question.setdefault(_questions(metric), []).append(name.partition("/")[2])
        for question, tasks in by_question.items():
            which = f" ({', '.join(tasks)})" if len(by_question) > 1 else ""
            notes.append(f"{title}{which}: {question}{_CUT[kind]}; official scores.")
        others = []
        for subject in subjects(comparison):
            scores = []
            for name in names:
                task = name.partition("/")[2]
                alike = [metrics[name] for metrics in subject.alike(name, wanted[name])]
                if alike:
                    scores.append(f"{task} {_cell(alike).text}")
                for label, metric in subject.others(name, wanted[name]):
                    others.append(f"{label}: {task} {_cell([metric]).text} ({_questions(metric)})")
            if scores:
                notes.append(f"{title}, {subject.label}: {'; '.join(scores)}.")
        if others:
            notes.append(
                f"{title}, asked other questions and so not compared: {'; '.join(others)}."
            )
    return notes


def _questions(metric: Metric) -> str:
    limit = f"the first {metric['limit']} examples" if metric["limit"] else "all examples"
    return (
        f"{limit} of each task, by lm-eval {metric['lm_eval']} in a window of "
        f"{metric['window']:,} tokens"
    )


def _names(comparison: Comparison) -> list[tuple[str, str]]:
    """Kind and name of every such metric, in the order of the records."""
    names: dict[str, str] = {}
    for metrics in (m for subject in subjects(comparison) for m in subject.held()):
        for name in metrics:
            kind, _, task = name.partition("/")
            if kind in ("longbench", "ruler"):
                names[name] = "longbench_e" if kind != "ruler" and task.endswith("_e") else kind
    return [(kind, name) for name, kind in names.items()]


def _shown(comparison: Comparison) -> dict[str, str]:
    """Kind -> the metric that stands for it."""
    shown: dict[str, str] = {}
    names = _names(comparison)
    for kind, name in names:
        shown.setdefault(kind, name)
    return shown | {k: name for k, name in _AVERAGES.items() if (k, name) in names}


def _cell(metrics: Sequence[Metric]) -> Cell:
    values = [m["value"] for m in metrics]
    value = float(np.mean(values))
    spread = deviation(values)
    if spread is not None:
        return Cell(f"{value:.2f} ± {spread:.2f}", value)
    low, high = metrics[0]["low"], metrics[0]["high"]
    return Cell(f"{value:.2f} [{low:.2f}, {high:.2f}]", value, low, high)
