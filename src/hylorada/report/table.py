"""What each method reached, what it cost, and the untouched base beside it, twice.

A `Table` holds values and texts; `render` and `page` turn it into what a terminal, a paper, a
program or a browser reads: verdicts in sentences, a main table of few columns, and all else for
each method. A cell without a measurement says so.
"""

from __future__ import annotations

import statistics as stdlib_statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hylorada.comparison.arms import Arm, Comparison
from hylorada.comparison.cells import NOT_MEASURED, Cell, Column, Verdict
from hylorada.comparison.collect import Record
from hylorada.comparison.differences import difference_notes
from hylorada.comparison.subjects import BASES, Subject, bases, expected_base, of_arm, shown_arms
from hylorada.evaluation.measurement import measurements
from hylorada.records.component_names import COMPONENTS, component_words
from hylorada.report.hypotheses import Held, held_against

GROUP = "trained_"
"""How the keys of the columns begin that count the parameters of one component."""
_NAMES = 3  # columns that say whose row it is: method, window, seeds
_STEADY = 1.5
"""How many times as fast as another a seed of the same arm may be before its time says nothing."""


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
    """One table for a model and a data set, a section for each length.

    Attributes:
        title: model and data set.
        columns: all of them, the method first.
        sections: rows of each comparison.
        verdicts: a sentence for each comparison of two arms.
        hypotheses: what the paper expects at these lengths, beside what was measured.
        notes: what must be known to read it.
    """

    title: str
    columns: list[Column]
    sections: list[Section]
    verdicts: list[Verdict]
    hypotheses: list[Held]
    notes: list[str]

    @property
    def main(self) -> list[Column]:
        """The columns of the main table: without perplexity the first two results."""
        main = [column for column in self.columns if column.main]
        if len(main) > _NAMES:
            return main
        results = [column for column in self.columns if not column.main and not column.cost]
        return [*main, *results[:2]]

    @property
    def details(self) -> list[Column]:
        """All others: what stands in the card of a method."""
        main = self.main
        return [column for column in self.columns if column not in main]

    def cards(self, section: Section) -> list[tuple[Row, list[tuple[Column, Cell]]]]:
        """The rows of a section with what is told of them beside the main table.

        Of the base only what was measured; of a method also what was not.
        """
        found = []
        for row in section.rows:
            cells = [(column, cell(row, column.key)) for column in self.details]
            told = [
                (column, item)
                for column, item in cells
                if item.text != "-" and (row.kind == "arm" or item.value is not None)
            ]
            if row.kind != "base" or any(not column.cost for column, _ in told):
                found.append((row, told))
        return found


MISSING = Cell(NOT_MEASURED)


def cell(row: Row, key: str) -> Cell:
    """A cell of a row; one that says "not measured" if there is none."""
    return row.cells.get(key, MISSING)


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
        Column("method", "method", numeric=False, main=True),
        Column("length", "window, tokens", main=True),
        Column("seeds", "seeds", main=True),
        *results,
        Column("trainable", "trainable parameters", cost=True),
        *(
            Column(f"{GROUP}{name}", f"of these: {component_words(name)}", cost=True)
            for name in _groups(report)
        ),
        *(column for column in measured if column.cost),
        Column("tokens", "training tokens", cost=True),
        Column("seconds", "training time, seconds", cost=True),
        Column("tokens_per_second", "tokens/s", cost=True),
        Column("peak_memory_mib", "peak memory, MiB", cost=True),
    ]
    fixed = [
        *(text for each in measurements() for text in each.explanations(comparisons, reference)),
        "Training time and tokens/s: median over seeds. Peak memory: largest over "
        "seeds; on a CPU of the whole process including libraries, on a GPU allocated memory.",
        *_unsteady(comparisons),
    ]
    title = f"{first.model} on {first.dataset}"
    verdicts = [
        verdict
        for comparison in comparisons
        for each in measurements()
        for verdict in each.verdicts(comparison, comparison.reference(reference))
    ]
    held = held_against(comparisons)
    return Table(title, columns, sections, verdicts, held, fixed + notes.texts)


def _unsteady(comparisons: Sequence[Comparison]) -> list[str]:
    """That times do not compare, where seeds of one arm, with the same work, differ in speed."""
    found = []
    for comparison in comparisons:
        for arm in comparison.arms:
            speeds = [s for run in arm.ok if (s := run.part("training").get("tokens_per_second"))]
            if speeds and max(speeds) > _STEADY * min(speeds):
                found.append(
                    f"{arm.label}, {comparison.heading}, {min(speeds):,.0f} to {max(speeds):,.0f}"
                )
    return [
        f"Times are not comparable: tokens/s differ between seeds of one method, which do the same "
        f"work ({'; '.join(found)}); other programs may have been running."
    ] if found else []  # fmt: skip


def _groups(report: Sequence[Comparison]) -> list[str]:
    """The components that some arm trains, in the order in which they are shown."""
    trained = {
        name
        for comparison in report
        for arm in comparison.arms
        for run in arm.runs
        for name, count in (run.part("parameters").get("by_group") or {}).items()
        if count
    }
    known = [name for name in COMPONENTS if name in trained]
    return [*known, *sorted(trained - set(known))]


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
    for text in [*difference_notes(comparison), *_texts(comparison), *_weights(comparison), *asked]:
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


def _weights(comparison: Comparison) -> list[str]:
    """What the base's weights were unpacked from, so that it is not taken for the model itself."""
    runs = (run for arm in comparison.arms for run in arm.runs)
    found = dict.fromkeys(run.part("provenance").get("base_model_read_from") for run in runs)
    return [f"base model: read from {words}." for words in found if words]


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
        **_NO_GROUPS,
        **{key: Cell("-") for key in ("tokens", "seconds", "tokens_per_second", "peak_memory_mib")},
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


_NO_GROUPS = {f"{GROUP}{name}": Cell("-", 0) for name in COMPONENTS}


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
            cells |= _NO_GROUPS
            cells["trainable"] = Cell(f"{parameters['trainable']:,}", parameters["trainable"])
            for name, count in (parameters.get("by_group") or {}).items():
                if count:
                    mark = " (placebo)" if name in parameters.get("placebo", []) else ""
                    cells[f"{GROUP}{name}"] = Cell(f"{count:,}{mark}", count)
            break
    training = [run.part("training") for run in runs]
    for key in ("tokens", "seconds"):
        found = [t[key] for t in training if t.get(key)]
        if found:
            middle = stdlib_statistics.median(found)
            cells[key] = Cell(f"{middle:,.0f}", middle)
    speeds = [t["tokens_per_second"] for t in training if t.get("tokens_per_second")]
    if speeds:
        speed = stdlib_statistics.median(speeds)
        cells["tokens_per_second"] = Cell(f"{speed:,.0f}", speed)
    peaks = [t["peak_memory_bytes"] for t in training if t.get("peak_memory_bytes")]
    if peaks:
        mib = max(peaks) / 2**20
        cells["peak_memory_mib"] = Cell(f"{mib:,.0f}", mib)
    return cells


def one_line(error: Any, limit: int = 160) -> str:
    """The message of a record's error, which may be a text or an object, on one line."""
    if isinstance(error, Mapping):
        error = error.get("message") or error.get("type")
    text = " ".join(str(error or "").split()).rstrip(".")
    return text if len(text) <= limit else text[: limit - 3] + "..."
