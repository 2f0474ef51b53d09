"""How a measurement's numbers are shown: a column of a table, a table of the summary."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Shown:
    """A number that has a column in tables and in the summary.

    Attributes:
        metric: its name in records.
        key: of the column, for programs.
        heading: of the column, for people.
        scale: what its value is multiplied by: 100 for a share in percent.
        digits: behind the point.
        sign: "+" to write one before positive numbers too.
        other: what a cell says that was asked something else than most rows.
    """

    metric: str
    key: str
    heading: str
    scale: float = 1
    digits: int = 3
    sign: str = ""
    other: str = "other questions"

    def text(self, value: float | None) -> str:
        """The number as it is shown."""
        return "-" if value is None else f"{self.scale * value:{self.sign}.{self.digits}f}"


@dataclass
class Lines:
    """A table of the summary that a run ends with.

    Attributes:
        title: above it.
        headers: of the columns behind the first.
        rows: cells as they are shown, the name first.
        first: header of the first column.
        wraps: whether headers may be broken; names are where they may not.
    """

    title: str
    headers: list[str]
    rows: list[list[str]] = field(default_factory=list)
    first: str = "model"
    wraps: bool = False
