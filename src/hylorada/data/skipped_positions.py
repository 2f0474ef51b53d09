"""Short training rows at positions of a long range: PoSE (Zhu et al., arXiv 2309.10400).

A row is no longer than the base knows. Its text is cut in two at a random place and what follows
the cut is moved to the right by a random number of positions, so that over many rows every distance
of the long range is met, at the cost of the short one.

Legend: T tokens in a block, R rows of it, W tokens in a row.
"""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor

from hylorada.data.blocks import Blocks
from hylorada.data.token_corpus import TokenCorpus


class SkippedPositions(Blocks):
    """The blocks of a corpus, each as short rows, so that other arms read the same text.

    Attributes:
        rows: R, as few as keep a row within the window.
        width: W. Up to R - 1 tokens at the end of a block are left out.
    """

    def __init__(self, corpus: TokenCorpus, length: int, window: int, seed: int) -> None:
        """Plan the blocks.

        Args:
            corpus: the tokens.
            length: T, and the positions that are to be reached.
            window: the most tokens in a row: what the base was trained on; below `length`.
            seed: of the cuts and skips.

        Raises:
            ConfigError, DataError: as `Blocks`.
        """
        super().__init__(corpus, length)
        self.rows = math.ceil(length / window)
        self.width = length // self.rows
        self._seed = seed

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        """Return block `i`.

        Returns:
            `input_ids`, `labels`, `position_ids`, `attention_mask`, each [R, W], int64. The mask is
            of ones: without one, transformers takes a gap between positions for the beginning of
            another document, and what follows the cut would not see what precedes it.
        """
        block = super().__getitem__(i)
        shape = self.rows, self.width
        kept = self.rows * self.width
        position_ids = torch.arange(self.width).repeat(self.rows, 1)
        rng = random.Random(f"skipped positions/{self._seed}/{i}")
        for row in position_ids:
            row[rng.randint(1, self.width - 1) :] += rng.randint(0, self.length - self.width)
        return {
            "input_ids": block["input_ids"][:kept].view(shape),
            "labels": block["labels"][:kept].view(shape),
            "position_ids": position_ids,
            "attention_mask": torch.ones(shape, dtype=torch.int64),
        }
