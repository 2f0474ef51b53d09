"""The main table of the page, and below it a card for each method with all else."""

from __future__ import annotations

from hylorada.comparison.cells import NOT_MEASURED, Cell, Column
from hylorada.report.html_parts import numeric, shown_cell, text
from hylorada.report.hypotheses import HEADINGS, LEAD, TITLE
from hylorada.report.table import GROUP, Row, Table, cell


def main_table(table: Table) -> str:
    """Few columns; on a telephone each row becomes a card of its own."""
    head = "".join(
        f'<th scope="col"{numeric(column.numeric)}>{text(column.heading)}</th>'
        for column in table.main
    )
    rows = []
    for section in table.sections:
        rows.append(
            f'<tr class="section"><th scope="rowgroup" colspan="{len(table.main)}">'
            f"{text(section.heading)}</th></tr>"
        )
        rows += [_row(table, row) for row in section.rows]
    return (
        f'<table class="main rows"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _row(table: Table, row: Row) -> str:
    cells = []
    for column in table.main:
        item = cell(row, column.key)
        if column.key == "method":
            cells.append(f'<th scope="row">{text(item.text)}</th>')
            continue
        label = f' data-label="{text(column.heading)}"'
        words = item.value is None and len(item.text) > len(NOT_MEASURED)
        kind = ' class="n words"' if words else numeric(column.numeric)
        if item.text == "-":
            kind = ' class="n nothing"'
        cells.append(f"<td{kind}{label}>{shown_cell(item)}</td>")
    return f'<tr class="{row.kind}">{"".join(cells)}</tr>'


def hypotheses(table: Table) -> str:
    """The paper's figures in a table of their own, marked as what they are."""
    if not table.hypotheses:
        return ""
    head = "".join(f'<th scope="col">{text(heading)}</th>' for heading in HEADINGS)
    rows = "".join(
        f'<tr><th scope="row">{text(claim)}</th>'
        f'<td class="claim" data-label="{text(HEADINGS[1])}">{text(figure)}</td>'
        f'<td data-label="{text(HEADINGS[2])}">{text(measured)}</td></tr>'
        for claim, figure, measured in (each.cells for each in table.hypotheses)
    )
    return (
        f'<h3>{TITLE}</h3><p class="lead">{text(LEAD)}</p>'
        f'<table class="rows"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    )


def cards(table: Table) -> str:
    """What each method trained, what it cost, and what else was measured of it."""
    parts = []
    for section in table.sections:
        found = table.cards(section)
        if found:
            inner = "".join(_card(row, cells) for row, cells in found)
            title = text(f"Each method, {section.heading}")
            parts.append(f'<h3>{title}</h3><div class="cards">{inner}</div>')
    return "\n".join(parts)


def _card(row: Row, cells: list[tuple[Column, Cell]]) -> str:
    items = "".join(
        f"<dt{_part(column)}>{text(column.heading)}</dt><dd>{shown_cell(item)}</dd>"
        for column, item in cells
    )
    name = text(cell(row, "method").text)
    return (
        f'<article class="card {row.kind}"><h4>{name}</h4><dl class="short">{items}</dl></article>'
    )


def _part(column: Column) -> str:
    return ' class="part"' if column.key.startswith(GROUP) else ""
