"""Text of the embedded base model: the tokenizer, the encoded corpora, windows over them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from hylorada.data.kinds.stdlib import PRETRAIN_HELDOUT, read_stdlib

log = logging.getLogger("pretrain.corpus")

END_OF_TEXT = "<|endoftext|>"
VOCAB_SIZE = 8192
WINDOW = 1024  # tokens
HELDOUT_WINDOWS = 97  # windows of 1024 tokens: about 100K tokens of each source
_EXCERPT = 40_000  # characters of each training book
_EXCERPTS_PER_BOOK = 2
_TOKENIZER_CHARACTERS = 9_000_000  # of each source


def read_books(folder: Path, split: str) -> Iterator[str]:
    """Yield the PG-19 books of one split, with the CRLF line ends of the files made plain."""
    files = sorted(folder.glob(f"{split}-*.parquet"))
    if not files:
        raise SystemExit(f"no {split}-*.parquet in {folder}: give --books the folder of PG-19")
    for path in files:
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            for text in file.read_row_group(group, columns=["text"])["text"].to_pylist():
                yield text.replace("\r\n", "\n")


def book_excerpts(folder: Path, seed: int) -> list[str]:
    """Return excerpts from every training book: many voices, few characters of each."""
    rng = np.random.default_rng([seed, 1])
    excerpts = []
    for text in read_books(folder, "train"):
        for _ in range(_EXCERPTS_PER_BOOK):
            start = int(rng.integers(0, max(1, len(text) - _EXCERPT)))
            excerpts.append(text[start : start + _EXCERPT])
    return [excerpts[i] for i in rng.permutation(len(excerpts))]


def train_tokenizer(code: list[str], books: list[str]) -> Tokenizer:
    """Train a byte-level BPE on the same number of characters of code and of books."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sample = [*_take(code, _TOKENIZER_CHARACTERS), *_take(books, _TOKENIZER_CHARACTERS)]
    tokenizer.train_from_iterator(sample, trainer)
    return tokenizer


def _take(texts: list[str], characters: int) -> Iterator[str]:
    for text in texts:
        if characters <= 0:
            return
        yield text[:characters]
        characters -= len(text)


def prepare(books: Path, out: Path, seed: int) -> None:
    """Write the tokenizer and the encoded corpora under `out`, unless they are there."""
    done = out / "data" / "DONE"
    if done.exists():
        return
    (out / "data").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 0])
    code = [document.text for document in read_stdlib("train")]
    code = [code[i] for i in rng.permutation(len(code))]
    excerpts = book_excerpts(books, seed)
    tokenizer = train_tokenizer(code, excerpts)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_max_length=WINDOW,
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(out / "tokenizer")

    heldout_books = list(read_books(books, "validation"))
    per_book = HELDOUT_WINDOWS * WINDOW * 5 // len(heldout_books)  # characters, from the middle
    middles = [t[len(t) // 2 : len(t) // 2 + per_book] for t in heldout_books]
    heldout_code = [document.text for document in read_stdlib(PRETRAIN_HELDOUT)]
    for name, texts in {
        "code": code,
        "books": excerpts,
        "heldout_code": heldout_code,
        "heldout_books": middles,
    }.items():
        tokens = encode(tokenizer, texts)
        np.save(out / "data" / f"{name}.npy", tokens)
        log.info("%s: %d characters, %d tokens", name, sum(map(len, texts)), len(tokens))
    done.touch()


def encode(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """Return one stream of token ids, each text preceded by the end-of-text token."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    parts = []
    for start in range(0, len(texts), 64):
        for encoding in tokenizer.encode_batch(texts[start : start + 64]):
            parts.append(np.array([end, *encoding.ids], dtype=np.uint16))
    return np.concatenate(parts)


class Windows:
    """Windows of 1024 tokens over one stream, shuffled anew and shifted in every epoch.

    Window `index` follows from (seed, index) alone, so a run resumes without any reader state.
    """

    def __init__(self, stream: np.ndarray, seed: int) -> None:
        self.stream = stream
        self.seed = seed
        self.per_epoch = len(stream) // WINDOW - 1
        self._epoch = -1

    def __getitem__(self, index: int) -> np.ndarray:
        epoch, position = divmod(index, self.per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._shift = int(rng.integers(WINDOW))
            self._order = rng.permutation(self.per_epoch)
            self._epoch = epoch
        start = self._shift + int(self._order[position]) * WINDOW
        return self.stream[start : start + WINDOW].astype(np.int64)
