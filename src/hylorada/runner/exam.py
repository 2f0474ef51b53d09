"""What every arm of a comparison is asked: the text, the window, the retrieval prompts.

Made once, before anything is measured or trained, so that what cannot be asked is refused early.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hylorada.config import EvalConfig, LostInMiddleConfig, RunConfig
from hylorada.data.token_corpus import TokenCorpus, load_token_corpus
from hylorada.errors import DataError
from hylorada.evaluation.context_gain import contexts_that_fit
from hylorada.evaluation.harness import check_questions
from hylorada.evaluation.harness_questions import Question
from hylorada.evaluation.lost_in_middle import encode_prompts, keys_that_fit, lines_that_fit
from hylorada.evaluation.perplexity import scored_text
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
from hylorada.process.signals import Stop
from hylorada.runner.harness import load_questions

QUESTION_TOKENS = 100  # of a generated answer to a question, as published


@dataclass(frozen=True)
class Prompts:
    """The retrieval prompts of an exam.

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


@dataclass(frozen=True)
class Exam:
    """What is measured of a model, and on what.

    Attributes:
        settings: the run's evaluation settings.
        window: the most tokens that a model sees.
        corpus: the split, in tokens.
        tokenizer: of the base.
        prompts: None if retrieval is not asked for.
        paragraphs: of the split, in tokens; None if the convention `paper` is not asked for.
        questions: of LongBench and RULER; none if they are not asked for.
    """

    settings: EvalConfig
    window: int
    corpus: TokenCorpus
    tokenizer: Any
    prompts: Prompts | None
    paragraphs: TokenCorpus | None
    questions: Sequence[Question] = ()


def prepare(config: RunConfig, tokenizer: Any, stop: Stop) -> Exam:
    """An exam for models with this tokenizer; whatever cannot be asked is refused here.

    Args:
        config: the run's settings; its data set, window and ``eval`` make the exam.
        tokenizer: of the base.
        stop: a signal ends it between two documents or tasks.

    Raises:
        Interrupted: a signal came.
        DataError: the split is not available or too short, a file of prompts that is not one, or a
            window too small for a prompt.
        ConfigError: a convention that needs the whole split and gets a part.
    """
    settings, window = config.eval, config.length.max_length

    def load(unit: str) -> TokenCorpus:
        return load_token_corpus(
            config.dataset, settings.perplexity.split, tokenizer, config.model.path,
            unit=unit, progress=lambda tokens: stop.check(),
        )  # fmt: skip

    prompts = None
    if settings.lost_in_middle.enabled:
        prompts = make_prompts(settings.lost_in_middle, tokenizer, window)
        encode_prompts(
            tokenizer, prompts.prompts, window, settings.lost_in_middle.scorings,
            prompts.max_new_tokens,
        )  # fmt: skip
    corpus = load("documents")
    paragraphs = load("paragraphs") if "paper" in settings.perplexity.conventions else None
    for convention in settings.perplexity.conventions:
        scored_text(
            convention, corpus.documents, settings.perplexity, window,
            None if paragraphs is None else paragraphs.documents,
        )  # fmt: skip
    if settings.context_gain.enabled:
        contexts_that_fit(corpus.documents, window, settings.context_gain)
    questions: Sequence[Question] = ()
    if settings.harness.enabled:
        questions = load_questions(settings.harness, tokenizer, window, stop)
        check_questions(tokenizer, questions, window)
    return Exam(settings, window, corpus, tokenizer, prompts, paragraphs, questions)


def make_prompts(settings: LostInMiddleConfig, tokenizer: Any, window: int) -> Prompts:
    """The prompts that the settings describe: the same for the same settings, whatever the model.

    Only the number of items, where it follows the window, depends on the tokenizer.

    Raises:
        DataError: see `prepare`.
    """
    source, max_new_tokens, note = "generated", settings.max_new_tokens, ""
    path = Path(settings.path).expanduser() if settings.path else None
    if path is not None:
        with path.open("rb") as file:
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
            f"retrieval: {len(settings.depths)} depths and {items} items: two depths are the same "
            "place; use a longer length, eval.lost_in_middle.key_style=hex, fewer depths, or "
            "eval.lost_in_middle.enabled=false"
        )
