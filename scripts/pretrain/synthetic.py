"""The copying curriculum: repeated random segments and key-value text, made on the fly.

A target that cannot be known (a random token seen for the first time) gets the label -100: it
teaches nothing and adds noise. Rows are pairs (ids, labels) of L tokens, labels not shifted.
"""

from __future__ import annotations

import json

import numpy as np
from tokenizers import Tokenizer

IGNORED = -100
_HEX = np.array(list("0123456789abcdef"))


def copying_row(
    rng: np.random.Generator, length: int, vocab_size: int, real: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Repeat segments at random distances, among random tokens or real text.

    Args:
        rng: The source of every choice.
        length: Tokens of the row.
        vocab_size: Random tokens are uniform over it, the special token 0 excepted.
        real: At least `length` tokens of real text.
    """
    in_text = rng.random() < 0.4
    if rng.random() < 0.25:  # the plainest form: one segment, over and over
        size = int(rng.integers(16, min(256, length // 2) + 1))
        segments = [_segment(rng, size, vocab_size, real)]
        order = [0] * (length // size + 1)
        gaps = np.zeros(len(order), dtype=int)
    else:
        sizes, used = [], 0
        for _ in range(int(rng.integers(1, 6))):
            size = int(np.exp(rng.uniform(np.log(16), np.log(257))))
            if used + 2 * size <= length:
                sizes.append(size)
                used += 2 * size
        sizes = sizes or [16]
        used = 2 * sum(sizes)
        segments = [_segment(rng, size, vocab_size, real) for size in sizes]
        order = list(rng.permutation(np.repeat(np.arange(len(sizes)), 2)))
        gaps = rng.multinomial(max(0, length - used), np.full(len(order), 1 / len(order)))
    ids, labels, seen, text = [], [], set(), 0
    for which, gap in zip(order, gaps, strict=True):
        filler = real[text : text + gap] if in_text else rng.integers(1, vocab_size, gap)
        text += gap
        ids.append(filler)
        labels.append(filler if in_text else np.full(gap, IGNORED))
        segment = segments[which]
        target = segment.copy()
        target[: 1 if which in seen else len(segment)] = IGNORED
        ids.append(segment)
        labels.append(target)
        seen.add(which)
    return np.concatenate(ids)[:length], np.concatenate(labels)[:length]


def periodic_row(
    rng: np.random.Generator, length: int, vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return one random segment of 8 to 64 tokens, over and over; the first time is not counted."""
    size = int(np.exp(rng.uniform(np.log(8), np.log(65))))
    ids = np.tile(rng.integers(1, vocab_size, size), length // size + 1)[:length]
    labels = ids.copy()
    labels[: size + 1] = IGNORED
    return ids, labels


def _segment(rng: np.random.Generator, size: int, vocab_size: int, real: np.ndarray) -> np.ndarray:
    """Return tokens that nothing predicts: uniform, or real text in disorder (common tokens)."""
    if rng.random() < 0.5:
        return rng.integers(1, vocab_size, size)
    return rng.choice(real, size)


def _token(rng: np.random.Generator, size: int) -> str:
    return "".join(rng.choice(_HEX, size))


def _uuid(rng: np.random.Generator) -> str:
    return "-".join(_token(rng, n) for n in (8, 4, 4, 4, 12))


def _number(rng: np.random.Generator) -> str:
    return str(int(rng.integers(10_000, 100_000)))


class KeyValueText:
    """Writes text with keys and values, then queries; the loss counts the answers alone."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def row(
        self, rng: np.random.Generator, length: int, real: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a row: real text, then keys and values, then queries, cut to `length` tokens."""
        style = rng.choice(["json", "lines", "python", "passkey"])
        kind = rng.choice(["uuid", "hex", "number"], p=[0.3, 0.4, 0.3])
        tokens_per_pair = {"uuid": 76, "hex": 24, "number": 20}[str(kind)]
        room = length * float(rng.uniform(0.1, 0.6))
        count = max(1, int(room / tokens_per_pair))
        asked = max(1, int((length - room) * float(rng.uniform(0.5, 1)) / (tokens_per_pair + 8)))
        if style == "passkey":
            count = 1
        keys = list(dict.fromkeys(self._word(rng, str(kind)) for _ in range(count)))
        pairs = [(key, self._word(rng, str(kind))) for key in keys]
        queried = [pairs[int(i)] for i in rng.integers(0, len(pairs), asked)]
        pieces = self._write(rng, str(style), pairs, queried)
        ids, labels = self._encode(pieces)
        if style == "passkey":
            filler = int(rng.integers(0, max(1, length - len(ids))))
            split = self._length_of(pieces[0][0])
            gap = real[:filler]
            ids = np.concatenate([ids[:split], gap, ids[split:]])
            labels = np.concatenate([labels[:split], gap, labels[split:]])
        ids, labels = ids[:length], labels[:length]
        lead = real[len(real) - (length - len(ids)) :] if len(ids) < length else real[:0]
        return np.concatenate([lead, ids]), np.concatenate([lead, labels])

    def _word(self, rng: np.random.Generator, kind: str) -> str:
        if kind == "uuid":
            return _uuid(rng)
        return _number(rng) if kind == "number" else _token(rng, int(rng.integers(4, 11)))

    def _write(
        self,
        rng: np.random.Generator,
        style: str,
        pairs: list[tuple[str, str]],
        queried: list[tuple[str, str]],
    ) -> list[tuple[str, bool]]:
        """Return pieces of text, each with whether it is an answer that the loss counts."""
        pieces: list[tuple[str, bool]] = []
        if style == "json":
            body = json.dumps(dict(pairs)).replace('", "', '",\n "')
            pieces.append((f"JSON data:\n{body}\n", False))
            for key, value in queried:
                pieces.append((f'\nKey: "{key}"\nCorresponding value: "', False))
                pieces.append((f'{value}"', True))
                pieces.append(("\n", False))
        elif style == "lines":
            mark = str(rng.choice([": ", " = ", " -> ", "\t"]))
            pieces.append(("".join(f"{k}{mark}{v}\n" for k, v in pairs) + "\n", False))
            for key, value in queried:
                pieces += [(f"{key}{mark}", False), (f"{value}\n", True)]
        elif style == "python":
            body = "".join(f"    '{k}': '{v}',\n" for k, v in pairs)
            pieces.append((f"table = {{\n{body}}}\n\n", False))
            for key, value in queried:
                pieces += [
                    (f"assert table['{key}'] == '", False),
                    (f"{value}'", True),
                    ("\n", False),
                ]
        else:
            value = pairs[0][1]
            pieces.append(
                (f"\nThe pass key is {value}. Remember it. {value} is the pass key.\n", False)
            )
            pieces.append(("\nWhat is the pass key? The pass key is", False))
            pieces += [(f" {value}.", True), ("\n", False)]
        return pieces

    def _length_of(self, text: str) -> int:
        return len(self.tokenizer.encode(text).ids)

    def _encode(self, pieces: list[tuple[str, bool]]) -> tuple[np.ndarray, np.ndarray]:
        """Encode the whole text at once, as a user would, and mark the answers by offsets."""
        encoding = self.tokenizer.encode("".join(text for text, _ in pieces))
        ids = np.array(encoding.ids, dtype=np.int64)
        wanted = np.zeros(sum(len(text) for text, _ in pieces), dtype=bool)
        position = 0
        for text, answer in pieces:
            wanted[position : position + len(text)] = answer
            position += len(text)
        counted = np.array([wanted[start:end].any() for start, end in encoding.offsets], dtype=bool)
        return ids, np.where(counted, ids, IGNORED)


def synthetic_row(
    rng: np.random.Generator,
    length: int,
    vocab_size: int,
    real: np.ndarray,
    text: KeyValueText,
    copying: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return one row of the curriculum: copying with probability `copying`, else key-value text."""
    if rng.random() < copying:
        return copying_row(rng, length, vocab_size, real)
    return text.row(rng, length, real)
