"""Text of one's own: a file or a folder of parquet, JSON, CSV or text files.

A row is a document, a text file is one. Files or folders named for train, validation and test are
those splits (`splits.named_splits`); where no name says so, each document goes by the hash of its
text, so that equal texts never stand on both sides, and a text file alone is cut in three. What is
hidden, or left behind by a system or an editor, is no text of anybody's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hylorada.config import DatasetConfig
from hylorada.data.documents import Document
from hylorada.data.file_documents import documents, is_one_text, part_of_documents, say_once
from hylorada.data.files import FORMS, form_of, list_files, unknown_form
from hylorada.data.kind import Kind
from hylorada.data.sources import local_path
from hylorada.data.splits import named_splits
from hylorada.errors import DataError


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
    if labels is not None:
        yield from documents(
            [f for f in files if labels[f] == split], root, dataset, f"{dataset.name}, {path}"
        )
        return
    say_once(
        f"{path}: no file is named for a split; its first 90 % are train, then 5 % validation, "
        "5 % test"
        if is_one_text(files)
        else f"{path}: no file is named for a split; 90 / 5 / 5 % by the hash of each text"
    )
    way = "name files train*, validation*, test* to choose yourself"
    yield from part_of_documents(files, root, dataset, split, f"{dataset.name}, {path}", way)


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
        say_once(f"{path}: not read: {left_out}")
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


KIND = Kind(read_local, "text of your own", sources=("path",))
