"""The retrieval prompts that the settings describe, made or read once for every model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hylorada.config import LostInMiddleConfig
from hylorada.errors import DataError
from hylorada.evaluation.lost_in_middle import keys_that_fit, lines_that_fit
from hylorada.evaluation.retrieval_prompts import (
    KeyValues,
    RetrievalPrompt,
    generate_key_values,
    passkey_prompts,
    place,
    question_prompts,
    read_key_values,
    read_questions,
)
from hylorada.process.disk import read_errors

QUESTION_TOKENS = 100  # of a generated answer to a question, as published


@dataclass(frozen=True)
class Prompts:
    """The retrieval prompts of a run.

    Attributes:
        prompts: each example at every depth.
        items: pairs, lines or documents in the first prompt.
        source: "generated", or the name of the file and the start of its sha256.
        sha256: of all prompts with their answers and candidates.
        max_new_tokens: of a generated answer; 0: by the candidates.
        note: what must be said beside the number; often empty.
    """

    prompts: list[RetrievalPrompt]
    items: int
    source: str
    sha256: str
    max_new_tokens: int
    note: str = ""


def make_prompts(settings: LostInMiddleConfig, tokenizer: Any, window: int) -> Prompts:
    """The prompts that the settings describe: the same for the same settings, whatever the model.

    Only the number of items, where it follows the window, depends on the tokenizer.

    Raises:
        DataError: a file that is not one of prompts, or a window too small for one.
    """
    source, max_new_tokens, note = "generated", settings.max_new_tokens, ""
    path = Path(settings.path).expanduser() if settings.path else None
    if path is not None:
        with read_errors(path, "make it readable"), path.open("rb") as file:
            source = f"{path.name}, sha256 {hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"
    if settings.form == "nq":
        assert path is not None
        items = settings.items
        # All rows lend distractors; the first of them are asked.
        every = question_prompts(read_questions(path), items, settings.depths, settings.seed)
        prompts = every[: settings.examples * len(settings.depths)]
        max_new_tokens = max_new_tokens or QUESTION_TOKENS
        note = "distractors are other questions' passages, which is easier than the published task"
    elif settings.form == "passkey":
        items = settings.items or lines_that_fit(tokenizer, window, settings.seed)
        prompts = passkey_prompts(
            items, settings.examples, depths=settings.depths, seed=settings.seed
        )
    else:
        examples: list[KeyValues]
        if path is not None:
            examples = read_key_values(path)[: settings.examples]
            items = len(examples[0].records)
        else:
            style, seed = settings.key_style, settings.seed
            items = settings.items or keys_that_fit(tokenizer, window, style, seed)
            examples = generate_key_values(items, settings.examples, seed=seed, form=style)
        prompts = [
            example.prompt(depth, number)
            for number, example in enumerate(examples)
            for depth in settings.depths
        ]
    _refuse_shared_places(settings, items)
    text = json.dumps([[p.text, p.candidates, p.gold, p.answer, p.depth] for p in prompts])
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Prompts(prompts, items, source, digest, max_new_tokens, note)


def _refuse_shared_places(settings: LostInMiddleConfig, items: int) -> None:
    """With few items two depths are one place, and one prompt would count twice."""
    places = items + 1 if settings.form == "passkey" else items
    if len({place(depth, places) for depth in settings.depths}) < len(settings.depths):
        raise DataError(
            f"retrieval: {len(settings.depths)} depths and {items} items: two depths coincide; "
            "use a longer length, eval.lost_in_middle.key_style=hex, fewer depths, or "
            "eval.lost_in_middle.enabled=false"
        )
