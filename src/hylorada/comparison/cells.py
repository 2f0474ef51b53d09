"""What a table is made of."""

from __future__ import annotations

from dataclasses import dataclass

NOT_MEASURED = "not measured"


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
    """A column of a table.

    Attributes:
        key: its name for programs.
        heading: its name for people.
        numeric: whether it holds numbers.
        interval: whether these may have an interval, whose ends programs read too.
        status: whether it says of a run that did not finish how it ended.
        cost: whether it stands among the costs, behind the trainable parameters.
        main: whether it is one of the few of the main table; the others are in each method's card,
            and in all that programs read.
    """

    key: str
    heading: str
    numeric: bool = True
    interval: bool = False
    status: bool = False
    cost: bool = False
    main: bool = False


@dataclass(frozen=True)
class Verdict:
    """A sentence about one comparison.

    Attributes:
        text: the sentence.
        kind: "better", "worse", "matches", "none shown" or "no result".
    """

    text: str
    kind: str


def with_interval(text: str, low: str, high: str, remark: str = "") -> str:
    """A number, its interval, and what must stand beside it: "-4.9 [-6.1, -3.7], one seed"."""
    return f"{text} [{low}, {high}]" + (f", {remark}" if remark else "")


def number(value: float, like: float | None = None) -> str:
    """A positive number with some four digits; `like` fixes the decimals by another number."""
    if value == float("inf"):
        return "overflow"
    size = abs(value if like is None else like)
    if size >= 1e5:
        return f"{value:.3g}"
    return f"{value:,.{3 if size < 10 else 2 if size < 1000 else 1}f}"
