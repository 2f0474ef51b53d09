"""The documents of a data set, whatever its kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from hylorada.config import DatasetConfig
from hylorada.data.documents import Document
from hylorada.data.local import read_local
from hylorada.data.longbench import read_longbench
from hylorada.data.pg19 import OFFICIAL_BOOKS, read_pg19
from hylorada.data.stdlib import read_stdlib
from hylorada.data.wikitext import read_wikitext
from hylorada.errors import ConfigError

SPLITS = ("train", "validation", "test")


def read_documents(dataset: DatasetConfig, split: str) -> Iterator[Document]:
    """Yield the documents of one split, in the data set's own order.

    Args:
        dataset: The data set.
        split: One of `SPLITS`.

    Yields:
        At most `dataset.max_documents` documents (0: all).

    Raises:
        ConfigError: An unknown kind or split, or a setting that this kind cannot use.
        DataError: The data set cannot be had or holds nothing usable.
    """
    if split not in SPLITS:
        raise ConfigError(f"dataset: unknown split {split!r}; use one of {', '.join(SPLITS)}")
    reader = _READERS.get(dataset.kind)
    if reader is None:
        raise ConfigError(
            f"dataset.kind: unknown kind {dataset.kind!r}; use one of {', '.join(_READERS)}"
        )
    documents = reader(dataset, split)
    return islice(documents, dataset.max_documents) if dataset.max_documents else documents


def describe(dataset: DatasetConfig, split: str, documents: int) -> str:
    """Name what was read, so that a part is never called the whole: "test, 62 of 100 books"."""
    if dataset.kind == "pg19":
        official = OFFICIAL_BOOKS[split]
        part = "" if documents == official else f"{documents} of "
        return f"{dataset.name} {split}, {part}{official} books"
    part = f"the first {documents}" if documents == dataset.max_documents else str(documents)
    return f"{dataset.name} {split}, {part} documents"


def _stdlib(dataset: DatasetConfig, split: str) -> Iterator[Document]:
    if dataset.path or dataset.hub_id:
        raise ConfigError(
            "dataset: stdlib is the running Python's own library and takes no path or hub_id; "
            "use dataset=local for files"
        )
    return read_stdlib(split)


_READERS: dict[str, Callable[[DatasetConfig, str], Iterator[Document]]] = {
    "stdlib": _stdlib,
    "wikitext": read_wikitext,
    "pg19": read_pg19,
    "longbench": read_longbench,
    "local": read_local,
}
