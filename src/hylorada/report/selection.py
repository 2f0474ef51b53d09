"""What was chosen on the validation split: the grid, the choice of each arm, what to know of it."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from hylorada.comparison.cells import number
from hylorada.comparison.selection import (
    Candidate,
    Choice,
    Selection,
    Values,
)
from hylorada.comparison.validation_losses import SPLIT
from hylorada.records.chosen_settings import in_words, value_in_words

FILE = "selection.json"


@dataclass(frozen=True)
class Grid:
    """Perplexity on the validation split: a row for each arm, a column for each value.

    Attributes:
        title: what it is of.
        columns: the values.
        rows: label, and for each column a text and whether that value was chosen.
        notes: sentences below it.
    """

    title: str
    columns: list[str]
    rows: list[tuple[str, list[tuple[str, bool]]]]
    notes: list[str]


def grids(selection: Selection) -> list[Grid]:
    """A grid for each base, data set and length."""
    found = []
    for where in dict.fromkeys(choice.where for choice in selection.choices):
        choices = [choice for choice in selection.choices if choice.where == where]
        keys, columns = selection.keys, _columns(choices)
        heads = [
            value_in_words(values[0]) if len(keys) == 1 else in_words(keys, values)
            for values in columns
        ]
        title = f"{', '.join(keys)}, chosen on {SPLIT}: {where}"
        rows = [(choice.arm, _row(choice, columns)) for choice in choices]
        found.append(Grid(title, heads, rows, _notes(choices)))
    return found


def _columns(choices: Sequence[Choice]) -> list[Values]:
    """Every combination that some arm was tried under; of each arm in its own order."""
    columns: list[Values] = []
    for choice in choices:
        place = 0
        for each in choice.candidates:
            if each.values in columns:
                place = columns.index(each.values) + 1
            else:
                columns.insert(place, each.values)
                place += 1
    return columns


def _row(choice: Choice, columns: Sequence[Values]) -> list[tuple[str, bool]]:
    cells = []
    for values in columns:
        candidate = next((each for each in choice.candidates if each.values == values), None)
        cells.append(
            (_cell(choice, candidate), candidate is not None and candidate is choice.chosen)
        )
    return cells


def _cell(choice: Choice, candidate: Candidate | None) -> str:
    if candidate is None:
        return "-"
    if not candidate.losses:
        return "not finished"
    loss = candidate.loss(choice.seeds)
    return number(math.exp(min(loss, 700))) if math.isfinite(loss) else "diverged"


def _notes(choices: Sequence[Choice]) -> list[str]:
    asked = {
        f"{choice.convention}, {choice.tokens:,} tokens, "
        f"seed{'s' * (len(choice.seeds) > 1)} {', '.join(map(str, choice.seeds))}": None
        for choice in choices
        if choice.chosen
    }
    return [
        f"PPL of the {SPLIT} split ({'; '.join(asked)}; mean of the loss over seeds). Chosen: "
        + "; ".join(choice.said for choice in choices)
        + ". No number of the test split was looked at for this.",
        *(f"{choice.arm}: {note}" for choice in choices for note in choice.notes),
    ]


def notes_below(title: str, choices: Sequence[Choice]) -> list[str]:
    """What a table of chosen arms says of their settings, a sentence for each length.

    Args:
        title: of the table, as in "tiny on stdlib".
        choices: of the report.
    """
    here: dict[str, list[str]] = {}
    for choice in choices:
        if choice.where.startswith(f"{title}, "):
            here.setdefault(choice.where.removeprefix(f"{title}, "), []).append(choice.said)
    return [
        f"{length}: each arm at its own setting, chosen on the {SPLIT} split: {'; '.join(said)}."
        for length, said in here.items()
    ]


def standing(selection: Selection, folder: str) -> list[str]:
    """How it stands with the test split, in sentences.

    Args:
        selection: the choices.
        folder: where the records are, for the command to type.
    """
    notes = []
    if selection.waiting:
        names = ", ".join(dict.fromkeys(run.data["name"] for run in selection.waiting))
        notes.append(
            f"chosen and not yet measured on the test split, so in no table: {names}. Next: "
            f"hylorada-eval chosen={folder} select={','.join(selection.keys)}"
        )
    if selection.opened:
        names = ", ".join(run.data["name"] for run in selection.opened)
        notes.append(f"the test split was also measured for runs that were not chosen: {names}.")
    return notes


def as_html(shown: Sequence[Grid], notes: Sequence[str]) -> str:
    """A section of the page."""
    parts = ["<h2>Settings chosen on the validation split</h2>"]
    for grid in shown:
        head = "".join(f'<th scope="col" class="n">{html.escape(c)}</th>' for c in grid.columns)
        body = "".join(
            f'<tr class="arm"><th scope="row">{html.escape(label)}</th>'
            + "".join(
                f'<td class="n" data-label="{html.escape(column)}">'
                f"{f'<strong>{text} ✓</strong>' if chosen else text}</td>"
                for column, (text, chosen) in zip(grid.columns, cells, strict=True)
            )
            + "</tr>"
            for label, cells in grid.rows
        )
        parts += [
            f"<h3>{html.escape(grid.title)}</h3>",
            f'<table class="rows"><thead><tr><th scope="col">method</th>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table>",
            _list(grid.notes),
        ]
    return "\n".join([*parts, *([_list(notes)] if notes else [])])


def _list(notes: Sequence[str]) -> str:
    return f'<ul class="notes">{"".join(f"<li>{html.escape(n)}</li>" for n in notes)}</ul>'


def as_markdown(shown: Sequence[Grid], notes: Sequence[str]) -> str:
    """The same for a document."""
    lines = []
    for grid in shown:
        lines += [f"## {grid.title}", "", f"| method | {' | '.join(grid.columns)} |"]
        lines.append(f"|---|{'---:|' * len(grid.columns)}")
        for label, cells in grid.rows:
            texts = (f"**{text}**" if chosen else text for text, chosen in cells)
            lines.append(f"| {label} | {' | '.join(texts)} |")
        lines += ["", *(f"* {note}" for note in grid.notes), ""]
    return "\n".join([*lines, *(f"* {note}" for note in notes), ""])


def print_grids(shown: Sequence[Grid], notes: Sequence[str], console: Console) -> None:
    """The same for a terminal."""
    for grid in shown:
        console.print(Text(grid.title, style="bold"))
        table = RichTable(pad_edge=False)
        table.add_column("method")
        for column in grid.columns:
            table.add_column(column, justify="right")
        for label, cells in grid.rows:
            table.add_row(
                label, *(Text(f"{t} *" if c else t, style="bold" if c else "") for t, c in cells)
            )
        console.print(table)
        for note in grid.notes:
            console.print(Text(note, style="dim"), soft_wrap=True)
        console.print()
    for note in notes:  # on one line, since some hold a command
        console.print(Text(note), soft_wrap=True)
    if notes:
        console.print()


def as_json(selection: Selection) -> str:
    """The choice with every candidate's number; what `selection.json` holds."""
    tree = {
        "select": list(selection.keys),
        "split": SPLIT,
        "choices": [_choice(choice) for choice in selection.choices],
        "not_yet_on_test": [str(run.path) for run in selection.waiting],
        "on_test_without_being_chosen": [str(run.path) for run in selection.opened],
    }
    return json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _choice(choice: Choice) -> dict[str, Any]:
    def named(candidate: Candidate) -> dict[str, Any]:
        return dict(zip(choice.keys, candidate.values, strict=True))

    def finite(loss: float) -> float | None:
        return loss if math.isfinite(loss) else None

    return {
        "arm": choice.arm,
        "where": choice.where,
        "convention": choice.convention,
        "tokens": choice.tokens,
        "seeds": choice.seeds,
        "chosen": named(choice.chosen) if choice.chosen else None,
        "notes": choice.notes,
        "candidates": [
            {
                "values": named(each),
                "chosen": each is choice.chosen,
                "loss": finite(each.loss(choice.seeds)) if each.losses else None,
                "loss_by_seed": {str(s): finite(v) for s, v in sorted(each.losses.items())},
                "not_finished": each.missing,
                "runs": [str(run.path) for run in each.runs],
            }
            for each in choice.candidates
        ],
    }
