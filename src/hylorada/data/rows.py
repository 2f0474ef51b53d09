"""Rows of text out of parquet, JSON and text files, with account of those that cannot be used.

Files are streamed: memory does not grow with their size, but for the one row at hand.
"""

from __future__ import annotations

import gzip
import io
import json
import logging
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hylorada.data.documents import Document
from hylorada.errors import DataError

log = logging.getLogger(__name__)

JSON_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
TEXT_SUFFIXES = (".txt", ".txt.gz", ".raw")
SUFFIXES = (".parquet", *JSON_SUFFIXES, *TEXT_SUFFIXES)

_PARQUET_BATCH = 64  # rows decoded at a time
_JSON_CHUNK = 1 << 20  # characters read at a time
_LISTED = 8  # bad rows named in a message

_BETWEEN = re.compile(r"[\s,]*")  # elements of a JSON array

# What is wrong with a row: the texts under which bad rows are counted.
EMPTY = "empty text"
NOT_UNICODE = "invalid UTF-8"
NOT_JSON = "invalid JSON"


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


def suffix_of(path: Path) -> str:
    """The ending that decides the format, `.gz` with what is before it."""
    suffixes = [s.lower() for s in path.suffixes[-2:]]
    return "".join(suffixes) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


def read_rows(path: Path, columns: list[str]) -> Iterator[Row]:
    """Yield the rows of one file.

    A text file has one row a line, whose only column is the first of `columns`.

    Raises:
        DataError: The file is damaged, of an unknown format, or has none of the columns.
    """
    suffix = suffix_of(path)
    try:
        if suffix == ".parquet":
            yield from _parquet(path, columns)
        elif suffix in JSON_SUFFIXES:
            yield from _json(path)
        elif suffix in TEXT_SUFFIXES:
            yield from _lines(path, columns[0])
        else:
            raise DataError(f"{path}: unknown format; use one of {', '.join(SUFFIXES)}")
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> DataError:
    """The error for a file that exists and cannot be read through."""
    reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:160]
    return DataError(f"{path} cannot be read ({reason}); replace it with a whole copy")


def open_text(path: Path) -> io.BufferedIOBase:
    """Open a file for reading bytes, through gzip where its name says so."""
    return gzip.GzipFile(path) if path.suffix.lower() == ".gz" else path.open("rb")


def _parquet(path: Path, columns: list[str]) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            have = file.schema_arrow.names
            missing = [c for c in columns if c not in have]
            if missing:
                raise missing_columns(path, missing, have)
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH, columns=columns):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(path, number, values)
    except pa.ArrowException as error:
        raise damaged(path, error) from error
    except UnicodeDecodeError as error:
        raise damaged(path, error) from error


def missing_columns(path: Path, missing: list[str], have: list[str]) -> DataError:
    """The error for a file of other columns, which it lists."""
    return DataError(
        f"{path} has no column {', '.join(missing)}; it has {', '.join(have) or 'none'}; "
        "set dataset.text_column, or give the right file"
    )


def _json(path: Path) -> Iterator[Row]:
    with open_text(path) as file:
        head = file.read(64)
        file.seek(0)
        if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
            yield from _json_array(path, file)
        else:
            yield from json_lines(path, file)


def json_lines(path: Path, file: Iterable[bytes]) -> Iterator[Row]:
    """Yield one row a line; blank lines are counted and left out."""
    for number, line in enumerate(file, 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except UnicodeDecodeError:
            yield Row(path, number, None, NOT_UNICODE)
        except (json.JSONDecodeError, RecursionError):
            yield Row(path, number, None, NOT_JSON)
        else:
            yield _object(path, number, values)


def _json_array(path: Path, file: io.BufferedIOBase) -> Iterator[Row]:
    """One JSON array, element by element."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig")  # type: ignore[type-var]
    decoder = json.JSONDecoder()
    try:
        buffer, place, number, want = text.read(_JSON_CHUNK), 0, 0, _JSON_CHUNK
        place = buffer.index("[") + 1
        while True:
            place = _BETWEEN.match(buffer, place).end()  # type: ignore[union-attr]
            if buffer.startswith("]", place):
                return
            try:
                values, place = decoder.raw_decode(buffer, place)
            except json.JSONDecodeError as error:  # incomplete, or wrong
                more = text.read(want)
                if not more:
                    raise DataError(
                        f"{path} cannot be read (element {number + 1}: {error.msg}); "
                        "replace it with a whole copy"
                    ) from error
                buffer, place = buffer[place:] + more, 0
                want *= 2  # doubling: a long element is not parsed many times
                continue
            number, want = number + 1, _JSON_CHUNK
            yield _object(path, number, values)
    except UnicodeDecodeError as error:
        raise damaged(path, error) from error
    finally:
        text.detach()


def _object(path: Path, number: int, values: Any) -> Row:
    if isinstance(values, dict):
        return Row(path, number, values)
    return Row(path, number, None, f"a JSON {type(values).__name__}, not an object")


def _lines(path: Path, column: str) -> Iterator[Row]:
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                yield Row(path, number, None, NOT_UNICODE)
            else:
                yield Row(path, number, {column: text})


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
            self._columns.update(list(values)[:20])
            return f"no column {column}", None
        value = values[column]
        if not isinstance(value, str):
            return f"{column} is {type(value).__name__}, not text", None
        if not may_be_empty and not value.strip():
            return EMPTY, None
        try:
            value.encode()
        except UnicodeEncodeError:  # a lone surrogate, escaped in JSON
            return NOT_UNICODE, None
        return "", value

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
            have = f"{count} rows, none usable ({problems}){found}" if count else "no rows"
            raise DataError(f"{self.what}: {have}; correct the file or dataset.text_column")
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


def document(name: str, text: str, words: int | None = None) -> Document:
    """A document of text that a file stores, with its bytes as stored and plain newlines.

    Where every line ends in `\\r\\n`, the change loses nothing: the log-likelihood of the plain
    text is that of the stored one, whose bytes are therefore the ones to divide by.
    """
    return Document(name, plain_newlines(text), words=words, bytes=len(text.encode()))
