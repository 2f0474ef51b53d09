"""The documents of a data set, whatever its kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from hylorada.config import DatasetConfig
from hylorada.data.documents import Document
from hylorada.data.local import read_local
from hylorada.data.longbench import read_longbench
from hylorada.data.pg19 import OFFICIAL_BOOKS, OFFICIAL_TEST_WORDS, read_pg19
from hylorada.data.stdlib import read_stdlib
from hylorada.data.wikitext import paragraphs, read_wikitext
from hylorada.errors import ConfigError

SPLITS = ("train", "validation", "test")
UNITS = ("documents", "paragraphs")  # the latter: of WikiText, see `wikitext.paragraphs`


def read_documents(
    dataset: DatasetConfig, split: str, unit: str = "documents"
) -> Iterator[Document]:
    """Yield the documents of one split, in the data set's own order.

    Args:
        dataset: The data set.
        split: One of `SPLITS`.
        unit: One of `UNITS`.

    Yields:
        At most `dataset.max_documents` documents (0: all), or the paragraphs of these.

    Raises:
        ConfigError: An unknown kind, split or unit, or a setting that this kind cannot use.
        DataError: The data set is not available or holds nothing usable.
    """
    if split not in SPLITS:
        raise ConfigError(f"dataset: unknown split {split!r}; use one of {', '.join(SPLITS)}")
    reader = _READERS.get(dataset.kind)
    if reader is None:
        raise ConfigError(
            f"dataset.kind: unknown kind {dataset.kind!r}; use one of {', '.join(_READERS)}"
        )
    if unit not in UNITS or (unit == "paragraphs" and dataset.kind != "wikitext"):
        raise ConfigError(
            f"dataset: no {unit!r} of kind {dataset.kind!r}; use {' or '.join(UNITS)}, the latter "
            "of wikitext alone"
        )
    documents = reader(dataset, split)
    if dataset.max_documents:
        documents = islice(documents, dataset.max_documents)
    return paragraphs(documents) if unit == "paragraphs" else documents


def describe(dataset: DatasetConfig, split: str, documents: int, unit: str = "documents") -> str:
    """Name what was read, so that a part is never called the whole: "test, 62 of 100 books"."""
    if unit == "paragraphs":
        part = f", of the first {dataset.max_documents} articles" if dataset.max_documents else ""
        return f"{dataset.name} {split}, {documents} paragraphs{part}"
    if dataset.kind == "pg19":
        official = OFFICIAL_BOOKS[split]
        part = "" if documents == official else f"{documents} of "
        return f"{dataset.name} {split}, {part}{official} books"
    part = f"the first {documents}" if documents == dataset.max_documents else str(documents)
    return f"{dataset.name} {split}, {part} documents"


def official_words(dataset: DatasetConfig, split: str, documents: int) -> int | None:
    """The published number of words, if the whole split was read and its authors published one."""
    if (dataset.kind, split, documents) == ("pg19", "test", OFFICIAL_BOOKS["test"]):
        return OFFICIAL_TEST_WORDS
    return None


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
