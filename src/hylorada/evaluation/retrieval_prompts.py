"""Prompts that ask for something hidden at a known depth of a long context.

* Key-value retrieval and multi-document questions in the format of Liu et al., "Lost in the
  Middle" (arXiv 2307.03172): string-equal to the published prompts.
* Passkey retrieval (Mohtashami and Jaggi, arXiv 2305.16300).

A depth is where the wanted item lies among the others: 0 first, 1 last. The same example is asked
at every depth, with nothing but the place of the wanted item changed.
"""

from __future__ import annotations

import gzip
import random
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hylorada.config import DEPTHS
from hylorada.config.rules import choices
from hylorada.errors import ConfigError, DataError
from hylorada.evaluation.longbench_metrics import normalize_answer
from hylorada.records.result import parse_json

FORMS = choices("eval.lost_in_middle.key_style")
_LONGEST = 1 << 24  # characters of a line; a published one has 50 thousand at most
# Keys that a model may be tuned on start with one half of the hexadecimal digits, keys that it is
# asked for with the other: no training key is ever a test key.
_FIRST_DIGITS = {"train": "01234567", "test": "89abcdef"}


@dataclass(frozen=True)
class RetrievalPrompt:
    """One question.

    Attributes:
        text: the whole prompt; the answer follows it directly.
        candidates: continuations to rank, with their leading space.
        gold: index of the right one.
        answer: the bare text that a generated answer must contain.
        depth: where the wanted item lies, 0 to 1.
        example: number of the example; the same one is asked at every depth.
    """

    text: str
    candidates: tuple[str, ...]
    gold: int
    answer: str
    depth: float
    example: int


@dataclass(frozen=True)
class KeyValues:
    """An example of key-value retrieval: pairs in order, and the pair that is asked for."""

    records: tuple[tuple[str, str], ...]
    key: str
    value: str

    def __post_init__(self) -> None:
        keys = [key for key, _ in self.records]
        if len(self.records) < 2:
            raise DataError(f"key-value retrieval: {len(self.records)} pairs; it takes at least 2")
        if len(set(keys)) != len(keys):
            raise DataError("key-value retrieval: a key stands twice in one example")
        if (self.key, self.value) not in self.records:
            raise DataError(
                f"key-value retrieval: the pair asked for, {self.key!r}: {self.value!r}, is not in "
                "the context"
            )

    def prompt(self, depth: float, example: int) -> RetrievalPrompt:
        """The question with the wanted pair moved to a depth; every value is a candidate."""
        others = [record for record in self.records if record[0] != self.key]
        gold = place(depth, len(self.records))
        records = [*others[:gold], (self.key, self.value), *others[gold:]]
        candidates = tuple(f' "{value}"' for _, value in records)
        return RetrievalPrompt(
            key_value_text(records, self.key), candidates, gold, self.value, depth, example
        )


def place(depth: float, count: int) -> int:
    """The index among `count` items that a depth stands for."""
    if not 0 <= depth <= 1:
        raise ConfigError(f"retrieval: depth {depth}; it must be between 0 (first) and 1 (last)")
    return round(depth * (count - 1))


def key_value_text(records: Sequence[tuple[str, str]], key: str) -> str:
    """The published prompt: one pair a line, in one JSON object."""
    lines = ",\n ".join(f'"{name}": "{value}"' for name, value in records)
    return (
        "Extract the value corresponding to the specified key in the JSON object below.\n\n"
        f'JSON data:\n{{{lines}}}\n\nKey: "{key}"\nCorresponding value:'
    )


def question_text(question: str, documents: Sequence[tuple[str, str]]) -> str:
    """The published prompt for a question over documents, each a (title, text)."""
    found = "\n".join(
        f"Document [{number}](Title: {title}) {text}"
        for number, (title, text) in enumerate(documents, 1)
    )
    return (
        "Write a high-quality answer for the given question using only the provided search results "
        f"(some of which might be irrelevant).\n\n{found}\n\nQuestion: {question}\nAnswer:"
    )


def read_key_values(path: Path) -> list[KeyValues]:
    """The published files: `ordered_kv_records`, `key`, `value` on each line, gzipped or not.

    Raises:
        DataError: not such a file; says what was found, and on which line.
    """
    rows = _json_lines(path, {"ordered_kv_records": _is_pairs, "key": _is_text, "value": _is_text})
    return [
        KeyValues(tuple((k, v) for k, v in row["ordered_kv_records"]), row["key"], row["value"])
        for row in rows
    ]


def question_prompts(
    rows: Sequence[dict[str, Any]], documents: int, depths: Sequence[float] = DEPTHS, seed: int = 0
) -> list[RetrievalPrompt]:
    """Questions over one gold document among distractors, which are other questions' passages.

    Easier than the published task, whose distractors were retrieved for the question: say so beside
    the number. A passage that holds an answer is never a distractor.

    Args:
        rows: `question`, `answers`, `ctxs` (the gold document first), as in the oracle file.
        documents: documents in a prompt.
        depths: where the gold document lies.
        seed: chooses the distractors.
    """
    prompts = []
    for example, row in enumerate(rows):
        rng = random.Random(f"documents/{seed}/{example}")
        gold = row["ctxs"][0]
        chosen: list[tuple[str, str]] = []
        for other in rng.sample(rows, min(len(rows), 4 * documents)):
            passage = other["ctxs"][0]
            text = passage["text"].lower()
            if other is not row and not any(a.lower() in text for a in row["answers"]):
                chosen.append((passage["title"], passage["text"]))
        if len(chosen) < documents - 1:
            raise DataError(
                f"questions: {len(chosen)} distractors for example {example}; {documents - 1} are "
                "needed"
            )
        for depth in depths:
            index = place(depth, documents)
            others = chosen[: documents - 1]
            shown = [*others[:index], (gold["title"], gold["text"]), *others[index:]]
            text = question_text(row["question"], shown)
            answer = "\n".join(row["answers"])
            prompts.append(RetrievalPrompt(text, (), 0, answer, depth, example))
    return prompts


