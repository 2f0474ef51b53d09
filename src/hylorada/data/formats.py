"""Rows of text out of parquet, JSON, CSV and text files, by the ending of their names.

Files are streamed: memory does not grow with their size, but for the one row at hand.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hylorada.data.files import (
    JSON_SUFFIXES,
    LARGEST,
    TABLE_SUFFIXES,
    UNREADABLE,
    damaged,
    form_of,
    lines,
    open_text,
    unknown_form,
)
from hylorada.data.json_rows import json_rows
from hylorada.data.rows import NOT_UNICODE, TOO_LONG, Row
from hylorada.errors import DataError

_PARQUET_BATCH = 64  # rows decoded at a time
_DELIMITERS = {".csv": ",;\t|", ".tsv": "\t"}  # the first that gives the column
_SHOWN = 12  # names of columns in a message


def read_rows(path: Path, columns: list[str]) -> Iterator[Row]:
    """Yield the rows of one file.

    A text file has one row a line, whose only column is the first of `columns`.

    Raises:
        DataError: The file is damaged, of an unknown form, or has none of the columns.
    """
    form = form_of(path)
    try:
        if not form:
            raise unknown_form(path)
        if form == ".parquet":
            yield from _parquet(path, columns)
        elif form in JSON_SUFFIXES:
            yield from json_rows(path, columns[0] if columns else "")
        elif form in TABLE_SUFFIXES:
            yield from _table(path, columns, _DELIMITERS[form])
        else:
            yield from _lines(path, columns[0])
    except UNREADABLE as error:
        raise damaged(path, error) from error


def _parquet(path: Path, columns: list[str]) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            have = file.schema_arrow.names
            missing = [c for c in columns if c not in have]
            if missing:
                texts = [f.name for f in file.schema_arrow if _is_text(f.type)]
                raise missing_columns(path, missing, texts or have)
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH, columns=columns):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(path, number, values)
    except pa.ArrowException as error:
        raise damaged(path, error) from error
    except UnicodeDecodeError as error:
        raise damaged(path, error) from error


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def missing_columns(path: Path, missing: list[str], have: list[str]) -> DataError:
    """The error for a file of other columns; those of text, where it has any, are listed."""
    shown = ", ".join(name[:40] for name in have[:_SHOWN])
    more = f" and {len(have) - _SHOWN} more" if len(have) > _SHOWN else ""
    return DataError(
        f"{path} has no column {', '.join(missing)}; it has {shown + more or 'none'}; "
        "set dataset.text_column, or give the right file"
    )


def _table(path: Path, columns: list[str], delimiters: str) -> Iterator[Row]:
    """A table with a line of names above it, as RFC 4180 and spreadsheets write it.

    A row has the number of its first line.
    """
    csv.field_size_limit(LARGEST)  # characters; Python's own limit is 128 Ki
    with open_text(path) as file:
        # What is not UTF-8 stays in its row, where it is counted.
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")  # type: ignore[type-var]
        try:
            head = text.readline(LARGEST)
            names, delimiter = _header(head, columns, delimiters)
            missing = [c for c in columns if c not in names]
            if missing and head:
                raise missing_columns(path, missing, names)
            reader = csv.reader(_capped(text), delimiter=delimiter)
            above = 1 + reader.line_num
            for cells in reader:
                number, above = above + 1, 1 + reader.line_num
                if cells:
                    yield Row(path, number, dict(zip(names, cells, strict=False)))
        except csv.Error as error:
            raise damaged(path, error) from error
        finally:
            text.detach()


def _capped(text: Any) -> Iterator[str]:
    """Lines, of which no more than `LARGEST` characters are held in memory."""
    while line := text.readline(LARGEST):
        if len(line) == LARGEST:
            raise csv.Error(f"a line of {TOO_LONG}")
        yield line


def _header(line: str, columns: list[str], delimiters: str) -> tuple[list[str], str]:
    """The names of a table's columns, and what stands between them."""
    found = []
    for delimiter in delimiters:
        names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
        if set(columns) <= set(names):
            return names, delimiter
        found.append((names, delimiter))
    return max(found, key=lambda each: len(each[0]))


def _lines(path: Path, column: str) -> Iterator[Row]:
    with open_text(path) as file:
        for number, line in lines(file):
            if line is None:
                yield Row(path, number, None, TOO_LONG)
                continue
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                yield Row(path, number, None, NOT_UNICODE)
            else:
                yield Row(path, number, {column: text})
