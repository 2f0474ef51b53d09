"""A row of a file, and the account of those that cannot be used."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hylorada.data.documents import Document
from hylorada.data.files import LARGEST
from hylorada.errors import DataError
from hylorada.process.counts import number_of

log = logging.getLogger(__name__)

_LISTED = 8  # bad rows named in a message

# What is wrong with a row: the texts under which bad rows are counted.
EMPTY = "empty text"
NOT_UNICODE = "invalid UTF-8"
NOT_JSON = "invalid JSON"
TOO_DEEP = "nested too deeply"
TOO_MANY_DIGITS = "a number of thousands of digits"
TOO_LONG = f"more than {LARGEST >> 20} MiB"
NOT_TEXT = "NUL characters, as in a binary file or in UTF-16 without a mark"
_ADVICE = {
    NOT_UNICODE: "write it in UTF-8, as by iconv -f WINDOWS-1252 -t UTF-8",
    NOT_TEXT: "write it in UTF-8, as by iconv -f UTF-16LE -t UTF-8",
    NOT_JSON: "write one whole object on each line",
    TOO_LONG: "write one object on each line, of one document",
}


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
        path: The file.
        number: Its place in the file, from 1; the line number in a text or JSON-lines file.
        values: Its columns; None where it cannot be read.
        problem: Why it cannot be read.
    """

    path: Path
    number: int
    values: dict[str, Any] | None
    problem: str = ""


def plain_newlines(text: str) -> str:
    """The text with `\\n` for `\\r\\n` and `\\r`, as Python's text files are read."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


class RowAccount:
    """Counts the usable rows of a data set and names those that are not.

    Args:
        what: The data set and split, for messages.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.usable = 0
        self.bad: dict[tuple[Path, str], list[int]] = {}
        self._columns: set[str] = set()
        self._texts: set[str] = set()

    def text(self, row: Row, column: str, *, may_be_empty: bool = False) -> str | None:
        """The text of a row; None, and counted, if it has none that can be used."""
        problem, value = row.problem, None
        if row.values is not None:
            problem, value = self._check(row.values, column, may_be_empty)
        if value is None:
            self.reject(row, problem)
            return None
        self.usable += 1
        return value

    def _check(
        self, values: dict[str, Any], column: str, may_be_empty: bool
    ) -> tuple[str, str | None]:
        if column not in values:
            self._found(values)
            return f"no column {column}", None
        value = values[column]
        if not isinstance(value, str):
            if value is not None:
                self._found({name: values[name] for name in values if name != column})
            return f"{column} is {type(value).__name__}, not text", None
        if not may_be_empty and not value.strip():
            return EMPTY, None
        try:
            value.encode()
        except UnicodeEncodeError:  # a lone surrogate, escaped in JSON
            return NOT_UNICODE, None
        return "", value

    def _found(self, values: dict[str, Any]) -> None:
        """Note the columns that there are, and which of them are of text."""
        self._columns.update(list(values)[:20])
        self._texts.update(name for name in values if isinstance(values[name], str))

    def reject(self, row: Row, problem: str) -> None:
        """Count a row as one that cannot be used."""
        self.bad.setdefault((row.path, problem), []).append(row.number)

    def close(self) -> None:
        """Say which rows were left out.

        Raises:
            DataError: None was usable.
        """
        count = sum(map(len, self.bad.values()))
        problems = "; ".join(
            f"{problem}: {path.name} row {_numbers(rows)}"
            for (path, problem), rows in sorted(self.bad.items())
        )
        if not self.usable:
            found = f"; columns found: {', '.join(sorted(self._columns))}" if self._columns else ""
            if self._texts and self._texts < self._columns:
                found += f" (of text: {', '.join(sorted(self._texts))})"
            have = (
                f"{number_of(count, 'row')}, none usable ({problems}){found}"
                if count
                else "no rows"
            )
            told = (told for problem, told in _ADVICE.items() if problem in problems)
            advice = next(told, "correct the file or dataset.text_column")
            raise DataError(f"{self.what}: {have}; {advice}")
        if count:
            _warn_once(f"{self.what}: {count} of {count + self.usable} rows left out ({problems})")


@lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    """A data set is read twice when it is tokenised: first for its hash."""
    log.warning(message)


def _numbers(rows: list[int]) -> str:
    listed = ", ".join(map(str, rows[:_LISTED]))
    return listed if len(rows) <= _LISTED else f"{listed} and {len(rows) - _LISTED} more"


def unique_names() -> Callable[[str], str]:
    """Return a function that makes repeated names distinct: `a`, `a (2)`, `a (3)`."""
    seen: dict[str, int] = {}

    def unique(name: str) -> str:
        seen[name] = seen.get(name, 0) + 1
        return name if seen[name] == 1 else f"{name} ({seen[name]})"

    return unique


def document(name: str, text: str) -> Document:
    """A document of text that a file stores, with its bytes as stored and plain newlines.

    Where every line ends in `\\r\\n`, the change loses nothing: the log-likelihood of the plain
    text is that of the stored one, whose bytes are therefore the ones to divide by.
    """
    return Document(name, plain_newlines(text), bytes=len(text.encode()))