def read_questions(path: Path) -> list[dict[str, Any]]:
    """The published oracle file of NaturalQuestions.

    Raises:
        DataError: not such a file.
    """
    rows = _json_lines(path, {"question": _is_text, "answers": _is_texts, "ctxs": _is_passages})
    for number, row in enumerate(rows, 1):
        gold = normalize_answer(f"{row['ctxs'][0]['title']} {row['ctxs'][0]['text']}")
        if not any(normalize_answer(answer) in gold for answer in row["answers"]):
            raise DataError(
                f"{path}: line {number}: the answer is not in the passage that should hold it, the "
                "first of ctxs"
            )
    return rows


def generate_key_values(
    keys: int, count: int, *, seed: int = 0, form: str = "uuid", split: str = "test"
) -> list[KeyValues]:
    """Random examples, the same for every caller with the same arguments.

    Args:
        keys: pairs in an example.
        count: examples.
        seed: of the examples.
        form: "uuid" as published, or "hex": eight digits, for small windows and models.
        split: "test", or "train" for examples to tune on; the two share no key.
    """
    if form not in FORMS:
        raise ConfigError(f"retrieval: unknown form {form!r}; use {' or '.join(FORMS)}")
    examples = []
    for i in range(count):
        rng = random.Random(f"key-values/{split}/{seed}/{form}/{i}")
        names: dict[str, str] = {}
        while len(names) < keys:
            name = rng.choice(_FIRST_DIGITS[split]) + _word(rng, form)[1:]
            names[name] = _word(rng, form)
        key = rng.choice(list(names))
        examples.append(KeyValues(tuple(names.items()), key, names[key]))
    return examples


def _word(rng: random.Random, form: str) -> str:
    bits = rng.getrandbits(128)
    return str(uuid.UUID(int=bits, version=4)) if form == "uuid" else f"{bits:032x}"[:8]


_PASSKEY_TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)
_PASSKEY_FILLER = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
)


def passkey_prompts(
    lines: int, count: int, *, depths: Sequence[float] = DEPTHS, seed: int = 0, choices: int = 50
) -> list[RetrievalPrompt]:
    """A five-digit number among repeated filler; the other choices are not in the context.

    Args:
        lines: lines of filler.
        count: examples; each is asked at every depth.
        depths: where the number lies.
        seed: of the numbers.
        choices: numbers to rank, the right one among them.
    """
    prompts = []
    for example in range(count):
        rng = random.Random(f"passkey/{seed}/{example}")
        numbers = rng.sample(range(10_000, 100_000), choices)
        gold = rng.randrange(choices)
        needle = f"The pass key is {numbers[gold]}. Remember it. {numbers[gold]} is the pass key."
        for depth in depths:
            index = place(depth, lines + 1)
            body = [_PASSKEY_FILLER] * lines
            text = "\n".join(
                [_PASSKEY_TASK, *body[:index], needle, *body[index:],
                 "What is the pass key? The pass key is"]
            )  # fmt: skip
            candidates = tuple(f" {number}" for number in numbers)
            prompts.append(
                RetrievalPrompt(text, candidates, gold, str(numbers[gold]), depth, example)
            )
    return prompts


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _is_pairs(value: Any) -> bool:
    return isinstance(value, list) and all(_is_texts(pair) and len(pair) == 2 for pair in value)


def _is_passages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(p, dict) and _is_text(p.get("title")) and _is_text(p.get("text"))
            for p in value
        )
    )


def _row(path: Path, number: int, line: str) -> Any:
    try:
        return parse_json(line)
    except ValueError as error:
        raise DataError(f"{path}: line {number} cannot be read as JSON ({error})") from error


def _json_lines(path: Path, fields: Mapping[str, Callable[[Any], bool]]) -> list[dict[str, Any]]:
    """The rows of a file; each field is checked."""
    rows = []
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST), ""), 1):
                if len(line) == _LONGEST:
                    raise DataError(
                        f"{path}: line {number} has {_LONGEST:,} characters and more; write one "
                        "object of one prompt on each line"
                    )
                row = _row(path, number, line)
                if not isinstance(row, dict):
                    raise DataError(f"{path}: line {number} is no object with {', '.join(fields)}")
                missing = [name for name in fields if name not in row]
                if missing:
                    raise DataError(
                        f"{path}: line {number} has no {', '.join(missing)}; it has "
                        f"{', '.join(sorted(row))}"
                    )
                wrong = [name for name, fits in fields.items() if not fits(row[name])]
                if wrong:
                    raise DataError(
                        f"{path}: line {number}: {', '.join(wrong)} is empty or of the wrong type"
                    )
                rows.append(row)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as JSON lines ({error})") from error
    if not rows:
        raise DataError(f"{path}: no rows")
    return rows
