"""A prompt and what may follow it, as one text, in tokens.

A piece that is encoded alone is another text to many tokenizers: SentencePiece puts a space before
it (Llama 2 would read `value:  "…`, with two), and merges across the boundary never happen. So the
ids are those of prompt + candidate, and the prompt's part of them is what agrees with the ids of
the prompt alone. Where a token spans the boundary, that part ends before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hylorada.errors import DataError

_TAIL = 64  # characters of a prompt that are enough to see what a continuation changes


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt and its candidates in tokens.

    Attributes:
        ids: of the prompt alone, open at its end: what a generated answer goes on from.
        shared: how many of `ids` every candidate's text begins with; all of them unless a token
            spans the boundary.
        candidates: of each, what follows `ids[:shared]` in the ids of prompt + candidate.
    """

    ids: list[int]
    shared: int
    candidates: list[list[int]]

    def tokens(self, answer: int = 0) -> int:
        """Tokens of the longest text: with its longest candidate, or an answer of so many."""
        longest = max(map(len, self.candidates), default=0)
        return max(len(self.ids) + answer, self.shared + longest)


class PromptEncoder:
    """Encodes texts that something follows: what opens a text stays, what closes one is left out.

    Args:
        tokenizer: of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._closing = len(closing_tokens(tokenizer))

    def text(self, text: str) -> list[int]:
        """The ids of a text that goes on."""
        # verbose: no warning that it is longer than the trained length; the range is extended
        ids = list(self._tokenizer(text, verbose=False)["input_ids"])
        return ids[: len(ids) - self._closing]

    def prompt(self, prompt: str, candidates: Sequence[str]) -> EncodedPrompt:
        """A prompt with its candidates, each as one text with it.

        Raises:
            DataError: the tokenizer leaves nothing of a candidate, or one token of all.
        """
        ids = self.text(prompt)
        if not candidates:
            return EncodedPrompt(ids, len(ids), [])
        parts = self._by_tail(prompt, ids, candidates)
        if parts is None:
            parts = [_departure(ids, self.text(prompt + candidate)) for candidate in candidates]
        shared = min(agreed for agreed, _ in parts)
        encoded = [[*ids[shared:agreed], *rest] for agreed, rest in parts]
        if not shared or not all(encoded):
            empty = next((c for c, part in zip(candidates, encoded, strict=True) if not part), "")
            what = f"has no token for {empty!r}" if shared else "makes one token of a whole prompt"
            raise DataError(f"retrieval: the tokenizer {what}, so candidates cannot be ranked")
        return EncodedPrompt(ids, shared, encoded)

    def _by_tail(
        self, prompt: str, ids: list[int], candidates: Sequence[str]
    ) -> list[tuple[int, list[int]]] | None:
        """What `_departure` says of each candidate, from the prompt's end alone.

        Encoding a long prompt once for each candidate takes minutes. The end is encoded in its
        place, if its last half is encoded as in the whole prompt, if no candidate changes anything
        but there, and if the first candidate's ids are those of its whole text; else None.
        """
        if len(prompt) <= 2 * _TAIL or len(candidates) < 3:
            return None
        tail = prompt[-_TAIL:]
        alone, *joined = self._tokenizer(
            [tail, *(tail + candidate for candidate in candidates)],
            add_special_tokens=False,
            verbose=False,
        )["input_ids"]
        same = _common(alone[::-1], ids[::-1])
        outside = len(ids) - len(alone)
        parts = []
        for whole in joined:
            agreed, rest = _departure(alone, whole)
            if 2 * same < len(alone) or 2 * (len(alone) - agreed) > same:
                return None
            parts.append((outside + agreed, rest))
        return parts if parts[0] == _departure(ids, self.text(prompt + candidates[0])) else None

    def after(self, text: str, addition: str) -> list[int]:
        """The ids that an addition has when it follows a text.

        Where a token spans the two, those that it has after a letter, or else alone.
        """
        for before in (text, "a"):
            ids = self.text(before)
            agreed, rest = _departure(ids, self.text(before + addition))
            if agreed == len(ids):
                return rest
        return list(self._tokenizer(addition, add_special_tokens=False)["input_ids"])


def closing_tokens(tokenizer: Any) -> list[int]:
    """What a tokenizer puts after every text (`</s>`, `[SEP]`); of most, nothing."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for first in range(len(whole) - len(bare) + 1):
        if bare and whole[first : first + len(bare)] == bare:
            return whole[first + len(bare) :]
    return []


def _departure(ids: Sequence[int], whole: Sequence[int]) -> tuple[int, list[int]]:
    """How many ids a longer text has in common with its beginning, and those that follow them."""
    agreed = _common(ids, whole)
    return agreed, list(whole[agreed:])


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """The length of the common prefix."""
    for n, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return n
    return min(len(first), len(second))
