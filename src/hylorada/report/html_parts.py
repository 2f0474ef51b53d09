"""Pieces of the page: escaped text, numbers with their intervals, lists."""

from __future__ import annotations

import html
from collections.abc import Iterable

from hylorada.comparison.cells import NOT_MEASURED, Cell, number


def text(value: object) -> str:
    """Any value as text in which nothing is markup."""
    return html.escape(str(value))


def shown_cell(item: Cell) -> str:
    """The number, and below it its interval and what must stand beside that.

    An interval that is not in the cell's text is written with the number's own digits.
    """
    value, bracket, rest = item.text.partition(" [")
    if value == NOT_MEASURED:
        return f'<span class="none">{value}</span>'
    if bracket:
        ends, _, remark = rest.partition("]")
        comma, _, words = remark.partition(" ")  # of ", one seed"
        below = f"<b>[{text(ends)}]{comma}</b>" + (f" <b>{text(words)}</b>" if words else "")
    elif item.low is not None and item.high is not None and isinstance(item.value, int | float):
        ends = ", ".join(number(end, like=item.value) for end in (item.low, item.high))
        below = f"<b>[{ends}]</b>"
    else:
        return f'<span class="v">{text(value)}</span>'
    return f'<span><span class="v">{text(value)}</span> <span class="i">{below}</span></span>'


def notes(texts: Iterable[str]) -> str:
    """Small print."""
    return '<ul class="notes">' + "".join(f"<li>{text(each)}</li>" for each in texts) + "</ul>"


def numeric(is_number: bool) -> str:
    """The class of a cell that holds a number."""
    return ' class="n"' if is_number else ""
