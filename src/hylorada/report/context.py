"""What records hold about the use of the context: retrieval by depth, loss by context, as cells.

Columns exist only if some record has such a number. Seeds of one arm are asked the same prompts, so
prompts are not counted once more for each seed: with several seeds a cell holds their mean and the
deviation between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from hylorada.report.arms import Comparison
from hylorada.report.cells import Cell, Column
from hylorada.report.statistics import deviation

SCORINGS = {"": "ranked", "_generated": "generated"}
"""What follows the names of retrieval metrics, and the scoring."""

GAIN = "context_gain/gain"
CONTEXT_KEYS = tuple(
    [f"{key}{suffix}" for suffix in SCORINGS for key in ("retrieval", "middle_gap")]
    + ["context_gain"]
)
Metric = dict[str, Any]


def context_columns(comparisons: Sequence[Comparison]) -> list[Column]:
    """The columns that some record has a number for."""
    columns = []
    for suffix, scoring in SCORINGS.items():
        for key, metric, heading in (
            ("retrieval", "lim/accuracy", f"retrieval, {scoring}, % right"),
            ("middle_gap", "lim/middle_gap", f"edges less middle, {scoring}, points"),
        ):
            if _has(comparisons, f"{metric}{suffix}"):
                columns.append(Column(f"{key}{suffix}", heading))
    if _has(comparisons, GAIN):
        columns.append(Column("context_gain", "gain of context, nats/token"))
    return columns


def context_cells(found: Callable[[str], list[Metric]]) -> dict[str, Cell]:
    """The cells of a row.

    Args:
        found: the metrics of that name in the row's runs, one for each seed.
    """
    cells = {}
    for suffix in SCORINGS:
        whole = found(f"lim/accuracy{suffix}")
        if whole:
            cells[f"retrieval{suffix}"] = _cell([{"value": m["value"]} for m in whole], 100, "")
        gaps = found(f"lim/middle_gap{suffix}")
        if gaps:
            cells[f"middle_gap{suffix}"] = _cell(gaps, 100, "+")
    gains = found(GAIN)
    if gains:
        cells["context_gain"] = _cell(gains, 1, "+")
    return cells


def context_notes(comparison: Comparison) -> list[str]:
    """What was asked, in a sentence for each kind of measurement."""
    notes = []
    for suffix, scoring in SCORINGS.items():
        for m in _distinct(comparison, f"lim/accuracy{suffix}", "prompts_sha256"):
            low, high = m["prompt_tokens"]
            notes.append(
                f"retrieval, {scoring}: {m['form']} ({m['source']}), {m['prompts']} prompts of "
                f"{low:,} to {high:,} tokens with {m['items']} items, at {len(m['by_depth'])} "
                f"depths; chance {m['chance']:.1%}. Edges less middle is positive when the middle "
                "is lost." + (f" Note: {m['note']}." if m.get("note") else "")
            )
    for m in _distinct(comparison, GAIN, "text_sha256"):
        notes.append(
            f"gain of context: loss with {m['shortest_context']:,} tokens before the target less "
            f"that with {m['context']:,}, on the same {m['places']} x {m['targets']} tokens, split "
            f"{m['split']}."
        )
    return notes


def same_questions(metrics: Sequence[Metric], first: Metric) -> list[Metric]:
    """Those that were asked what the first was asked: same prompts, or same text and places."""
    keys = ("prompts_sha256", "text_sha256", "window", "targets", "places")
    wanted = [first.get(key) for key in keys] + [_contexts(first)]
    return [m for m in metrics if [m.get(key) for key in keys] + [_contexts(m)] == wanted]


def _contexts(metric: Metric) -> list[int]:
    return [score["context"] for score in metric.get("by_context", [])]


def all_metrics(comparison: Comparison, name: str) -> Iterator[Metric]:
    """Those of every arm's runs, then those of the extended base."""
    for arm in comparison.arms:
        yield from arm.metrics(name).values()
    for arm in comparison.arms:
        yield from arm.base_metrics("extended", name).values()


def _has(comparisons: Sequence[Comparison], name: str) -> bool:
    return any(True for comparison in comparisons for _ in all_metrics(comparison, name))


def _distinct(comparison: Comparison, name: str, key: str) -> list[Metric]:
    found: dict[str, Metric] = {}
    for metric in all_metrics(comparison, name):
        found.setdefault(metric[key], metric)
    return list(found.values())


def _cell(metrics: Sequence[Metric], scale: float, sign: str) -> Cell:
    values = [scale * m["value"] for m in metrics]
    digits = 1 if scale == 100 else 3
    value = float(np.mean(values))
    text = f"{value:{sign}.{digits}f}"
    spread = deviation(values)
    if spread is not None:
        return Cell(f"{text} ± {spread:.{digits}f}", value)
    low, high = metrics[0].get("low"), metrics[0].get("high")
    if low is None or high is None:
        return Cell(text, value)
    low, high = scale * low, scale * high
    return Cell(f"{text} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]", value, low, high)
