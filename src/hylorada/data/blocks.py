"""Training sequences of a fixed length out of a `TokenCorpus`.

Legend: T tokens in a block.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from hylorada.architecture.labels import IGNORE
from hylorada.config.rules import choices
from hylorada.data.token_corpus import TokenCorpus
from hylorada.errors import ConfigError, DataError

log = logging.getLogger(__name__)

PACKINGS = choices("dataset.packing")


class Blocks:
    """A sequence of blocks of exactly `length` tokens.

    `packing="documents"`: a block lies within one document; what is left of a document after its
    last whole block is left out, and a document shorter than a block altogether.

    `packing="reset"`: the corpus is cut end to end, so a block may hold several documents. Then
    `position_ids` restart at 0 with each of them (and at the start of the block), which is how
    transformers' attention tells packed documents apart; it does so only without an attention
    mask and with `use_cache=False`.

    Attributes:
        length: Tokens in a block.
        packing: As given.
        label: Of the text, in words.
        sha256: Of the text.
        left_out_tokens: Tokens of the corpus in no block.
        left_out_documents: Documents of which no token is in a block.
    """

    def __init__(self, corpus: TokenCorpus, length: int, packing: str = "documents") -> None:
        """Plan the blocks.

        Args:
            corpus: The tokens.
            length: Tokens in a block, at least 2.
            packing: One of `PACKINGS`.

        Raises:
            ConfigError: Unknown packing, or a length that leaves nothing to predict.
            DataError: Not one block; the message has the numbers.
        """
        if packing not in PACKINGS:
            raise ConfigError(
                f"dataset.packing: unknown packing {packing!r}; use one of {', '.join(PACKINGS)}"
            )
        if length < 2:
            raise ConfigError(f"length.max_length: a block needs at least 2 tokens, not {length}")
        self.corpus, self.length, self.packing = corpus, length, packing
        self.label, self.sha256 = corpus.label, corpus.sha256
        ends = np.asarray(corpus.ends)
        self._starts = np.concatenate([[0], ends[:-1]])
        sizes = ends - self._starts
        if packing == "documents":
            blocks = sizes // length
            self.left_out_documents = int((blocks == 0).sum())
        else:
            blocks = np.array([corpus.total_tokens // length])
            self.left_out_documents = int((self._starts >= blocks[0] * length).sum())
        self._last = np.cumsum(blocks)  # one past the last block of each document
        self._count = int(self._last[-1]) if len(blocks) else 0
        self.left_out_tokens = corpus.total_tokens - self._count * length
        if not self._count:
            raise DataError(_too_short(corpus.total_tokens, sizes, length, packing))
        log.info(
            "%d blocks of %d tokens; %d of %d tokens and %d of %d documents are in none",
            self._count, length, self.left_out_tokens, corpus.total_tokens,
            self.left_out_documents, len(ends),
        )  # fmt: skip

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        """Return block `i`.

        Returns:
            `input_ids` [T] and `labels` [T], int64. Labels are not shifted (the loss shifts them,
            as everywhere in transformers); the first token of a document that another precedes in
            the block is -100, for it cannot be predicted. With packing "reset" also
            `position_ids` [T].
        """
        if not 0 <= i < self._count:
            raise IndexError(i)
        start = self.block_start(i)
        ids = self.corpus.tokens[start : start + self.length].astype(np.int64)
        input_ids_T = torch.from_numpy(ids)
        labels_T = input_ids_T.clone()
        if self.packing == "documents":
            return {"input_ids": input_ids_T, "labels": labels_T}
        # Starts of documents strictly inside the block; an empty document starts nowhere new.
        first, last = np.searchsorted(self._starts, [start + 1, start + self.length])
        inside = np.unique(self._starts[first:last]) - start
        origin = np.zeros(self.length, dtype=np.int64)
        origin[inside] = inside
        positions = np.arange(self.length) - np.maximum.accumulate(origin)
        labels_T[torch.from_numpy(inside)] = IGNORE
        return {
            "input_ids": input_ids_T,
            "labels": labels_T,
            "position_ids": torch.from_numpy(positions),
        }

    def block_start(self, i: int) -> int:
        """The place in the corpus of the first token of block `i`."""
        if self.packing == "reset":
            return i * self.length
        document = int(np.searchsorted(self._last, i, side="right"))
        before = int(self._last[document - 1]) if document else 0
        return int(self._starts[document]) + (i - before) * self.length


def _too_short(total: int, sizes: np.ndarray, length: int, packing: str) -> str:
    longest = int(sizes.max()) if len(sizes) else 0
    have = f"{total} tokens in {len(sizes)} documents, the longest {longest}"
    if packing == "documents" and total >= length:
        todo = f"use a length of at most {longest}, dataset.packing=reset, or another dataset"
    else:
        todo = (
            f"use a length of at most {longest if packing == 'documents' else total}, or more text"
        )
    return f"dataset: not one block of {length} tokens ({have}); {todo}"
