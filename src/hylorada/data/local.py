"""Text of one's own: a file or a folder of parquet, JSON-lines or text files.

A row is a document, a text file is one. Files or folders named train*, validation* and test* are
those splits; where no name says so, each document goes by the hash of its text, so that equal
texts never stand on both sides.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

from hylorada.config import DatasetConfig
from hylorada.data.documents import Document
from hylorada.data.rows import (
    NOT_UNICODE,
    SUFFIXES,
    TEXT_SUFFIXES,
    Row,
    RowAccount,
    damaged,
    document,
    open_text,
    read_rows,
    suffix_of,
)
from hylorada.data.sources import labelled_split, local_path
from hylorada.errors import DataError

log = logging.getLogger(__name__)

_PERCENT = (("test", 5), ("validation", 10), ("train", 100))  # upper bounds


def read_local(dataset: DatasetConfig, split: str) -> Iterator[Document]:
    """Yield the documents of one split.

    Raises:
        DataError: No path, no readable file, some files named for a split and some not, no usable
            row, or no document in this split.
    """
    path = local_path(dataset)
    root = path.parent if path.is_file() else path
    files = [path] if path.is_file() else _files(path)
    labels = {f: labelled_split(f.relative_to(root)) for f in files}
    named = {label for label in labels.values() if label}
    if named and None in labels.values():
        odd = next(f for f, label in labels.items() if label is None)
        raise DataError(
            f"{path}: {odd.relative_to(root)} is in no split while other files are named for one; "
            "name each file train*, validation* or test*, or none"
        )
    if named and split not in named:
        raise DataError(
            f"{path}: no file of the {split} split (found {', '.join(sorted(named))}); "
            f"add one named {split}*, or choose a split that is there"
        )
    if not named:
        log.info("%s: no file is named for a split; 90 / 5 / 5 %% by the hash of each text", path)
    account = RowAccount(f"dataset {dataset.name}, {path}")
    documents, yielded = 0, 0
    for file in files:
        if named and labels[file] != split:
            continue
        for item in _documents(file, root, dataset.text_column, account):
            documents += 1
            if named or _hash_split(item.text) == split:
                yielded += 1
                yield item
    account.close()
    if not yielded:
        raise DataError(
            f"{path}: its {documents} documents, split 90 / 5 / 5 % by the hash of their text, "
            f"leave none for {split}; name files train*, validation*, test* to choose yourself"
        )


def _files(folder: Path) -> list[Path]:
    everything = sorted(p for p in folder.rglob("*") if p.is_file())
    files = [p for p in everything if suffix_of(p) in SUFFIXES]
    if not files:
        found = ", ".join(p.name for p in everything[:5]) or "it is empty"
        raise DataError(f"{folder}: no file ending in {', '.join(SUFFIXES)} (found: {found})")
    return files


def _documents(file: Path, root: Path, column: str, account: RowAccount) -> Iterator[Document]:
    name = file.relative_to(root).as_posix()
    if suffix_of(file) in TEXT_SUFFIXES:
        text = account.text(_whole(file, column), column)
        if text is not None:
            yield document(name, text)
        return
    for row in read_rows(file, [column]):
        text = account.text(row, column)
        if text is not None:
            yield document(f"{name}:{row.number}", text)


def _whole(file: Path, column: str) -> Row:
    try:
        with open_text(file) as source:
            return Row(file, 1, {column: source.read().decode("utf-8-sig")})
    except UnicodeDecodeError as error:
        return Row(file, 1, None, f"{NOT_UNICODE} at byte {error.start}")
    except (OSError, EOFError) as error:
        raise damaged(file, error) from error


def _hash_split(text: str) -> str:
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64 * 100
    return next(split for split, bound in _PERCENT if place < bound)
