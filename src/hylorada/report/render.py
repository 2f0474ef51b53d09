"""A `Table` as text: for a terminal, for a document, for a program, for a paper.

Every function is pure: the same table gives the same bytes.
"""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from hylorada.comparison.cells import Cell
from hylorada.report.table import NOT_MEASURED, Row, Table

MISSING = Cell(NOT_MEASURED)


def cell(row: Row, key: str) -> Cell:
    """A cell of a row; one that says "not measured" if there is none."""
    return row.cells.get(key, MISSING)


def for_terminal(table: Table) -> RenderableType:
    """The table for rich: numbers right, methods left, the base dim, what failed in red."""
    # Parameters by group are too wide for a terminal; they follow as lines.
    columns = [column for column in table.columns if column.key not in ("groups", "length")]
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
        shown.add_row(Text(section.heading, style="bold"))
        for row in section.rows:
            style = {"base": "dim", "failed": "red"}.get(row.kind, "")
            texts = [Text(cell(row, column.key).text) for column in columns]
            shown.add_row(*texts, style=style)
    groups = dict.fromkeys(
        f"{cell(row, 'method').text}, {section.heading}: trains {cell(row, 'groups').text}"
        for section in table.sections
        for row in section.rows
        if cell(row, "groups").text not in ("-", NOT_MEASURED)
    )
    lines = [Text(line, style="dim") for line in [*groups, *table.notes]]
    return Group(shown, *lines)


def print_tables(tables: list[Table], console: Console) -> None:
    """Print tables; on something that is no terminal wide enough that nothing is folded."""
    if not console.is_terminal:
        console.width = max(console.width, 200)
    for table in tables:
        console.print(for_terminal(table))
        console.print()


def markdown(table: Table) -> str:
    """A GitHub-flavoured Markdown table and its notes."""

    def line(texts: list[str]) -> str:
        escaped = (" ".join(text.replace("|", "\\|").split()) for text in texts)
        return f"| {' | '.join(escaped)} |"

    rows = [
        f"## {table.title}",
        "",
        line([column.heading for column in table.columns]),
        line(["---:" if column.numeric else "---" for column in table.columns]),
    ]
    for section in table.sections:
        for row in section.rows:
            rows.append(line([cell(row, column.key).text for column in table.columns]))
    return "\n".join([*rows, "", *(f"* {note}" for note in table.notes), ""])


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
    """All tables with values, texts and intervals."""
    tree = [
        {
            "title": table.title,
            "columns": [{"key": c.key, "heading": c.heading} for c in table.columns],
            "sections": [
                {
                    "heading": section.heading,
                    "rows": [
                        {
                            "kind": row.kind,
                            **{c.key: _cell_tree(cell(row, c.key)) for c in table.columns},
                        }
                        for row in section.rows
                    ],
                }
                for section in table.sections
            ],
            "notes": table.notes,
        }
        for table in tables
    ]
    return json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _cell_tree(item: Cell) -> dict[str, Any]:
    tree: dict[str, Any] = {"text": item.text, "value": item.value}
    if item.low is not None:
        tree |= {"low": item.low, "high": item.high}
    return tree


def latex(table: Table) -> str:
    """A booktabs table, without the column of parameters by group."""
    columns = [column for column in table.columns if column.key != "groups"]
    lines = [
        f"% {table.title}; needs booktabs",
        f"\\begin{{tabular}}{{{''.join('r' if c.numeric else 'l' for c in columns)}}}",
        "\\toprule",
        " & ".join(_tex(column.heading) for column in columns) + r" \\",
    ]
    for section in table.sections:
        lines.append("\\midrule")
        for row in section.rows:
            lines.append(" & ".join(_tex(cell(row, c.key).text) for c in columns) + r" \\")
    lines += ["\\bottomrule", "\\end{tabular}"]
    return "\n".join([*lines, *(f"% {note}" for note in table.notes), ""])


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    "[": "{[}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)
