"""The conventions behind a perplexity: columns of the two that are compared, and of the rarer two.

`word` and `paper` have other divisors than tokens; they stand beside, with a column only where some
record has them, and no change is computed from them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hylorada.comparison.arms import Comparison
from hylorada.comparison.cells import Cell, Column, number
from hylorada.comparison.subjects import Metric, Subject, all_metrics
from hylorada.records.metric_names import OTHERS, PERPLEXITIES
from hylorada.statistics.paired import deviation

HEADINGS = {"word": "PPL, per word", "paper": "PPL, paper's mean over paragraphs"}


def other_columns(comparisons: Sequence[Comparison]) -> list[Column]:
    """A column for each of `OTHERS` that some record has a number for."""
    return [
        Column(f"ppl_{convention}", HEADINGS[convention])
        for convention, name in OTHERS.items()
        if any(True for comparison in comparisons for _ in all_metrics(comparison, name))
    ]


def other_cells(subject: Subject) -> dict[str, Cell]:
    """The cells of a row: the mean over seeds, with the deviation between them."""
    cells = {}
    for convention, name in OTHERS.items():
        values = [m["value"] for m in subject.values(name)]
        if not values:
            continue
        if None in values:
            cells[f"ppl_{convention}"] = Cell("overflow")
            continue
        value = float(np.mean(values))
        spread = deviation(values)
        text = number(value) + (f" ± {number(spread, like=value)}" if spread is not None else "")
        cells[f"ppl_{convention}"] = Cell(text, value)
    return cells


def convention_notes(comparison: Comparison) -> list[str]:
    """One sentence for each convention measured, from the first run that has it."""
    texts = []
    for convention, name in PERPLEXITIES.items():
        metric = next(all_metrics(comparison, name), None)
        if metric is None:
            continue
        stride = f", stride {metric['stride']:,}" if metric.get("stride") else ""
        part = ""
        if metric.get("scorable_tokens", metric["tokens"]) != metric["tokens"]:
            part = f" of {metric['scorable_tokens']:,}"
        units = "paragraphs" if convention == "paper" else "documents"
        texts.append(
            f"{convention}: window {metric['window']:,}{stride}; {metric['tokens']:,}{part} tokens "
            f"of {len(metric['by_document']):,} {units}, split {metric['split']}"
            + _divisor(convention, metric)
            + "."
        )
    return texts


def _divisor(convention: str, metric: Metric) -> str:
    if convention == "word":
        return f"; exp(sum of NLL / {metric['words']:,} words)"
    if convention == "paper":
        return (
            "; mean of the paragraphs' perplexities, lines of more than 100 characters each scored "
            "alone: not to be compared with any other column"
        )
    return ""
