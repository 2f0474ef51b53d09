"""The order of training blocks: a function of (seed, epoch, index) alone.

No generator is carried along, so a resumed run and a run on another number of processes see the
same blocks. The permutation is sorted out of an integer hash instead of a library's generator: it
stays the same in every version of NumPy and on every machine.
"""

from __future__ import annotations

import hashlib

import numpy as np


def block_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """Return a permutation of 0..n-1; entry `i` is the block at place `i` of the epoch.

    Args:
        n: Number of blocks.
        seed: The run's seed.
        epoch: Epoch, from 0.

    Returns:
        int64 array of length `n`.
    """
    assert n >= 0
    assert epoch >= 0
    key = hashlib.sha256(f"block order {seed} {epoch}".encode()).digest()
    offset = np.frombuffer(key, dtype="<u8", count=1)
    keys = _splitmix64(np.arange(n, dtype=np.uint64) + offset)
    return np.argsort(keys, kind="stable")


def _splitmix64(x: np.ndarray) -> np.ndarray:
    """Mix 64-bit integers, one to one (Steele, Lea, Flood 2014, the finaliser of SplitMix64)."""
    x = x * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
