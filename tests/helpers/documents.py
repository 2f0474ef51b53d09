"""Tokenised documents for the tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from helpers.families import VOCAB


@dataclass(frozen=True)
class Tokens:
    name: str
    tokens: np.ndarray
    words: int
    bytes: int


def make_documents(lengths: list[int], seed: int = 0) -> list[Tokens]:
    """Random documents; words and bytes are recognisable functions of the length."""
    rng = np.random.default_rng(seed)
    return [
        Tokens(
            f"document-{i}",
            rng.integers(1, VOCAB, n).astype(np.uint16),
            words=10 * n + i,
            bytes=50 * n + i,
        )
        for i, n in enumerate(lengths)
    ]
