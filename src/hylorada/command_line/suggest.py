"""The nearest known name to a mistyped one, for error messages."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches


def nearest(word: str, options: Iterable[str]) -> str:
    """The option most like ``word``, or an empty string if none is.

    A dotted name is compared whole and by its last part, so that ``lr`` finds ``train.lr``.
    """
    options = sorted(set(options))
    by_leaf: dict[str, list[str]] = {}
    for option in options:
        by_leaf.setdefault(option.rpartition(".")[2], []).append(option)
    leaf = word.rpartition(".")[2]
    if leaf in by_leaf:
        return _closest(word, by_leaf[leaf])
    whole = get_close_matches(word, options, n=1, cutoff=0.6)
    if whole:
        return whole[0]
    leaves = get_close_matches(leaf, by_leaf, n=1, cutoff=0.6)
    return _closest(word, by_leaf[leaves[0]]) if leaves else ""


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """``; did you mean X?`` or an empty string."""
    name = nearest(word, options)
    return f"; did you mean {name}?" if name else ""


def _closest(word: str, options: list[str]) -> str:
    return max(options, key=lambda option: SequenceMatcher(None, word, option).ratio())
