"""Any text data set on the hub, or a copy of one in a local folder, in the hub's layout.

Parquet, JSON lines, CSV or text files, whose splits are told by the data set's card or by the names
of files and folders, see `hub_layout`. A row is a document, its text in `dataset.text_column`; a
text file is one. A set with a train split alone is split by the hash of each text, as one's own
text is (`dataset=local`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from hylorada.config import DatasetConfig
from hylorada.data.documents import Document
from hylorada.data.file_documents import documents, part_of_documents, say_once
from hylorada.data.files import form_of, unknown_form
from hylorada.data.kind import SPLITS, Kind
from hylorada.data.sources import local_path
from hylorada.data.splits import WORDS, named_splits
from hylorada.errors import ConfigError, DataError, in_one_line

# What a run can do without a split.
_WITHOUT = {
    "train": "measure without training (method=baseline, or hylorada-eval)",
    "validation": "set train.eval_every=0, or dataset.path to a copy with a validation split",
    "test": "measure on another split, as in eval.perplexity.split=validation",
}


def read_hub(dataset: DatasetConfig, split: str) -> Iterator[Document]:
    """Yield the documents of one split.

    Raises:
        DataError: Not available, no such split, or no usable row.
    """
    what = str(dataset.path or dataset.hub_id)
    found: list[str] = []

    def choose(splits: list[str]) -> str:
        found[:] = splits
        return _choose(what, splits, split)

    root, files = (_on_disk if dataset.path else _on_hub)(dataset, choose)
    for file in files:
        if not form_of(file):
            raise unknown_form(file)
    if not _undivided(found):
        yield from documents(files, root, dataset, what)
        return
    say_once(f"dataset {what}: it has no split but {found[0]}; 90 / 5 / 5 % by the hash of texts")
    way = "use a larger data set, or one with splits of its own"
    yield from part_of_documents(files, root, dataset, split, what, way)


def _undivided(splits: list[str]) -> bool:
    """Whether a data set has one split alone, and that is not one to measure on."""
    return len(splits) == 1 and WORDS.get(splits[0], "train") == "train"


def _choose(what: str, splits: list[str], split: str) -> str:
    """The split to read: the one asked for, one of a name that means it, or the only one."""
    if _undivided(splits):
        return splits[0]
    same = [name for name in splits if WORDS.get(name) == split]
    if split in same or len(same) == 1:
        return split if split in same else same[0]
    raise DataError(
        f"dataset {what}: no {split} split; it has {', '.join(splits) or 'none'}; {_WITHOUT[split]}"
    )


def _on_hub(dataset: DatasetConfig, choose: Callable[[list[str]], str]) -> tuple[Path, list[Path]]:
    from hylorada.data.hub import files_of_any_layout, snapshot_of

    files = files_of_any_layout(dataset.hub_id, dataset.hub_config, dataset.revision, choose)
    return snapshot_of(files[0]), files


def _on_disk(dataset: DatasetConfig, choose: Callable[[list[str]], str]) -> tuple[Path, list[Path]]:
    path = local_path(dataset).resolve()
    if path.is_file():
        named = named_splits([path], path.parent) or {path: "train"}
        choose([named[path]])
        return path.parent, [path]
    from hylorada.data.hub_layout import layout

    try:
        splits = layout(str(path), dataset.hub_config)
    except DataError:
        raise
    except Exception as error:  # whatever `datasets` meets
        reason = f"{type(error).__name__}: {in_one_line(error, 300)}"
        raise DataError(
            f"dataset {path}: not in the hub's layout ({reason}); "
            "lay its files out as there, or read them as dataset=local"
        ) from error
    files = [Path(os.path.abspath(file)) for file in splits[choose(list(splits))]]  # noqa: PTH100
    for file in files:
        if not file.is_relative_to(path) or not file.is_file():
            raise DataError(f"dataset {path}: {file} is not a file in it; correct its README.md")
    return path, files


def _check(dataset: DatasetConfig) -> None:
    if dataset.path and (given := dataset.hub_id or dataset.revision):
        key = "hub_id" if dataset.hub_id else "revision"
        raise ConfigError(
            f"dataset.{key}={given} has no effect with dataset.path, which is read; leave one out"
        )


KIND = Kind(read_hub, "the data set", splits=SPLITS, check=_check)
