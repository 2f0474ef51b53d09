"""The documents of a data set, whatever its kind."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from hylorada.config import SPLITS, DatasetConfig
from hylorada.data.documents import Document
from hylorada.data.kind import kind_of
from hylorada.errors import ConfigError
from hylorada.process.counts import number_of


def read_documents(
    dataset: DatasetConfig, split: str, unit: str = "documents"
) -> Iterator[Document]:
    """Yield the documents of one split, in the data set's own order.

    Args:
        dataset: The data set.
        split: One of `SPLITS`.
        unit: documents, or one of the kind's `units`.

    Yields:
        At most `dataset.max_documents` documents (0: all), or the paragraphs of these.

    Raises:
        ConfigError: An unknown kind, split or unit, or a setting that this kind cannot use.
        DataError: The data set is not available or holds nothing usable.
    """
    if split not in SPLITS:
        raise ConfigError(f"dataset: unknown split {split!r}; use one of {', '.join(SPLITS)}")
    kind = kind_of(dataset)
    if unit != "documents" and unit not in kind.units:
        raise ConfigError(
            f"dataset: no {unit!r} of kind {dataset.kind!r}, which has "
            f"{' and '.join(['documents', *kind.units])}"
        )
    documents = kind.read(dataset, split)
    if dataset.max_documents:
        documents = islice(documents, dataset.max_documents)
    return documents if unit == "documents" else kind.units[unit](documents)


def describe(dataset: DatasetConfig, split: str, documents: int, unit: str = "documents") -> str:
    """Name what was read, so that a part is never called the whole: "test, 62 of 100 books"."""
    kind = kind_of(dataset)
    if unit != "documents":
        most = dataset.max_documents
        part = f", of the first {most} {kind.noun}" if most else ""
        return f"{dataset.name} {split}, {documents} {unit}{part}"
    if (official := kind.sizes.get(split)) is not None:
        part = "" if documents == official else f"{documents} of "
        return f"{dataset.name} {split}, {part}{official} {kind.noun}"
    part = "the first " if documents == dataset.max_documents else ""
    return f"{dataset.name} {split}, {part}{number_of(documents, 'document')}"


def official_words(dataset: DatasetConfig, split: str, documents: int) -> int | None:
    """The published number of words, if the whole split was read and its authors published one."""
    kind = kind_of(dataset)
    return kind.words.get(split) if documents == kind.sizes.get(split) else None
