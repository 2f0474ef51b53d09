"""What a training has done so far; all of it is part of every checkpoint."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counters:
    """What a run has done."""

    step: int = 0
    tokens: int = 0  # scored, in steps that moved the weights
    seconds: float = 0.0  # in training steps, over all attempts
    skipped: int = 0  # steps with a non-finite loss or gradient
    skipped_in_row: int = 0
    last_loss: float | None = None  # nats per token
    peak_memory_bytes: int = 0
    evaluation_due: bool = False
    micro_batch_size: int = 1  # sequences; smaller than the settings' once memory has run out
