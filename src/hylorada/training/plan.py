"""The budget of a run in steps, and which blocks each of them reads."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from hylorada.config import TrainConfig
from hylorada.data.order import block_order
from hylorada.settings.retrieval_task import steps_on_examples


class BlockSource(Protocol):
    """Training sequences of one length; `data.blocks.Blocks` is one."""

    length: int

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Plan:
    """The budget in steps, and which blocks belong to which step: pure functions of the settings.

    Attributes:
        blocks: in one epoch.
        batch: sequences in a step.
        sequences: in the whole run; the last step takes what is left.
        mix: share of the steps that are on retrieval examples in the place of blocks.
        examples: sequences of examples, which are numbered after the blocks.
    """

    blocks: int
    batch: int
    sequences: int
    mix: float = 0.0
    examples: int = 0

    @property
    def steps(self) -> int:
        """Optimizer steps in the whole run."""
        return math.ceil(self.sequences / self.batch)

    def is_on_examples(self, step: int) -> bool:
        """Whether a step (from 1) is on retrieval examples."""
        return steps_on_examples(step, self.mix) > steps_on_examples(step - 1, self.mix)

    def loss_name(self, step: int) -> str:
        """What the loss of a step is called in metrics.jsonl: on examples it is another loss."""
        return "train/retrieval_loss" if self.is_on_examples(step) else "train/loss"

    def of_step(self, step: int, seed: int) -> list[int]:
        """The blocks of a step (from 1), in order; epochs follow one another without a gap.

        Steps on examples take none away: the text goes on after them where it was.
        """
        before = steps_on_examples(step - 1, self.mix)
        if self.is_on_examples(step):
            places = range(before * self.batch, (before + 1) * self.batch)
            return [self.blocks + i % self.examples for i in places]
        first = (step - 1 - before) * self.batch
        text = self.sequences - steps_on_examples(self.steps, self.mix) * self.batch
        places = range(first, min(first + self.batch, text))
        return [int(_order(self.blocks, seed, i // self.blocks)[i % self.blocks]) for i in places]


_order = functools.lru_cache(maxsize=2)(block_order)


def make_plan(blocks: int, length: int, settings: TrainConfig) -> Plan:
    """Turn the budget of the settings (epochs, steps, or scored tokens) into a plan.

    A block of n tokens counts n - 1 towards ``max_tokens``: its first one is not predicted. Epochs
    are those of the text, whatever is mixed into it.

    Args:
        blocks: of the source, examples included.
        length: tokens in each of them.
        settings: of training.
    """
    batch = settings.micro_batch_size * settings.gradient_accumulation_steps
    examples = settings.retrieval.sequences if settings.mix else 0
    blocks -= examples
    if settings.max_steps:
        sequences = settings.max_steps * batch
    elif settings.max_tokens:
        sequences = math.ceil(settings.max_tokens / (batch * (length - 1))) * batch
    else:
        sequences = max(round(settings.epochs * blocks), 1)
        steps = on_text = math.ceil(sequences / batch)
        while steps - steps_on_examples(steps, settings.mix) < on_text:
            steps += 1
        sequences += (steps - on_text) * batch
    return Plan(blocks, batch, sequences, settings.mix, examples)
