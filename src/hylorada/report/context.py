"""What records hold about the use of the context: retrieval by depth, loss by context, as cells.

Columns exist only if some record has such a number. Seeds of one arm are asked the same prompts, so
prompts are not counted once more for each seed: with several seeds a cell holds their mean and the
deviation between them. What answers other prompts than those of most rows is told in a note.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hylorada.comparison.arms import Comparison
from hylorada.comparison.cells import Cell, Column
from hylorada.comparison.subjects import Metric, Subject, agreed, all_metrics, reference, subjects
from hylorada.records.metric_names import GAIN, SCORINGS
from hylorada.statistics.paired import deviation

CONTEXT_KEYS = tuple(
    [f"{key}{suffix}" for suffix in SCORINGS for key in ("retrieval", "middle_gap")]
    + ["context_gain"]
)


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


def context_cells(comparison: Comparison, subject: Subject) -> dict[str, Cell]:
    """The cells of a row; one that was asked something else than most rows says so."""
    cells = {}
    for suffix in SCORINGS:
        name, gap = f"lim/accuracy{suffix}", f"lim/middle_gap{suffix}"
        alike = subject.alike(name, agreed(comparison, name))
        gaps = [metrics[gap] for metrics in alike if gap in metrics]
        if alike:
            whole = [{"value": metrics[name]["value"]} for metrics in alike]
            cells[f"retrieval{suffix}"] = _cell(whole, 100, "")
        elif subject.values(name):
            cells[f"retrieval{suffix}"] = cells[f"middle_gap{suffix}"] = Cell("other prompts")
        if gaps:
            cells[f"middle_gap{suffix}"] = _cell(gaps, 100, "+")
    gains = [metrics[GAIN] for metrics in subject.alike(GAIN, agreed(comparison, GAIN))]
    if gains:
        cells["context_gain"] = _cell(gains, 1, "+")
    elif subject.values(GAIN):
        cells["context_gain"] = Cell("other targets")
    return cells


def context_notes(comparison: Comparison) -> list[str]:
    """What was asked, in a sentence for each kind of measurement, and who was asked otherwise."""
    notes = []
    for suffix, scoring in SCORINGS.items():
        name = f"lim/accuracy{suffix}"
        m = reference(comparison, name)
        if m is None:
            continue
        notes.append(
            f"retrieval, {scoring}: {_prompts(m)}, at {len(m['by_depth'])} depths; chance "
            f"{m['chance']:.1%}. Edges less middle is positive when the middle is lost."
            + (f" Note: {m['note']}." if m.get("note") else "")
        )
        others = [
            f"{label}: {100 * other['value']:.1f} ({_prompts(other)})"
            for label, other in _others(comparison, name)
        ]
        if others:
            notes.append(
                f"retrieval, {scoring}, asked other prompts and so not compared: "
                f"{'; '.join(others)}."
            )
    m = reference(comparison, GAIN)
    if m is not None:
        notes.append(f"gain of context: {_targets(m)}.")
        others = [
            f"{label}: {other['value']:+.3f} ({_targets(other)})"
            for label, other in _others(comparison, GAIN)
        ]
        if others:
            notes.append(
                "gain of context, on other targets or text and so not compared: "
                f"{'; '.join(others)}."
            )
    return notes


def _prompts(metric: Metric) -> str:
    low, high = metric["prompt_tokens"]
    style = f", {metric['key_style']} keys" if metric.get("key_style") else ""
    return (
        f"{metric['form']} ({metric['source']}{style}), {metric['prompts']} prompts of {low:,} to "
        f"{high:,} tokens with {metric['items']} items"
    )


def _targets(metric: Metric) -> str:
    return (
        f"loss with {metric['shortest_context']:,} tokens before the target less that with "
        f"{metric['context']:,}, on the same {metric['places']} x {metric['targets']} tokens, "
        f"split {metric['split']}"
    )


def _others(comparison: Comparison, name: str) -> list[tuple[str, Metric]]:
    wanted = agreed(comparison, name)
    return [each for subject in subjects(comparison) for each in subject.others(name, wanted)]


def _has(comparisons: Sequence[Comparison], name: str) -> bool:
    return any(True for comparison in comparisons for _ in all_metrics(comparison, name))


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
