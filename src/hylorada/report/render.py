"""A `Table` as text: for a terminal, for a document, for a program, for a paper.

Every function is pure: the same table gives the same bytes. The page is in `page`.
"""

from __future__ import annotations

import csv
import io
import json
import re
import textwrap
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from hylorada.comparison.cells import Cell, Column
from hylorada.report.hypotheses import HEADINGS, LEAD, TITLE
from hylorada.report.table import MISSING, Row, Section, Table, cell

_NARROW = 48  # columns of a heading, which stands in the first column and must not widen it
_VERDICT_STYLES = {"better": "bold green", "worse": "bold red", "matches": "bold"}


def for_terminal(table: Table) -> RenderableType:
    """The table for rich: numbers right, methods left, the base dim, what failed in red."""
    # All windows of a section are the same but that of the base, which says so itself.
    columns = [column for column in table.main if column.key != "length"]
    shown = RichTable(title=table.title, title_justify="left", title_style="bold", pad_edge=False)
    for column in columns:
        shown.add_column(
            column.heading,
            justify="right" if column.numeric else "left",
            overflow="fold",
            no_wrap=column.key == "method",
        )
    for section in table.sections:
        shown.add_section()
        names = [len(cell(row, "method").text) for row in section.rows]
        heading = textwrap.wrap(section.heading, max(_NARROW, *names))
        shown.add_row(Text("\n".join(heading), style="bold"))
        for row in section.rows:
            style = {"base": "dim", "failed": "red"}.get(row.kind, "")
            texts = [Text(cell(row, column.key).text) for column in columns]
            shown.add_row(*texts, style=style)
    verdicts = [Text(v.text, style=_VERDICT_STYLES.get(v.kind, "")) for v in table.verdicts]
    cards = [
        f"{cell(row, 'method').text}, {section.heading}: "
        + "; ".join(f"{column.heading} {item.text}" for column, item in told if item is not MISSING)
        + "."
        for section in table.sections
        for row, told in table.cards(section)
        if told
    ]
    return Group(shown, *verdicts, *(Text(line, style="dim") for line in [*cards, *table.notes]))


def print_tables(tables: list[Table], console: Console) -> None:
    """Print tables; on something that is no terminal wide enough that nothing is folded."""
    if not console.is_terminal:
        console.width = max(console.width, 200)
    for table in tables:
        console.print(for_terminal(table))
        console.print()


def markdown(table: Table) -> str:
    """Verdicts, the main table, the table of all else, and notes, GitHub-flavoured."""
    parts = [f"## {table.title}", ""]
    if table.verdicts:
        parts += [*(f"* {verdict.text}" for verdict in table.verdicts), ""]
    parts += [*_markdown_table(table, table.main), ""]
    method = [column for column in table.columns if column.key in ("method", "length")]
    parts += [*_markdown_table(table, [*method, *table.details]), ""]
    if table.hypotheses:
        rows = [_line(HEADINGS), _line(["---"] * len(HEADINGS))]
        rows += [_line(each.cells) for each in table.hypotheses]
        parts += [f"{TITLE}. {LEAD}", "", *rows, ""]
    return "\n".join([*parts, *(f"* {note}" for note in table.notes), ""])


def _line(texts: Sequence[str]) -> str:
    escaped = (" ".join(text.replace("|", "\\|").split()) for text in texts)
    return f"| {' | '.join(escaped)} |"


def _markdown_table(table: Table, columns: Sequence[Column]) -> list[str]:
    lines = [
        _line([column.heading for column in columns]),
        _line(["---:" if column.numeric else "---" for column in columns]),
    ]
    for section in table.sections:
        if len(table.sections) > 1:
            lines.append(_line([f"**{section.heading}**", *[""] * (len(columns) - 1)]))
        lines += [_line([cell(row, column.key).text for column in columns]) for row in section.rows]
    return lines


