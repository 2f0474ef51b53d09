"""Documents to a memory-mapped corpus of token ids, made once and cached.

A cache entry is keyed by the text (sha256 over names, texts, counts), the tokenizer (its whole
definition) and the format, so a changed source, tokenizer or version never meets a stale entry. It
is written beside and renamed; a file lock makes a second process wait for the first. Documents are
tokenised in small batches straight to disk: memory does not grow with the corpus.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
from filelock import FileLock

from hylorada.config import DatasetConfig
from hylorada.data.documents import Document
from hylorada.data.readers import describe, official_words, read_documents
from hylorada.errors import DataError
from hylorada.process.disk import disk_error, sync
from hylorada.process.redaction import redacted
from hylorada.process.user_cache import user_cache
from hylorada.records.result import parse_json

log = logging.getLogger(__name__)

_FORMAT = 1
_BATCH_CHARACTERS = 1 << 20
_BATCH_DOCUMENTS = 256
_COLUMNS = 4  # of documents.npy: end of tokens, words, bytes, end of name


@dataclass(frozen=True)
class TokenDocument:
    """One document of a `TokenCorpus`.

    Attributes:
        name: Where the text comes from.
        start: Its first token in the corpus.
        end: One past its last token.
        words: Words, by its data set's convention.
        bytes: Bytes of the text as its source stores it.
        tokens: Its token ids, a view of the memory map, shape [end - start].
    """

    name: str
    start: int
    end: int
    words: int
    bytes: int
    tokens: np.ndarray = field(repr=False, compare=False)


class TokenCorpus:
    """Token ids of one split, memory-mapped, with where each document lies.

    Attributes:
        tokens: All ids, documents one after the other, shape [total_tokens], uint16 or uint32.
        ends: One past the last token of each document, shape [number of documents].
        sha256: Hash of names, texts and counts; independent of the tokenizer.
        label: What was read, in words: "pg19 test, 62 of 100 books".
        official_words: See `readers.official_words`.
        folder: The cache entry.
    """

    def __init__(self, folder: Path, label: str, official_words: int | None = None) -> None:
        """Open a finished cache entry.

        Raises:
            ValueError: The entry is damaged.
        """
        meta = parse_json((folder / "meta.json").read_bytes())
        self.folder = folder
        self.label = label
        self.official_words = official_words
        self.sha256: str = meta["sha256"]
        for name, (size, digest) in meta["files"].items():
            if (folder / name).stat().st_size != size or _file_sha256(folder / name) != digest:
                raise ValueError(f"{name} is not what was written")
        self.tokens: np.ndarray = np.memmap(folder / "tokens.bin", dtype=meta["dtype"], mode="r")
        self._table = np.load(folder / "documents.npy", mmap_mode="r")
        self._names = np.memmap(folder / "names.bin", dtype=np.uint8, mode="r")
        self.ends: np.ndarray = self._table[:, 0]

    @property
    def documents(self) -> Sequence[TokenDocument]:
        """The documents, made on demand."""
        return _Documents(self)

    def document_tokens(self, i: int) -> np.ndarray:
        """Token ids of document `i`, a view of the memory map."""
        return self.documents[i].tokens

    @property
    def total_tokens(self) -> int:
        """Token ids in the corpus."""
        return len(self.tokens)

    def _document(self, i: int) -> TokenDocument:
        end, words, size, name_end = (int(x) for x in self._table[i])
        start = int(self._table[i - 1, 0]) if i else 0
        name_start = int(self._table[i - 1, 3]) if i else 0
        return TokenDocument(
            name=bytes(self._names[name_start:name_end]).decode("utf-8", "surrogatepass"),
            start=start,
            end=end,
            words=words,
            bytes=size,
            tokens=self.tokens[start:end],
        )


class _Documents(Sequence[TokenDocument]):
    def __init__(self, corpus: TokenCorpus) -> None:
        self._corpus = corpus

    def __len__(self) -> int:
        return len(self._corpus.ends)

    @overload
    def __getitem__(self, i: int) -> TokenDocument: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[TokenDocument]: ...
    def __getitem__(self, i: int | slice) -> TokenDocument | Sequence[TokenDocument]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        return self._corpus._document(i % len(self))


def load_token_corpus(
    dataset: DatasetConfig,
    split: str,
    tokenizer: Any,
    tokenizer_id: str = "",
    *,
    unit: str = "documents",
    progress: Callable[[int], None] | None = None,
) -> TokenCorpus:
    """Return the tokens of one split, from the cache or made now.

    Documents are encoded as the tokenizer encodes a text by default: Llama puts its first token
    before each document, GPT-2 nothing. Nothing is put between documents.

    Args:
        dataset: The data set; `dataset.cache_dir` holds the cache, else the user's cache folder.
        split: train, validation or test.
        tokenizer: A transformers tokenizer.
        tokenizer_id: Its name, for messages and the entry's description; identity is by content.
        unit: What a document of the corpus is: one of `UNITS` of `readers`.
        progress: Called with the number of tokens after each batch; may raise to stop, and
            nothing is left behind then.

    Raises:
        ConfigError: The data set's settings are wrong.
        DataError: The data set is not available or holds no text.
        DiskError: The cache cannot be written.
    """
    content, documents = _hash_text(dataset, split, unit)
    label = describe(dataset, split, documents, unit)
    words = official_words(dataset, split, documents)
    identity = {"format": _FORMAT, "sha256": content, "tokenizer": tokenizer_sha256(tokenizer)}
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    root = _cache_root(dataset)
    folder = root / key
    described = identity | {
        "dataset": dataset.name,
        "split": split,
        "tokenizer_id": tokenizer_id or str(getattr(tokenizer, "name_or_path", "")),
    }
    try:
        corpus = _open(
            folder, label, words
        )  # without a lock: a finished entry may lie on a read-only disk
        if corpus is not None:
            return corpus
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{key}.lock"):
            corpus = _open(folder, label, words)
            if corpus is None:
                _set_aside(folder)
                source = read_documents(dataset, split, unit)
                _build(folder, source, content, tokenizer, described, progress)
                corpus = TokenCorpus(folder, label, words)
            return corpus
    except OSError as error:
        place = Path(str(error.filename or root))
        ours = place.is_relative_to(root) or root.is_relative_to(place)
        known = disk_error(error, root, remedy="set dataset.cache_dir to another folder")
        if known is None or not ours:
            raise
        raise known from error


def text_sha256(dataset: DatasetConfig, split: str) -> str:
    """Hash of the text of a split, as `TokenCorpus.sha256` has it, without a tokenizer.

    Raises:
        DataError: The data set is not available or holds no text.
    """
    return _hash_text(dataset, split, "documents")[0]


def _hash_text(dataset: DatasetConfig, split: str, unit: str) -> tuple[str, int]:
    """sha256 over all documents of a split, and how many they are."""
    digest, documents = hashlib.sha256(), 0
    for document in read_documents(dataset, split, unit):
        _hash_document(digest, document)
        documents += 1
    if not documents:
        raise DataError(
            f"dataset {dataset.name}: the {split} split has no {unit.removesuffix('s')}; "
            "choose another split, path or dataset"
        )
    return digest.hexdigest(), documents


def tokenizer_sha256(tokenizer: Any) -> str:
    """Hash of what decides which ids a text gets: not the name, the definition."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        definition = json.loads(backend.to_str())
        # The last call's padding and truncation lie in the backend; the next call replaces them.
        definition.pop("truncation", None)
        definition.pop("padding", None)
    else:
        definition = {"vocabulary": tokenizer.get_vocab(), "class": type(tokenizer).__name__}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    text = json.dumps([definition, special], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _build(
    folder: Path,
    documents: Iterable[Document],
    content: str,
    tokenizer: Any,
    described: dict[str, Any],
    progress: Callable[[int], None] | None,
) -> None:
    dtype = np.dtype("<u2" if len(tokenizer) <= 1 << 16 else "<u4")
    for left in folder.parent.glob(f"{folder.name}.tmp-*"):  # of a killed process: we hold the lock
        shutil.rmtree(left, ignore_errors=True)
    temporary = folder.parent / f"{folder.name}.tmp-{os.getpid()}"
    temporary.mkdir()  # as the user's mask has it, so that others may read a shared cache
    try:
        digest, table = hashlib.sha256(), array("q")
        tokens, name_bytes, batches = 0, 0, 0
        with (
            (temporary / "tokens.bin").open("wb") as ids,
            (temporary / "names.bin").open("wb") as names,
        ):
            for batch in _batches(documents):
                encoded = _encode(tokenizer, [d.text for d in batch])
                for document, row in zip(batch, encoded, strict=True):
                    _hash_document(digest, document)
                    ids.write(np.asarray(row, dtype=dtype).tobytes())
                    tokens += len(row)
                    name_bytes += names.write(document.name.encode("utf-8", "surrogatepass"))
                    table.extend((tokens, _words(document), _bytes(document), name_bytes))
                batches += 1
                if batches % 64 == 0:
                    log.info("tokenised %d documents, %d tokens", len(table) // _COLUMNS, tokens)
                if progress is not None:
                    progress(tokens)
        if not tokens:
            raise DataError(
                f"dataset {described['dataset']}: the {described['split']} split has no token in "
                f"{len(table) // _COLUMNS} documents; choose another split, path or dataset"
            )
        if digest.hexdigest() != content:
            raise DataError(
                f"dataset {described['dataset']}: its files changed while they were read; run again"
            )
        rows = np.frombuffer(table, dtype=np.int64).reshape(-1, _COLUMNS)
        np.save(temporary / "documents.npy", rows)
        files = {
            name: [(temporary / name).stat().st_size, _file_sha256(temporary / name)]
            for name in ("tokens.bin", "documents.npy", "names.bin")
        }
        meta = described | {"dtype": dtype.str, "tokens": tokens, "files": files}
        (temporary / "meta.json").write_text(json.dumps(redacted(meta), indent=1), encoding="utf-8")
        for path in [*temporary.iterdir(), temporary]:
            sync(path)
        temporary.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _open(folder: Path, label: str, words: int | None) -> TokenCorpus | None:
    """The finished entry; None if there is none or it is damaged."""
    try:
        return TokenCorpus(folder, label, words)
    except (
        ValueError, LookupError, TypeError, AttributeError, FileNotFoundError, NotADirectoryError,
    ):  # fmt: skip
        return None


def _set_aside(folder: Path) -> None:
    """Move a damaged entry out of the way; the caller holds the lock."""
    if folder.exists():
        aside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.bad-", dir=folder.parent))
        folder.rename(aside / folder.name)
        log.warning("damaged cache entry %s: set aside in %s and made again", folder, aside)


def _encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    # verbose: no warning that a document is longer than the model's trained length; blocks cut it.
    encoded = tokenizer(
        texts, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )
    return encoded["input_ids"]


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS or len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _hash_document(digest: Any, document: Document) -> None:
    for part in (document.name, document.text):
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    for count in (_words(document), _bytes(document)):
        digest.update(count.to_bytes(8, "little"))


def _words(document: Document) -> int:
    return len(document.text.split()) if document.words is None else document.words


def _bytes(document: Document) -> int:
    if document.bytes is None:
        return len(document.text.encode("utf-8", "surrogatepass"))
    return document.bytes


def _cache_root(dataset: DatasetConfig) -> Path:
    if dataset.cache_dir:
        return Path(dataset.cache_dir).expanduser()
    return user_cache() / "tokens"


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
