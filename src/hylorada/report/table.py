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
from hylorada.comparison.cells import Cell, Column
from hylorada.comparison.collect import Record
from hylorada.comparison.differences import difference_notes
from hylorada.comparison.subjects import BASES, Subject, bases, expected_base, of_arm, shown_arms
from hylorada.evaluation.measurement import measurements
from hylorada.records.component_names import component_words

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
    return [_table(group, reference, comparisons) for group in groups.values()]


def _table(
    comparisons: Sequence[Comparison], reference: str, report: Sequence[Comparison]
) -> Table:
    first = comparisons[0]
    notes = _Notes()
    measured = [
        column for each in measurements() for column in each.columns(report, comparisons, reference)
    ]
    results = [column for column in measured if not column.cost]
    sections = [_section(comparison, reference, notes, results) for comparison in comparisons]
    columns = [
        Column("method", "method", numeric=False),
        Column("length", "length, tokens"),
        Column("seeds", "seeds"),
        *results,
        Column("trainable", "trainable parameters"),
        *(column for column in measured if column.cost),
        Column("tokens_per_second", "tokens/s"),
        Column("peak_memory_mib", "peak memory, MiB"),
        Column("groups", "what is trained", numeric=False),
    ]
    fixed = [
        *(text for each in measurements() for text in each.explanations(comparisons, reference)),
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
    comparison: Comparison, reference: str, notes: _Notes, results: Sequence[Column]
) -> Section:
    heading = comparison.heading
    section = Section(heading)
    asked = [text for each in measurements() for text in each.notes(comparison)]
    for text in [*difference_notes(comparison), *_texts(comparison), *asked]:
        notes.add(f"{heading}: {text}")
    against = comparison.reference(reference)
    if against is None:
        notes.add(f"{heading}: no finished run of {reference}, so nothing is compared with it.")
    elif sum(arm.method == reference for arm in comparison.arms) > 1:
        notes.add(f"{heading}: compared with the best of several: {against.label}.")
    section.rows += _base_rows(comparison, against, notes)
    for arm in shown_arms(comparison):
        section.rows.append(_arm_row(comparison, arm, against, notes, heading, results))
    return section


def _texts(comparison: Comparison) -> list[str]:
    """What was read, in words, so that a part of a data set is not taken for the whole."""
    read: dict[str, dict[str, None]] = {}  # split -> what the runs call it, in their order
    for run in (run for arm in comparison.arms for run in arm.runs):
        for split, words in (run.part("provenance").get("dataset") or {}).items():
            read.setdefault(split, {})[words] = None
    return [f"text: {'; '.join(words for split in read for words in read[split])}."] if read else []


def _base_rows(comparison: Comparison, against: Arm | None, notes: _Notes) -> list[Row]:
    """The untouched base in its own window, and with its range extended and untrained."""
    rows = []
    for which in BASES:
        distinct = bases(comparison, which)
        rows += [_base_row(comparison, base, against) for base in distinct]
        missed = None if distinct else expected_base(comparison, which)
        if missed:
            rows.append(Row("base", {"method": Cell(missed, f"base_{which}")}))
        if len(distinct) > 1:
            notes.add(
                "The methods extend the base in different ways; each extended base is shown with "
                "the method whose record holds it."
            )
    return rows


def _base_row(comparison: Comparison, base: Subject, against: Arm | None) -> Row:
    measured = base.held()[0].values()
    window = next((m["window"] for m in measured if m.get("window")), comparison.length)
    cells = {
        "method": Cell(base.label, f"base_{base.which}"),
        "length": Cell(f"{window:,}", window),
        "seeds": Cell("-"),
        "trainable": Cell("0", 0),
        "groups": Cell("-"),
        "tokens_per_second": Cell("-"),
        "peak_memory_mib": Cell("-"),
    }
    return Row("base", cells | _measured(comparison, base, against))


def _measured(comparison: Comparison, subject: Subject, against: Arm | None) -> dict[str, Cell]:
    cells: dict[str, Cell] = {}
    for each in measurements():
        cells |= each.cells(comparison, subject, against)
    return cells


def _arm_row(
    comparison: Comparison,
    arm: Arm,
    against: Arm | None,
    notes: _Notes,
    heading: str,
    results: Sequence[Column],
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
        cells |= {column.key: Cell(status) for column in results if column.status}
        cells |= _cost_cells(arm.failed)
        return Row("failed", cells)
    cells |= _measured(comparison, of_arm(arm), against)
    cells |= _cost_cells(arm.ok)
    return Row("arm", cells)


def _seeds_cell(arm: Arm) -> Cell:
    if arm.failed:
        return Cell(f"{len(arm.ok)} of {len(arm.runs)}", len(arm.ok))
    return Cell(str(len(arm.ok)), len(arm.ok))


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
