"""Text of one's own: a file or a folder of parquet, JSON, CSV or text files.

A row is a document, a text file is one. Files or folders named for train, validation and test are
those splits (`splits.named_splits`); where no name says so, each document goes by the hash of its
text, so that equal texts never stand on both sides, and a text file alone is cut in three. What is
hidden, or left behind by a system or an editor, is no text of anybody's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from hylorada.config import DatasetConfig
from hylorada.data.documents import Document
from hylorada.data.files import (
    FORMS,
    TEXT_SUFFIXES,
    UNREADABLE,
    damaged,
    form_of,
    list_files,
    open_text,
    unknown_form,
)
from hylorada.data.formats import read_rows
from hylorada.data.rows import NOT_TEXT, NOT_UNICODE, Row, RowAccount, document
from hylorada.data.sources import local_path
from hylorada.data.splits import named_splits, part_of_text, split_of_text
from hylorada.errors import DataError

log = logging.getLogger(__name__)


def read_local(dataset: DatasetConfig, split: str) -> Iterator[Document]:
    """Yield the documents of one split.

    Raises:
        DataError: No path, no readable file, some files named for a split and some not, no usable
            row, or no document in this split.
    """
    path = local_path(dataset)
    root = path.parent if path.is_file() else path
    files = _files(path)
    labels = named_splits(files, root)
    if labels is not None and split not in labels.values():
        raise DataError(_no_such_split(path, split, sorted(set(labels.values()))))
    alone = len(files) == 1 and form_of(files[0]) in TEXT_SUFFIXES
    if labels is None:
        _say_once(
            f"{path}: no file is named for a split; its first 90 % are train, then 5 % validation, "
            "5 % test"
            if alone
            else f"{path}: no file is named for a split; 90 / 5 / 5 % by the hash of each text"
        )
    account = RowAccount(f"dataset {dataset.name}, {path}")
    documents, yielded = 0, 0
    for file in files:
        if labels is not None and labels[file] != split:
            continue
        for item in _documents(file, root, dataset.text_column, account):
            documents += 1
            if labels is None and alone:
                part = part_of_text(item.text, split)
                if part.strip():
                    yielded += 1
                    yield document(f"{item.name} ({split})", part)
            elif labels is not None or split_of_text(item.text) == split:
                yielded += 1
                yield item
    account.close()
    if not yielded:
        raise DataError(
            f"{path}: its {documents} documents, split 90 / 5 / 5 % by the hash of their text, "
            f"leave none for {split}; name files train*, validation*, test* to choose yourself"
        )


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if not form_of(path):
            raise unknown_form(path)
        return [path]
    found = list_files(path)
    left_out = found.left_out(path)
    if not found.data:
        raise DataError(f"{path}: no file of a form that is read, which are {FORMS}; "
                        + (f"there are {left_out}" if left_out else "it is empty"))  # fmt: skip
    if left_out:
        _say_once(f"{path}: not read: {left_out}")
    return found.data


def _no_such_split(path: Path, split: str, found: list[str]) -> str:
    if path.is_file():
        return (
            f"{path}: named for {found[0]}, and there is nothing for {split} beside it in "
            "dataset.path; give a folder with a file for each split, or a file of another name, "
            "which is split by itself"
        )
    return (
        f"{path}: no file of the {split} split (found {', '.join(found)}); "
        f"add one named {split}*, or choose a split that is there"
    )


def _documents(file: Path, root: Path, column: str, account: RowAccount) -> Iterator[Document]:
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
def _say_once(message: str) -> None:
    """A data set is read twice when it is tokenised: first for its hash."""
    log.info(message)
