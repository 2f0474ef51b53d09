"""What a run reads: the questions of its evaluation, what it trains on, what it validates on."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hylorada.architecture import anatomy
from hylorada.config import RunConfig, TrainConfig
from hylorada.data.blocks import Blocks
from hylorada.data.skipped_positions import SkippedPositions
from hylorada.data.token_corpus import TokenCorpus, load_token_corpus
from hylorada.evaluation.measurements import perplexity
from hylorada.evaluation.perplexity import scored_text
from hylorada.loading.backbone import Blueprint
from hylorada.process.fault_points import fault_point
from hylorada.process.signals import Stop
from hylorada.runner.preparation import Prepared, prepare
from hylorada.settings.best_weights import check_best
from hylorada.training.mixture import Mixture
from hylorada.training.plan import make_plan
from hylorada.training.retrieval_blocks import RetrievalBlocks


@dataclass(frozen=True)
class Texts:
    """What a run reads.

    Attributes:
        prepared: what is measured.
        blocks: what is trained on; None where nothing trains.
        validation: what is asked between two steps; None if nothing is.
        trained_length: of the base, in tokens.
    """

    prepared: Prepared
    blocks: Blocks | RetrievalBlocks | None
    validation: perplexity.Asked | None
    trained_length: int

    def sha256(self) -> dict[str, str]:
        """The hash of the text of each split."""
        hashes = {self.prepared.settings.perplexity.split: self.prepared.corpus.sha256}
        if isinstance(self.blocks, Blocks):
            hashes["train"] = self.blocks.sha256
        if self.validation is not None:
            hashes["validation"] = self.validation.text.sha256
        return hashes

    def check_budget(self, train: TrainConfig) -> None:
        """Refuse what cannot act in so many steps as the text makes of the budget.

        Args:
            train: the settings of training.

        Raises:
            ConfigError: see `check_best`.
        """
        if self.blocks is not None:
            check_best(train, make_plan(len(self.blocks), self.blocks.length, train).steps)


def read_texts(config: RunConfig, opened: Blueprint, stop: Stop) -> Texts:
    """Read what a run reads. Tokens are cached outside of the run's directory.

    Args:
        config: the run's settings.
        opened: the base, of which no weights need be read.
        stop: a signal ends it between two batches of documents, or two tasks.

    Raises:
        HyloradaError: see `prepare`, `Blocks` and `RetrievalBlocks`.
    """
    batches = itertools.count(1)

    def progress(_tokens: int) -> None:
        fault_point("inside_text", next(batches))
        stop.check()

    def corpus(split: str) -> TokenCorpus:
        return load_token_corpus(
            config.dataset, split, opened.tokenizer, config.model.path, progress=progress
        )

    prepared = prepare(config, opened, stop)
    trained_length = anatomy.trained_length(opened.config)
    blocks = (
        training_blocks(config, opened.tokenizer, trained_length, lambda: corpus("train"))
        if config.method.trains
        else None
    )
    validation = validation_asked(config, corpus)
    if validation is not None:  # refused here, not after the steps before the first evaluation
        scored_text("blocks", validation.text.documents, validation.settings, validation.window)
    return Texts(prepared, blocks, validation, trained_length)


def training_blocks(
    config: RunConfig,
    tokenizer: Any,
    trained_length: int,
    corpus: Callable[[], TokenCorpus],
) -> Blocks | RetrievalBlocks:
    """The training sequences of a run: blocks of text, retrieval examples, or both.

    Args:
        config: the run's settings.
        tokenizer: of the base.
        trained_length: of the base, in tokens.
        corpus: reads the tokens of the training split; not called where none are trained on.

    Raises:
        ConfigError, DataError: see `Blocks` and `RetrievalBlocks`.
    """
    train, length = config.train, config.length.max_length
    if train.task == "retrieval":
        return RetrievalBlocks(tokenizer, length, train.retrieval, config.seed)
    if train.mix:
        examples = RetrievalBlocks(tokenizer, length, train.retrieval, config.seed)
        return Mixture(corpus(), examples, train.mix)
    if config.method.skipped_positions.enabled:
        return SkippedPositions(corpus(), length, trained_length, config.seed)
    return Blocks(corpus(), length, config.dataset.packing)


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
