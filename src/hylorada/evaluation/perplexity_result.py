"""One perplexity with all that is needed to say what it is: convention, window, sums, parts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


def perplexity(sum_nll: float, count: int) -> float | None:
    """exp(sum_nll / count); None for a count of 0, infinity beyond the range of a float."""
    if not count:
        return None
    mean = sum_nll / count
    return math.exp(mean) if mean < 709.0 else math.inf


@dataclass(frozen=True)
class Bucket:
    """Scored tokens whose prediction was made at window positions [start, end).

    A prediction at position p has p + 1 tokens of context.
    """

    start: int
    end: int
    sum_nll: float  # nats
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        """With the perplexity; null where nothing was scored."""
        return {
            "start": self.start,
            "end": self.end,
            "sum_nll": self.sum_nll,
            "tokens": self.tokens,
            "ppl": perplexity(self.sum_nll, self.tokens),
        }


@dataclass(frozen=True)
class DocumentScore:
    """The sums of one document."""

    name: str
    sum_nll: float  # nats
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {"name": self.name, "sum_nll": self.sum_nll, "tokens": self.tokens}


@dataclass(frozen=True)
class PerplexityResult:
    """One measurement, with all that is needed to say what it is.

    Attributes:
        convention: "blocks", "sliding", "word" or "paper".
        window: the most tokens of context, and of one forward pass.
        stride: tokens between sliding windows; None where none slides.
        split: name of the split.
        sum_nll: nats.
        tokens: scored tokens.
        scorable_tokens: tokens of the split that could be scored (all but each document's first).
        words: words of the split; None if only a part was scored.
        bytes: bytes of the split; None if only a part was scored.
        by_position: equal slices of the window.
        by_document: documents of which something was scored.
    """

    convention: str
    window: int
    stride: int | None
    split: str
    sum_nll: float
    tokens: int
    scorable_tokens: int
    words: int | None
    bytes: int | None
    by_position: list[Bucket]
    by_document: list[DocumentScore]

    @property
    def ppl(self) -> float:
        """exp(sum_nll / tokens), but for two conventions.

        `word` (PG-19, Rae et al., arXiv 1911.05507): exp(sum_nll / words of the split). `paper`:
        the mean over paragraphs of exp(NLL of the paragraph / its scored tokens). Infinity beyond
        the range of a float.
        """
        if self.convention == "word":
            value = self.word_ppl
        elif self.convention == "paper":
            each = [perplexity(part.sum_nll, part.tokens) for part in self.by_document]
            try:
                value = math.fsum(ppl for ppl in each if ppl is not None) / len(each)
            except OverflowError:
                value = math.inf
        else:
            value = perplexity(self.sum_nll, self.tokens)
        assert value is not None
        return value

    @property
    def word_ppl(self) -> float | None:
        """exp(sum_nll / words), the convention `word`; None if only a part was scored."""
        return perplexity(self.sum_nll, self.words or 0)

    @property
    def bits_per_byte(self) -> float | None:
        """sum_nll in bits / bytes; None if only a part was scored."""
        return self.sum_nll / math.log(2) / self.bytes if self.bytes else None

    def to_dict(self) -> dict[str, Any]:
        """The metric as it stands in result.json."""
        return {
            "value": self.ppl,
            "convention": self.convention,
            "window": self.window,
            "stride": self.stride,
            "split": self.split,
            "sum_nll": self.sum_nll,
            "tokens": self.tokens,
            "scorable_tokens": self.scorable_tokens,
            "words": self.words,
            "bytes": self.bytes,
            "word_ppl": self.word_ppl,
            "bits_per_byte": self.bits_per_byte,
            "by_position": [bucket.to_dict() for bucket in self.by_position],
            "by_document": [document.to_dict() for document in self.by_document],
        }
