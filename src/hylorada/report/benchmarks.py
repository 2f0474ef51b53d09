"""What records hold of LongBench and RULER: a column for each kind, every task in the notes.

A kind with several tasks shows their mean, one with a single task that task. As in `context`, seeds
of an arm are asked the same questions: a cell holds their mean and the deviation between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hylorada.report.arms import Comparison
from hylorada.report.cells import Cell, Column
from hylorada.report.context import all_metrics
from hylorada.report.statistics import deviation

KINDS = {"longbench": "LongBench", "longbench_e": "LongBench-E", "ruler": "RULER"}
"""Kind -> its name for people; the kind is also the key of its column."""

_AVERAGES = {
    "longbench": "longbench/average", "longbench_e": "longbench/average_e", "ruler": "ruler/average"
}  # fmt: skip
_CUT = {
    "longbench": ", longer prompts cut in the middle",
    "longbench_e": ", longer prompts cut in the middle", "ruler": "",
}  # fmt: skip
Metric = dict[str, Any]


def benchmark_columns(comparisons: Sequence[Comparison]) -> list[Column]:
    """The columns that some record has a number for."""
    present = {kind for comparison in comparisons for kind, _ in _names(comparison)}
    return [Column(kind, f"{name}, of 100") for kind, name in KINDS.items() if kind in present]


def benchmark_cells(
    comparison: Comparison, found: Callable[[str], list[Metric]]
) -> dict[str, Cell]:
    """The cells of a row.

    Args:
        comparison: what the row belongs to; it says which number stands for a kind.
        found: the metrics of a name in the row's runs, one for each seed.
    """
    cells = {}
    for kind, name in _shown(comparison).items():
        metrics = _same_questions(found(name))
        if metrics:
            cells[kind] = _cell(metrics)
    return cells


def benchmark_notes(comparison: Comparison) -> list[str]:
    """What was asked, and the score of every task, base and arms."""
    notes = []
    for kind, title in KINDS.items():
        names = [name for k, name in _names(comparison) if k == kind and "/average" not in name]
        if not names:
            continue
        first = next(m for name in names for m in all_metrics(comparison, name))
        limit = f"the first {first['limit']} examples" if first["limit"] else "all examples"
        notes.append(
            f"{title}: {limit} of each task, by lm-eval {first['lm_eval']} in a window of "
            f"{first['window']:,} tokens{_CUT[kind]}; official scores."
        )
        for label, found in _rows(comparison):
            scores = [
                f"{name.partition('/')[2]} {_cell(metrics).text}"
                for name in names
                if (metrics := _same_questions(found(name)))
            ]
            if scores:
                notes.append(f"{title}, {label}: {'; '.join(scores)}.")
    return notes


def _rows(comparison: Comparison) -> list[tuple[str, Callable[[str], list[Metric]]]]:
    """The extended base, which is the same in every record, and the arms that trained."""

    def of_base(name: str) -> list[Metric]:
        return [m for a in comparison.arms for m in a.base_metrics("extended", name).values()][:1]

    rows: list[tuple[str, Callable[[str], list[Metric]]]] = [("base, extended, untrained", of_base)]
    for arm in comparison.arms:
        if arm.method != "baseline":
            rows.append((arm.label, lambda name, arm=arm: list(arm.metrics(name).values())))  # type: ignore[misc]
    return rows


def _names(comparison: Comparison) -> list[tuple[str, str]]:
    """Kind and name of every such metric, in the order of the records."""
    names: dict[str, str] = {}
    for arm in comparison.arms:
        for run in arm.ok:
            for name in [*(run.data["base"].get("extended") or {}), *run.data["metrics"]]:
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


def _same_questions(metrics: list[Metric]) -> list[Metric]:
    """Those asked what the first was asked."""
    return [m for m in metrics if m["questions_sha256"] == metrics[0]["questions_sha256"]]


def _cell(metrics: Sequence[Metric]) -> Cell:
    values = [m["value"] for m in metrics]
    value = float(np.mean(values))
    spread = deviation(values)
    if spread is not None:
        return Cell(f"{value:.2f} ± {spread:.2f}", value)
    low, high = metrics[0]["low"], metrics[0]["high"]
    return Cell(f"{value:.2f} [{low:.2f}, {high:.2f}]", value, low, high)
