"""The main table: what each method reached, what it cost, and the untouched base beside it, twice.

A `Table` holds values and texts; `render` turns it into what a terminal, a paper or a program
reads. A cell without a measurement says so.
"""

from __future__ import annotations

import statistics as stdlib_statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hylorada.comparison.arms import Arm, Comparison
from hylorada.comparison.cells import Cell, Column, number
from hylorada.comparison.collect import Record
from hylorada.comparison.differences import difference_notes
from hylorada.comparison.subjects import BASES, Subject, bases, expected_base, of_arm, shown_arms
from hylorada.records.base_rows import is_extended
from hylorada.records.component_names import component_words
from hylorada.records.metric_names import COMPARED
from hylorada.report.context import context_cells, context_columns, context_notes
from hylorada.report.conventions import convention_notes, other_cells, other_columns
from hylorada.report.harness import benchmark_cells, benchmark_columns, benchmark_notes
from hylorada.statistics.paired import (
    LEVEL,
    Change,
    deviation,
    paired_change,
    params_per_percent,
    pooled_ppl,
)

NOT_MEASURED = "not measured"


@dataclass
class Row:
    """A line of the table; `kind` is "base", "arm" or "failed"."""

    kind: str
    cells: dict[str, Cell]


@dataclass
class Section:
    """The rows of one comparison."""

    heading: str
    rows: list[Row] = field(default_factory=list)


@dataclass
class Table:
    """One table for a model and a data set, a section for each length."""

    title: str
    columns: list[Column]
    sections: list[Section]
    notes: list[str]


def build_tables(comparisons: Sequence[Comparison], reference: str = "lora") -> list[Table]:
    """One table for each model and data set, in the order of the comparisons."""
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in comparisons:
        groups.setdefault((comparison.model, comparison.dataset), []).append(comparison)
    # The same columns in each, since they share one CSV.
    extra = [
        *other_columns(comparisons), *context_columns(comparisons), *benchmark_columns(comparisons),
    ]  # fmt: skip
    return [_table(group, reference, extra) for group in groups.values()]


def _table(comparisons: Sequence[Comparison], reference: str, extra: list[Column]) -> Table:
    first = comparisons[0]
    bases: list[str] = []
    notes = _Notes()
    sections = [_section(comparison, reference, notes, bases) for comparison in comparisons]
    main = " and ".join(dict.fromkeys(bases)) or "blocks"
    reach = any(is_extended(r.data) for c in comparisons for arm in c.arms for r in arm.runs)
    base, untrained = ("extended base", "extended, untrained base") if reach else ("base", "base")
    columns = [
        Column("method", "method", numeric=False),
        Column("length", "length, tokens"),
        Column("seeds", "seeds"),
        Column("ppl_blocks", "PPL, blocks"),
        Column("ppl_sliding", "PPL, sliding"),
        Column("change_reference", f"PPL against {reference}, %"),
        Column("change_base", f"PPL against {base}, %"),
        *extra,
        Column("trainable", "trainable parameters"),
        Column("params_per_percent", "parameters per 1 % gain"),
        Column("tokens_per_second", "tokens/s"),
        Column("peak_memory_mib", "peak memory, MiB"),
        Column("groups", "what is trained", numeric=False),
    ]
    fixed = [
        "PPL: exp(sum of NLL / scored tokens), pooled over seeds; ± standard deviation between "
        "seeds. Lower is better.",
        f"Changes: in PPL, {main} convention, over the seeds that both arms have; negative is "
        f"better. [Intervals]: {LEVEL:.0%}, paired bootstrap over seeds and documents, as far as "
        "there are two of them."
        + (" The base in its own window is compared in the sliding convention." if reach else ""),
        "Parameters per 1 % gain: trainable parameters / percent of PPL gained on the "
        f"{untrained}.",
        "tokens/s: tokens trained on per second, median over seeds. Peak memory: largest over "
        "seeds; on a CPU of the whole process, libraries included, on a GPU what was allocated.",
    ]
    title = f"{first.model} on {first.dataset}"
    return Table(title, columns, sections, fixed + notes.texts)


