"""Counts in words, for lines that people read."""

from __future__ import annotations


def number_of(count: int, one: str, several: str = "") -> str:
    """A count with its noun: "1 run", "3 runs", "1,024 tokens".

    Args:
        count: how many.
        one: the noun for one.
        several: for any other count; default: with an s.
    """
    return f"{count:,} {one if count == 1 else several or f'{one}s'}"
