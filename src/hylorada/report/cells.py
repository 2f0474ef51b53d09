"""What a table is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """A value and how it is shown.

    Attributes:
        text: for people.
        value: for programs; None where nothing was measured.
        low: lower end of an interval around the value.
        high: its upper end.
    """

    text: str
    value: float | int | str | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Column:
    """A column: its key for programs, its heading for people."""

    key: str
    heading: str
    numeric: bool = True
