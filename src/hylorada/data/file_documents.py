"""The documents of some files: a row is a document, a text file is one.

Where files hold one split alone, all of their documents are in it. Where nothing says which split
they are of, each document goes by the hash of its text, so that equal texts never stand on both
sides, and a text file alone is cut in three.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from hylorada.config import DatasetConfig
from hylorada.data.documents import Document
from hylorada.data.files import TEXT_SUFFIXES, UNREADABLE, damaged, form_of, open_text
from hylorada.data.formats import read_rows
from hylorada.data.rows import NOT_TEXT, NOT_UNICODE, Row, RowAccount, document
from hylorada.data.splits import part_of_text, split_of_text
from hylorada.errors import DataError
from hylorada.process.counts import number_of

log = logging.getLogger(__name__)


def documents(
    files: list[Path], root: Path, dataset: DatasetConfig, what: str
) -> Iterator[Document]:
    """Yield the documents of all files, named by their files' paths below `root`.

    Args:
        files: of one split.
        root: the folder that they lie below.
        dataset: its `text_column` holds the text.
        what: the data set and where it lies, for messages.

    Raises:
        DataError: A file that cannot be read, or no usable row.
    """
    account = RowAccount(f"dataset {what}")
    for file in files:
        yield from _documents_of(file, root, dataset.text_column, account)
    account.close()


def part_of_documents(
    files: list[Path], root: Path, dataset: DatasetConfig, split: str, what: str, way: str
) -> Iterator[Document]:
    """Yield those of all documents that are of one split by their text.

    Args:
        files: of no split in particular.
        root: the folder that they lie below.
        dataset: its `text_column` holds the text.
        split: train, validation or test.
        what: the data set and where it lies, for messages.
        way: what to do where no document is in this split, for a message.

    Raises:
        DataError: A file that cannot be read, no usable row, or no document in this split.
    """
    alone = is_one_text(files)
    read, yielded = 0, 0
    for item in documents(files, root, dataset, what):
        read += 1
        if alone:
            part = part_of_text(item.text, split)
            if part.strip():
                yielded += 1
                yield document(f"{item.name} ({split})", part)
        elif split_of_text(item.text) == split:
            yielded += 1
            yield item
    if not yielded:
        raise DataError(
            f"dataset {what}: its {number_of(read, 'document')}, split 90 / 5 / 5 % by the hash of "
            f"their text, leave none for {split}; {way}"
        )


def is_one_text(files: list[Path]) -> bool:
    """Whether files are a single text, which is cut in three."""
    return len(files) == 1 and form_of(files[0]) in TEXT_SUFFIXES


def _documents_of(file: Path, root: Path, column: str, account: RowAccount) -> Iterator[Document]:
    name = file.relative_to(root).as_posix()
    if form_of(file) in TEXT_SUFFIXES:
        text = account.text(_whole(file, column), column)
        if text is not None:
            yield document(name, text)
        return
    for row in read_rows(file, [column]):
        text = account.text(row, column)
        if text is not None:
            yield document(f"{name}:{row.number}", text)


def _whole(file: Path, column: str) -> Row:
    """A text file as one row."""
    try:
        with open_text(file) as source:
            text = source.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Row(file, 1, None, f"{NOT_UNICODE} at byte {error.start}")
    except UNREADABLE as error:
        raise damaged(file, error) from error
    return Row(file, 1, None, NOT_TEXT) if "\0" in text else Row(file, 1, {column: text})


@lru_cache(maxsize=64)
def say_once(message: str) -> None:
    """Log a line; a data set is read twice when it is tokenised: first for its hash."""
    log.info(message)
