"""The weights with the lowest validation loss so far, and how long ago they were.

All of it is part of every checkpoint, the weights too, so that a continued run knows what the run
that never stopped knew, whichever checkpoint it continues from and whichever were deleted.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from hylorada.config import TrainConfig
from hylorada.training.checkpoint import Checkpoint, Named

logger = logging.getLogger(__name__)


@dataclass
class Judgement:
    """The evaluations between steps so far; part of every checkpoint.

    Attributes:
        step: after which the best one was made; None before any gave a finite number.
        ppl: its perplexity of the validation split.
        since: number of evaluations after it.
        last: step after which the latest one was made; None before any.
    """

    step: int | None = None
    ppl: float | None = None
    since: int = 0
    last: int | None = None


class BestSoFar:
    """Keeps the best weights (`train.keep_best`) and counts evaluations (`train.patience`).

    Attributes:
        now: the evaluations so far.
    """

    def __init__(self, settings: TrainConfig) -> None:
        self.settings, self.now = settings, Judgement()
        self._weights: dict[str, Tensor] = {}

    def judge(self, step: int, ppl: float | None, trainables: Named) -> None:
        """Take note of an evaluation.

        Args:
            step: after which it was made.
            ppl: perplexity of the validation split; None beyond the range of a float.
            trainables: the weights that it was made with.
        """
        now = self.now
        now.last = step
        if ppl is None or (now.ppl is not None and ppl >= now.ppl):
            now.since += 1
            return
        self.now = Judgement(step, ppl, 0, step)
        if self.settings.keep_best:
            self._weights = {name: p.detach().cpu().clone() for name, p in trainables}

    @property
    def is_over(self) -> bool:
        """Whether `train.patience` evaluations in a row were no better than the best."""
        return 0 < self.settings.patience <= self.now.since

    def misses(self, step: int) -> bool:
        """Whether the weights after the last step have still to be evaluated."""
        return self.settings.keep_best and self.now.last != step

    def put_back(self, trainables: Named) -> None:
        """Give the model the best weights; where no evaluation gave any, it keeps the last ones."""
        if not self.settings.keep_best:
            return
        if not self._weights:
            logger.warning("no evaluation gave a finite number: the last weights are kept")
            return
        with torch.no_grad():
            for name, parameter in trainables:
                parameter.copy_(self._weights[name])
        logger.info(
            "kept: the weights of step %d, validation ppl %.3f", self.now.step, self.now.ppl
        )

    @property
    def state(self) -> dict[str, Any]:
        """For a checkpoint's `state.json`; empty where nothing is kept or counted."""
        return (
            {"best": asdict(self.now)} if self.settings.keep_best or self.settings.patience else {}
        )

    @property
    def weights(self) -> dict[str, Tensor]:
        """For a checkpoint, by full name of the parameter; often empty."""
        return self._weights

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put everything back as it was when the checkpoint was written."""
        self.now = Judgement(**checkpoint.state.get("best") or {})
        self._weights = checkpoint.best

    def fields(self) -> dict[str, Any]:
        """Fields of the record: the step whose weights were kept, and their perplexity."""
        if not self.settings.keep_best:
            return {}
        return {"best_step": self.now.step, "best_validation_ppl": self.now.ppl}
