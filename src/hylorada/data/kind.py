"""What a kind of data set is: `Kind`, of which each module in `data/kinds/` makes one.

The module's name is what users write as `dataset.kind`; `hylorada.extensions.DATA_KINDS` finds it,
there or in another package. It is imported when settings are checked: torch, datasets and pyarrow
are imported by what reads, not by the module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hylorada.config import SPLITS, DatasetConfig
from hylorada.data.documents import Document
from hylorada.errors import ConfigError
from hylorada.extensions import DATA_KINDS


@dataclass(frozen=True)
class OwnText:
    """Text that is on every machine, and needs neither a path nor the hub.

    Attributes:
        called: what it is, for messages.
        files: those that it is read from.
        facts: what a record says of it beside the hash of its text.
    """

    called: str
    files: Callable[[], list[Path]]
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """A kind of data set; a module keeps its own under the name `KIND`.

    Attributes:
        read: yields the documents of one split, in an order of its own that is always the same.
            Raises `DataError`, in one line that says what to do, where there are none.
        title: what messages call it.
        sources: of the settings `path` and `hub_id`, those that say where it lies; one is needed.
            None where the text is on every machine.
        own: that text.
        splits: those that it may have; the others are refused before a model loads.
        tasks: what `dataset.tasks` may name; none where the kind takes no tasks.
        units: how documents are taken apart into smaller ones, by the name of these.
        noun: its documents' name where `sizes` or `units` are spoken of.
        sizes: published numbers of documents, by split.
        words: published numbers of words, by split.
        check: raises `ConfigError` where settings contradict each other.
    """

    read: Callable[[DatasetConfig, str], Iterator[Document]]
    title: str
    sources: tuple[str, ...] = ("hub_id", "path")
    own: OwnText | None = None
    splits: tuple[str, ...] = SPLITS
    tasks: tuple[str, ...] = ()
    units: Mapping[str, Callable[[Iterable[Document]], Iterator[Document]]] = field(
        default_factory=dict
    )
    noun: str = "documents"
    sizes: Mapping[str, int] = field(default_factory=dict)
    words: Mapping[str, int] = field(default_factory=dict)
    check: Callable[[DatasetConfig], None] | None = None


def kind_of(dataset: DatasetConfig) -> Kind:
    """The kind of a data set.

    Raises:
        ConfigError: there is none of that name.
    """
    names = DATA_KINDS.names()
    if dataset.kind not in names:
        raise ConfigError(
            f"dataset.kind: unknown kind {dataset.kind!r}; use one of {', '.join(names)}"
        )
    kind: Kind = DATA_KINDS.part(dataset.kind, "KIND")
    return kind