class _Notes:
    """Footnotes; each is kept once."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def add(self, text: str) -> None:
        if text not in self.texts:
            self.texts.append(text)


def _section(
    comparison: Comparison, reference: str, notes: _Notes, conventions: list[str]
) -> Section:
    heading = f"length {comparison.length:,}"
    if comparison.label:
        heading += f" ({comparison.label})"
    section = Section(heading)
    asked = [*context_notes(comparison), *benchmark_notes(comparison)]
    differences = difference_notes(comparison)
    for text in [*differences, *_texts(comparison), *convention_notes(comparison), *asked]:
        notes.add(f"{heading}: {text}")
    against = comparison.reference(reference)
    if against is None:
        notes.add(f"{heading}: no finished run of {reference}, so nothing is compared with it.")
    elif sum(arm.method == reference for arm in comparison.arms) > 1:
        notes.add(f"{heading}: compared with the best of several: {against.label}.")
    section.rows += _base_rows(comparison, notes)
    for arm in shown_arms(comparison):
        section.rows.append(_arm_row(comparison, arm, against, notes, heading, conventions))
    return section


def _texts(comparison: Comparison) -> list[str]:
    """What was read, in words, so that a part of a data set is not taken for the whole."""
    read: dict[str, dict[str, None]] = {}  # split -> what the runs call it, in their order
    for run in (run for arm in comparison.arms for run in arm.runs):
        for split, words in (run.part("provenance").get("dataset") or {}).items():
            read.setdefault(split, {})[words] = None
    return [f"text: {'; '.join(words for split in read for words in read[split])}."] if read else []


def _base_rows(comparison: Comparison, notes: _Notes) -> list[Row]:
    """The untouched base in its own window, and with its range extended and untrained."""
    rows = []
    for which in BASES:
        distinct = bases(comparison, which)
        rows += [_base_row(comparison, base) for base in distinct]
        missed = None if distinct else expected_base(comparison, which)
        if missed:
            rows.append(Row("base", {"method": Cell(missed, f"base_{which}")}))
        if len(distinct) > 1:
            notes.add(
                "The methods extend the base in different ways; each extended base is shown with "
                "the method whose record holds it."
            )
    return rows


def _base_row(comparison: Comparison, base: Subject) -> Row:
    metrics = {name: found[0] for name in COMPARED.values() if (found := base.values(name))}
    window = next((m["window"] for m in metrics.values()), comparison.length)
    cells = {
        "method": Cell(base.label, f"base_{base.which}"),
        "length": Cell(f"{window:,}", window),
        "seeds": Cell("-"),
        "trainable": Cell("0", 0),
        "change_reference": Cell("-"),
        "groups": Cell("-"),
        "params_per_percent": Cell("-"),
        "tokens_per_second": Cell("-"),
        "peak_memory_mib": Cell("-"),
    }
    for convention, name in COMPARED.items():
        if name in metrics:
            cells[f"ppl_{convention}"] = ppl_cell([metrics[name]])
    cells |= other_cells(base)
    if base.which == "extended":
        if metrics:
            cells["change_base"] = Cell("0", 0.0)
        cells |= _asked_cells(comparison, base)
    else:
        extended = base.runs[0].base("extended", "eval/ppl_sliding")
        own = base.runs[0].base("own_window", "eval/ppl_sliding")
        if not is_extended(base.runs[0].data):  # the same model: no difference of two
            cells["change_base"] = Cell("-")
        elif extended and own:
            change = paired_change({0: own}, {0: extended})
            cells["change_base"] = change_cell(change)
    return Row("base", cells)


def _asked_cells(comparison: Comparison, subject: Subject) -> dict[str, Cell]:
    return context_cells(comparison, subject) | benchmark_cells(comparison, subject)


def _arm_row(
    comparison: Comparison,
    arm: Arm,
    against: Arm | None,
    notes: _Notes,
    heading: str,
    conventions: list[str],
) -> Row:
    cells = {
        "method": Cell(arm.label, arm.label),
        "length": Cell(f"{comparison.length:,}", comparison.length),
        "seeds": _seeds_cell(arm),
    }
    if arm.failed:
        for run in arm.failed:
            error = one_line(run.data.get("error"))
            notes.add(
                f"{heading}: {arm.label}, seed {run.seed}: {run.status}"
                + (f": {error}" if error else "")
                + "."
            )
    if not arm.ok:
        status = " / ".join(dict.fromkeys(run.status for run in arm.failed))
        for key in ("ppl_blocks", "ppl_sliding", "change_reference", "change_base"):
            cells[key] = Cell(status)
        cells |= _cost_cells(arm.failed)
        return Row("failed", cells)
    for convention, name in COMPARED.items():
        metrics = arm.metrics(name)
        if metrics:
            cells[f"ppl_{convention}"] = ppl_cell(list(metrics.values()))
    main = next((c for c, name in COMPARED.items() if arm.metrics(name)), None)
    if main is not None:
        conventions.append(main)
        name = COMPARED[main]
        base_change = paired_change(arm.metrics(name), arm.base_metrics("extended", name))
        cells["change_base"] = change_cell(base_change)
        trainable = trainable_parameters(arm)
        per_percent = params_per_percent(trainable or 0, base_change)
        if per_percent is not None:
            cells["params_per_percent"] = Cell(f"{per_percent:,.0f}", per_percent)
        elif trainable and isinstance(base_change, Change):
            cells["params_per_percent"] = Cell("no gain")
        if against is arm:
            cells["change_reference"] = Cell("reference", 0.0)
        elif against is not None:
            cells["change_reference"] = change_cell(
                paired_change(arm.metrics(name), against.metrics(name))
            )
    subject = of_arm(arm)
    cells |= other_cells(subject) | _asked_cells(comparison, subject)
    cells |= _cost_cells(arm.ok)
    return Row("arm", cells)


def _seeds_cell(arm: Arm) -> Cell:
    if arm.failed:
        return Cell(f"{len(arm.ok)} of {len(arm.runs)}", len(arm.ok))
    return Cell(str(len(arm.ok)), len(arm.ok))


def ppl_cell(metrics: Sequence[Mapping[str, Any]]) -> Cell:
    """Pooled perplexity of some runs, with the deviation between them."""
    value = pooled_ppl(metrics)
    spread = deviation([m["value"] for m in metrics if m["value"] is not None])
    text = number(value) + (f" ± {number(spread, like=value)}" if spread is not None else "")
    return Cell(text, value if value != float("inf") else None)


def change_cell(change: Change | str) -> Cell:
    """A change in percent with its interval, or the reason why there is none."""
    if isinstance(change, str):
        return Cell(change)
    text = f"{change.percent:+.2f}"
    if change.low is not None and change.high is not None:
        text += f" [{change.low:+.2f}, {change.high:+.2f}]"
    return Cell(text, change.percent, change.low, change.high)


def _cost_cells(runs: Sequence[Record]) -> dict[str, Cell]:
    """Parameters, speed and memory; what no run recorded is left out."""
    cells: dict[str, Cell] = {}
    for run in runs:
        parameters = run.part("parameters")
        if "trainable" in parameters:
            cells["trainable"] = Cell(f"{parameters['trainable']:,}", parameters["trainable"])
            cells["groups"] = Cell(groups_text(parameters.get("by_group") or {}))
            break
    training = [run.part("training") for run in runs]
    speeds = [t["tokens_per_second"] for t in training if t.get("tokens_per_second")]
    if speeds:
        speed = stdlib_statistics.median(speeds)
        cells["tokens_per_second"] = Cell(f"{speed:,.0f}", speed)
    peaks = [t["peak_memory_bytes"] for t in training if t.get("peak_memory_bytes")]
    if peaks:
        mib = max(peaks) / 2**20
        cells["peak_memory_mib"] = Cell(f"{mib:,.0f}", mib)
    return cells


def trainable_parameters(arm: Arm) -> int | None:
    """Trainable parameters of the arm's runs, which all have the same."""
    counts = [run.part("parameters").get("trainable") for run in arm.ok]
    return next((count for count in counts if count is not None), None)


def groups_text(by_group: Mapping[str, int]) -> str:
    """ "LoRA 811,008, position bias 65"."""
    parts = [f"{component_words(name)} {count:,}" for name, count in by_group.items() if count]
    return ", ".join(parts) or "-"


def one_line(error: Any, limit: int = 160) -> str:
    """The message of a record's error, which may be a text or an object, on one line."""
    if isinstance(error, Mapping):
        error = error.get("message") or error.get("type")
    text = " ".join(str(error or "").split()).rstrip(".")
    return text if len(text) <= limit else text[: limit - 3] + "..."
