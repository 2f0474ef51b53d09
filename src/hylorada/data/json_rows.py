"""Rows of text out of JSON: one object a line, an array, or objects over several lines.

What is one object that holds all rows inside of it is refused with the layout that is meant: a
list under a name may be many texts, or the parts of one.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hylorada.data.files import LARGEST, damaged, lines, open_text
from hylorada.data.rows import (
    NOT_JSON,
    NOT_UNICODE,
    TOO_DEEP,
    TOO_LONG,
    TOO_MANY_DIGITS,
    Row,
)
from hylorada.errors import DataError

_CHUNK = 1 << 20  # characters read at a time
_BETWEEN = re.compile(r"[\s,]*")  # elements of an array
_MARK = b"\xef\xbb\xbf"  # of UTF-8


def json_rows(path: Path, column: str = "") -> Iterator[Row]:
    """Yield the rows of one file.

    Args:
        path: the file.
        column: of the text, which a value that is a text by itself belongs to.

    Raises:
        DataError: it cannot be read through, or its rows lie inside one object.
    """
    with open_text(path) as file:
        start = file.peek(1 << 12).removeprefix(_MARK).lstrip()  # type: ignore[attr-defined]
        if start[:1] == b"[":
            yield from _values(path, file, column, "[")
        elif _goes_on(start.split(b"\n", 1)[0]):
            yield from _whole(path, _values(path, file, column, ""), column)
        else:
            yield from _whole(path, json_lines(path, file, column), column)


def json_lines(path: Path, file: Any, column: str = "") -> Iterator[Row]:
    """Yield one row a line of a binary file; blank lines are counted and left out."""
    for number, line in lines(file):
        if line is None:
            yield Row(path, number, None, TOO_LONG)
            continue
        if number == 1:
            line = line.removeprefix(_MARK)
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except UnicodeDecodeError:
            yield Row(path, number, None, NOT_UNICODE)
        except json.JSONDecodeError:
            yield Row(path, number, None, NOT_JSON)
        except RecursionError:
            yield Row(path, number, None, TOO_DEEP)
        except ValueError:  # Python turns no more than 4300 digits into a number
            yield Row(path, number, None, TOO_MANY_DIGITS)
        else:
            yield _row(path, number, values, column)


def _goes_on(line: bytes) -> bool:
    """Whether a first line is the beginning of a value over several lines."""
    return line.rstrip()[-1:] in (b"{", b"[", b",", b":")


def _values(path: Path, file: io.BufferedIOBase, column: str, opening: str) -> Iterator[Row]:
    """One value after the other, of an array or of none."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig")  # type: ignore[type-var]
    decoder = json.JSONDecoder()
    try:
        buffer, number, want = text.read(_CHUNK), 0, _CHUNK
        place = buffer.index(opening) + len(opening)
        while True:
            place = _BETWEEN.match(buffer, place).end()  # type: ignore[union-attr]
            if opening and buffer.startswith("]", place):
                return
            try:
                values, place = decoder.raw_decode(buffer, place)
            except json.JSONDecodeError as error:  # incomplete, or wrong
                more = text.read(want) if len(buffer) - place < LARGEST else ""
                if not more and not opening and place == len(buffer):
                    return
                if not more:
                    raise _broken(path, number + 1, error, len(buffer) - place) from error
                buffer, place = buffer[place:] + more, 0
                want *= 2  # doubling: a long value is not parsed many times
                continue
            except (RecursionError, ValueError) as error:
                reason = TOO_DEEP if isinstance(error, RecursionError) else TOO_MANY_DIGITS
                raise DataError(
                    f"{path}: element {number + 1} is {reason}; correct it, or write one object a "
                    "line, where such a row is left out"
                ) from error
            number, want = number + 1, _CHUNK
            yield _row(path, number, values, column)
    except UnicodeDecodeError as error:
        raise damaged(path, error) from error
    finally:
        text.detach()


def _broken(path: Path, number: int, error: json.JSONDecodeError, size: int) -> DataError:
    if size >= LARGEST:
        return DataError(
            f"{path}: element {number} is larger than {LARGEST >> 20} MiB; write one object a line"
        )
    return DataError(
        f"{path} cannot be read (element {number}: {error.msg}); replace it with a whole copy"
    )


def _row(path: Path, number: int, values: Any, column: str) -> Row:
    if isinstance(values, str) and column:
        values = {column: values}
    if isinstance(values, dict):
        return Row(path, number, values)
    return Row(path, number, None, f"a JSON {type(values).__name__}, not an object")


def _whole(path: Path, rows: Iterator[Row], column: str) -> Iterator[Row]:
    """The rows; a file of a single object must not be a row that holds the others."""
    first = next(rows, None)
    if first is None:
        return
    second = next(rows, None)
    if second is None and first.values is not None and column:
        _refuse_container(path, first.values, column)
    yield first
    if second is not None:
        yield second
        yield from rows


def _refuse_container(path: Path, values: dict[str, Any], column: str) -> None:
    """Refuse an object with its rows inside, and say how they are written instead.

    Raises:
        DataError: it is one.
    """
    if isinstance(values.get(column), str):
        return
    layout = f'{{"{column}": "…"}} on each line, or [{{"{column}": "…"}}, …]'
    texts = values.get(column)
    if isinstance(texts, list | dict):
        made, what = f".{column}[] | {{{column}: .}}", f"the texts under {column!r}"
    else:
        keys = [key for key, value in values.items() if _holds_rows(value, len(values) == 1)]
        if not keys:
            return
        made, what = f".{keys[0]}[]", f"the rows under {', '.join(map(repr, keys))}"
    raise DataError(
        f"{path}: one object with {what}; rows are read as {layout} (as made by: jq -c "
        f"'{made}' {path.name} > rows.jsonl)"
    )


def _holds_rows(value: Any, alone: bool) -> bool:
    """Whether a value is rows: several objects; or several texts, if it is all that there is."""
    if isinstance(value, dict):
        return bool(value) and all(isinstance(item, dict) for item in value.values())
    kinds = (dict, str) if alone else dict
    return isinstance(value, list) and bool(value) and isinstance(value[0], kinds)
