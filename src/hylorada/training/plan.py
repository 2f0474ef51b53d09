"""The budget of a run in steps, and which blocks each of them reads."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from hylorada.config import TrainConfig
from hylorada.data.order import block_order


@dataclass(frozen=True)
class Plan:
    """The budget in steps, and which blocks belong to which step: pure functions of the settings.

    Attributes:
        blocks: in one epoch.
        batch: sequences in a step.
        sequences: in the whole run; the last step takes what is left.
    """

    blocks: int
    batch: int
    sequences: int

    @property
    def steps(self) -> int:
        """Optimizer steps in the whole run."""
        return math.ceil(self.sequences / self.batch)

    def of_step(self, step: int, seed: int) -> list[int]:
        """The blocks of a step (from 1), in order; epochs follow one another without a gap."""
        first = (step - 1) * self.batch
        places = range(first, min(first + self.batch, self.sequences))
        return [int(_order(self.blocks, seed, i // self.blocks)[i % self.blocks]) for i in places]


_order = functools.lru_cache(maxsize=2)(block_order)


def make_plan(blocks: int, length: int, settings: TrainConfig) -> Plan:
    """Turn the budget of the settings (epochs, steps, or scored tokens) into a plan.

    A block of n tokens counts n - 1 towards ``max_tokens``: its first one is not predicted.
    """
    batch = settings.micro_batch_size * settings.gradient_accumulation_steps
    if settings.max_steps:
        sequences = settings.max_steps * batch
    elif settings.max_tokens:
        sequences = math.ceil(settings.max_tokens / (batch * (length - 1))) * batch
    else:
        sequences = max(round(settings.epochs * blocks), 1)
    return Plan(blocks, batch, sequences)
