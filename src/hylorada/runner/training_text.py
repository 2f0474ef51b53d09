"""What a run trains on: blocks of text, retrieval examples, or both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hylorada.config import RunConfig
from hylorada.data.blocks import Blocks
from hylorada.data.skipped_positions import SkippedPositions
from hylorada.data.token_corpus import TokenCorpus
from hylorada.training.mixture import Mixture
from hylorada.training.retrieval_blocks import RetrievalBlocks


def training_blocks(
    config: RunConfig,
    tokenizer: Any,
    trained_length: int,
    corpus: Callable[[], TokenCorpus],
) -> Blocks | RetrievalBlocks:
    """The training sequences of a run.

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
