"""The unit every corpus yields: a named piece of text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """One document of a corpus.

    Attributes:
        name: Where the text comes from, unique within its corpus and split.
        text: The text, lines ended by a newline alone.
        words: Words by the data set's own convention; None: the whitespace-separated pieces.
        bytes: Bytes of the text as its source stores it; None: the UTF-8 bytes of `text`.
    """

    name: str
    text: str
    words: int | None = None
    bytes: int | None = None
