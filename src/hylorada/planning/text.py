"""What a run reads: the questions of its evaluation, and its training sequences."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hylorada.architecture import anatomy
from hylorada.config import RunConfig
from hylorada.data.blocks import Blocks
from hylorada.data.token_corpus import load_token_corpus
from hylorada.evaluation.measurements import perplexity
from hylorada.loading.backbone import Blueprint
from hylorada.process.signals import Stop
from hylorada.runner.preparation import Prepared, prepare
from hylorada.runner.training_text import training_blocks
from hylorada.training.retrieval_blocks import RetrievalBlocks


@dataclass(frozen=True)
class Text:
    """What was read.

    Attributes:
        prepared: what is measured.
        blocks: what is trained on; None where nothing trains.
        validation: what is asked between two steps; None if nothing is.
        trained_length: of the base, in tokens.
        seconds: that reading took, from the user's cache or into it.
        unread: titles of measurements whose questions are not here.
        published: whether nothing was read, and sizes are the published ones.
    """

    prepared: Prepared
    blocks: Blocks | RetrievalBlocks | None
    validation: Any
    trained_length: int
    seconds: float
    unread: Sequence[str] = ()
    published: bool = False


def read_text(config: RunConfig, opened: Blueprint) -> Text:
    """Read what a run reads. Tokens are cached as a run caches them, outside of its directory.

    Raises:
        HyloradaError: see `runner.preparation.prepare` and `data.blocks.Blocks`.
    """
    started = time.perf_counter()
    prepared, tokenizer = prepare(config, opened, Stop()), opened.tokenizer
    blocks: Blocks | RetrievalBlocks | None = None

    def corpus(split: str) -> Any:
        return load_token_corpus(config.dataset, split, tokenizer, config.model.path)

    trained = anatomy.trained_length(opened.config)
    if config.method.trains:
        blocks = training_blocks(config, tokenizer, trained, lambda: corpus("train"))
    validation = validation_asked(config, corpus)
    return Text(prepared, blocks, validation, trained, time.perf_counter() - started)


def validation_asked(config: RunConfig, corpus: Callable[[str], Any]) -> perplexity.Asked | None:
    """What is asked between two steps; None if nothing is.

    Args:
        config: the run's settings.
        corpus: the tokens of a split.
    """
    if not (config.method.trains and config.train.eval_every):
        return None
    settings = dataclasses.replace(
        config.eval.perplexity, split="validation", conventions=["blocks"], stride=0
    )
    return perplexity.Asked(settings, config.length.max_length, corpus("validation"))
