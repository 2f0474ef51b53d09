"""The questions of each measurement, prepared once, before anything is measured or trained.

Every arm of a comparison is asked the same. What cannot be asked is refused here.
`hylorada-train`, ``hylorada-eval run=`` and ``hylorada-eval adapter=`` prepare alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hylorada.architecture import anatomy
from hylorada.config import DatasetConfig, EvalConfig, RunConfig
from hylorada.data.kinds.longbench import read_tasks
from hylorada.data.token_corpus import TokenCorpus, load_token_corpus
from hylorada.errors import DataError
from hylorada.evaluation.measurement import Measurement, asked_for, slot
from hylorada.loading.backbone import Blueprint
from hylorada.process.signals import Stop


@dataclass(frozen=True)
class Part:
    """A measurement, and what it asks.

    Attributes:
        measurement: the measurement.
        asked: as its `prepare` made it.
        identity: all that its numbers depend on beside model, window and machine.
    """

    measurement: Measurement
    asked: Any
    identity: dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """All that is measured of a model.

    Attributes:
        settings: the run's evaluation settings.
        window: the most tokens that a model sees.
        corpus: the split, in tokens.
        tokenizer: of the base.
        parts: in the order in which they are measured.
    """

    settings: EvalConfig
    window: int
    corpus: TokenCorpus
    tokenizer: Any
    parts: list[Part]

    def part(self, measurement: Measurement, asked: Any) -> Part:
        """A measurement that asks this, under these settings."""
        identity = slot(measurement, self.settings) | measurement.identity(asked)
        return Part(measurement, asked, identity)


class Sources:
    """What a measurement may read; see `evaluation.measurement.Sources`."""

    def __init__(self, config: RunConfig, tokenizer: Any, trained_length: int, stop: Stop) -> None:
        """Nothing is read yet; a signal ends reading between two documents or tasks."""
        self.config, self.tokenizer, self.stop = config, tokenizer, stop
        self.trained_length = trained_length
        self.window = config.length.max_length
        self._texts: dict[str, TokenCorpus] = {}

    def text(self, unit: str = "documents") -> TokenCorpus:
        """The split in tokens, read once."""
        if unit not in self._texts:
            self._texts[unit] = load_token_corpus(
                self.config.dataset, self.config.eval.perplexity.split, self.tokenizer,
                self.config.model.path, unit=unit, progress=lambda tokens: self.stop.check(),
            )  # fmt: skip
        return self._texts[unit]

    def longbench(self, tasks: Sequence[str]) -> list[dict[str, Any]]:
        """LongBench's rows of these tasks."""
        settings = self.config.eval.harness
        dataset = DatasetConfig(
            name="longbench",
            kind="longbench",
            hub_id=settings.longbench_hub_id,
            revision=settings.longbench_revision,
            path=settings.longbench_path,
        )
        try:
            return [dataclasses.asdict(row) for row in read_tasks(dataset, list(tasks))]
        except DataError as error:
            raise DataError(f"eval.harness: {error}") from error


def prepare(config: RunConfig, opened: Blueprint, stop: Stop) -> Prepared:
    """Prepare what is measured of models on this base.

    Args:
        config: the run's settings; its data set, window and ``eval`` say what.
        opened: the base, of which no weights need be read.
        stop: a signal ends it between two documents or tasks.

    Raises:
        Interrupted: a signal came.
        DataError: the split is not available or too short, a file of prompts that is not one, or a
            window too small for what is asked.
        ConfigError: a convention that needs the whole split and gets a part.
    """
    tokenizer = opened.tokenizer
    sources = Sources(config, tokenizer, anatomy.trained_length(opened.config), stop)
    asked = [(each, each.prepare(sources)) for each in asked_for(config.eval)]
    prepared = Prepared(config.eval, sources.window, sources.text(), tokenizer, [])
    prepared.parts.extend(prepared.part(measurement, each) for measurement, each in asked)
    return prepared
