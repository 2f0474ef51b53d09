"""Perplexities in a table: pooled, with changes against another arm and against the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hylorada.comparison.arms import Arm, Comparison
from hylorada.comparison.cells import Cell, number, with_interval
from hylorada.comparison.nested import nested_in
from hylorada.comparison.subjects import Subject
from hylorada.records.base_rows import is_extended
from hylorada.records.metric_names import COMPARED, OTHERS
from hylorada.statistics.paired import (
    Change,
    Price,
    deviation,
    paired_change,
    params_per_percent,
    pooled_ppl,
    ppl_interval,
)


def base_cells(base: Subject) -> dict[str, Cell]:
    """Of an untouched base; the one in its own window is compared with the extended one."""
    metrics = {name: found[0] for name in COMPARED.values() if (found := base.values(name))}
    cells = {"change_reference": Cell("-"), "params_per_percent": Cell("-")}
    for convention, name in COMPARED.items():
        if name in metrics:
            cells[f"ppl_{convention}"] = ppl_cell([metrics[name]])
    cells |= _other_cells(base)
    if base.which == "extended":
        if metrics:
            cells["change_base"] = Cell("0", 0.0)
        return cells
    extended = base.runs[0].base("extended", COMPARED["sliding"])
    own = base.runs[0].base("own_window", COMPARED["sliding"])
    if not is_extended(base.runs[0].data):  # the same model: no difference of two
        cells["change_base"] = Cell("-")
    elif extended and own:
        # Untrained, so that no seed could give another number.
        cells["change_base"] = change_cell(paired_change({0: own}, {0: extended}), trained=False)
    return cells


def arm_cells(
    comparison: Comparison, subject: Subject, arm: Arm, against: Arm | None
) -> dict[str, Cell]:
    """Of an arm, compared with the base of its own records and with other arms."""
    cells: dict[str, Cell] = {}
    for convention, name in COMPARED.items():
        metrics = arm.metrics(name)
        if metrics:
            cells[f"ppl_{convention}"] = ppl_cell(list(metrics.values()))
    main = next((name for name in COMPARED.values() if arm.metrics(name)), "")
    if main:
        base_change = paired_change(arm.metrics(main), arm.base_metrics("extended", main))
        cells["change_base"] = change_cell(base_change)
        cells |= _price_cells(arm, nested_in(arm, comparison), main, base_change)
        if against is arm:
            cells["change_reference"] = Cell("reference", 0.0)
        elif against is not None:
            cells["change_reference"] = change_cell(
                paired_change(arm.metrics(main), against.metrics(main))
            )
    return cells | _other_cells(subject)


def _price_cells(
    arm: Arm, nested: Arm | None, main: str, base_change: Change | str
) -> dict[str, Cell]:
    """Parameters for 1 % gained: those that an arm trains more than the arm nested in it."""
    more, change, over = arm.trainable_parameters, base_change, "the base"
    if nested is not None:
        change = paired_change(arm.metrics(main), nested.metrics(main))
        more, over = (more or 0) - (nested.trainable_parameters or 0), nested.label
    if not more or isinstance(change, str):
        return {}
    price = params_per_percent(more, change)
    if not isinstance(price, Price):
        return {"params_per_percent": Cell(f"{price} over {over}")}
    ends = (f"{price.low:,.0f}", f"{price.high:,.0f}")
    text = with_interval(f"{price.value:,.0f} over {over}", *ends, change.remark)
    return {"params_per_percent": Cell(text, price.value, price.low, price.high)}


def ppl_cell(metrics: Sequence[Mapping[str, Any]]) -> Cell:
    """Pooled perplexity of some runs, with the deviation between them."""
    value = pooled_ppl(metrics)
    spread = deviation([m["value"] for m in metrics if m["value"] is not None])
    text = number(value) + (f" ± {number(spread, like=value)}" if spread is not None else "")
    if value == float("inf"):
        return Cell(text)
    low, high = ppl_interval(metrics) or (None, None)
    return Cell(text, value, low, high)


def change_cell(change: Change | str, *, trained: bool = True) -> Cell:
    """A change in percent with its interval, or the reason why there is none.

    Args:
        change: of two arms, or of an arm and a base.
        trained: whether other seeds would give other numbers.
    """
    if isinstance(change, str):
        return Cell(change)
    text = f"{change.percent:+.2f}"
    if change.low is not None and change.high is not None:
        ends = (f"{change.low:+.2f}", f"{change.high:+.2f}")
        text = with_interval(text, *ends, change.remark if trained else "")
    return Cell(text, change.percent, change.low, change.high)


def _other_cells(subject: Subject) -> dict[str, Cell]:
    """By other divisors than tokens: the mean over seeds, with the deviation between them."""
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