def as_csv(tables: list[Table]) -> str:
    """All tables as one CSV: plain numbers, the ends of intervals in columns of their own.

    A numeric column holds numbers or nothing: a program reads it without knowing our words for what
    is missing, which stand in the other forms (`kind` says "failed" here).
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header: list[str] | None = None
    for table in tables:
        names = ["table", "section", "kind"]
        for column in table.columns:
            names.append(column.key)
            if column.interval:
                names += [f"{column.key}_low", f"{column.key}_high"]
        if header is None:
            header = names
            writer.writerow(header)
        for section in table.sections:
            for row in section.rows:
                values: list[Any] = [table.title, section.heading, row.kind]
                for column in table.columns:
                    item = cell(row, column.key)
                    missing = "" if column.numeric else item.text
                    values.append(missing if item.value is None else item.value)
                    if column.interval:
                        values += ["" if v is None else v for v in (item.low, item.high)]
                writer.writerow(values)
    return out.getvalue()


def as_json(tables: list[Table]) -> str:
    """All tables with values, texts, intervals and verdicts."""
    tree = [
        {
            "title": table.title,
            "verdicts": [{"kind": each.kind, "text": each.text} for each in table.verdicts],
            "columns": [
                {"key": c.key, "heading": c.heading, "main": c in table.main} for c in table.columns
            ],
            "sections": [
                {"heading": section.heading, "rows": _rows_tree(table, section)}
                for section in table.sections
            ],
            "paper": [each.tree() for each in table.hypotheses],
            "notes": table.notes,
        }
        for table in tables
    ]
    return json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _rows_tree(table: Table, section: Section) -> list[dict[str, Any]]:
    def cells(row: Row) -> dict[str, Any]:
        return {column.key: _cell_tree(cell(row, column.key)) for column in table.columns}

    return [{"kind": row.kind, **cells(row)} for row in section.rows]


def _cell_tree(item: Cell) -> dict[str, Any]:
    tree: dict[str, Any] = {"text": item.text, "value": item.value}
    if item.low is not None:
        tree |= {"low": item.low, "high": item.high}
    return tree


def latex(table: Table) -> str:
    """The main table and that of all else, for booktabs; verdicts and notes as comments."""
    method = [column for column in table.columns if column.key in ("method", "length")]
    return "\n".join(
        [
            f"% {table.title}; needs booktabs",
            *(f"% {verdict.text}" for verdict in table.verdicts),
            *_tabular(table, table.main),
            "",
            *_tabular(table, [*method, *table.details]),
            *_claims(table),
            *(f"% {note}" for note in table.notes),
            "",
        ]
    )


def _claims(table: Table) -> list[str]:
    if not table.hypotheses:
        return []
    rows = [HEADINGS, *(each.cells for each in table.hypotheses)]
    head, *lines = (" & ".join(map(_tex, row)) + r" \\" for row in rows)
    return [
        "", f"% {TITLE}. {LEAD}", "\\begin{tabular}{lll}", "\\toprule", head, "\\midrule", *lines,
        "\\bottomrule", "\\end{tabular}",
    ]  # fmt: skip


def _tabular(table: Table, columns: Sequence[Column]) -> list[str]:
    lines = [
        f"\\begin{{tabular}}{{{''.join('r' if c.numeric else 'l' for c in columns)}}}",
        "\\toprule",
        " & ".join(_tex(column.heading) for column in columns) + r" \\",
    ]
    for section in table.sections:
        lines.append("\\midrule")
        if len(table.sections) > 1:
            heading = f"\\textit{{{_tex(section.heading)}}}"
            lines.append(f"\\multicolumn{{{len(columns)}}}{{l}}{{{heading}}} \\\\")
        for row in section.rows:
            lines.append(" & ".join(_tex(cell(row, c.key).text) for c in columns) + r" \\")
    return [*lines, "\\bottomrule", "\\end{tabular}"]


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    "[": "{[}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def _tex(text: str) -> str:
    escaped = "".join(_TEX.get(character, character) for character in text)
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", escaped)  # a minus, not a hyphen
