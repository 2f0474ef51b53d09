"""The sequences of a step in micro-batches that fit into memory.

Where memory runs out, the step is begun again with micro-batches of half the size, from the same
gradients (none) and the same state of every random generator. Its sequences, and so its tokens,
stay the same; there are more micro-batches of them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor

from hylorada.architecture.labels import IGNORE
from hylorada.process.ranks import Ranks
from hylorada.process.seeding import random_state, restore_random_state
from hylorada.records.outcome import is_out_of_memory

logger = logging.getLogger(__name__)

Rows = dict[str, Tensor]
"""One or more sequences: ``input_ids``, ``labels`` and, for some, ``position_ids``."""


def in_parts_that_fit(
    rows: list[Rows],
    size: int,
    backward: Callable[[Rows], Tensor],
    begin_again: Callable[[], None],
    device: torch.device,
    may_halve: bool = True,
) -> tuple[Tensor, int]:
    """Run forward and backward on all sequences of a step, one micro-batch after another.

    Args:
        rows: the sequences, tensors of shape [T], or [R, T] where one is as several short rows.
        size: sequences of a micro-batch.
        backward: adds the gradients of a micro-batch, tensors of shape [B, T], to what is there;
            returns its summed loss.
        begin_again: forgets the gradients.
        device: of the model.
        may_halve: whether to halve the micro-batches where memory runs out; if not, as where other
            processes wait inside of a pass for this one, that is an error.

    Returns:
        The summed loss, float64 on the device, and the size that fitted.

    Raises:
        torch.OutOfMemoryError: one sequence alone does not fit (see `is_out_of_memory`).
    """
    while True:
        state = random_state(device) if size > 1 and may_halve else None
        loss = torch.zeros((), dtype=torch.float64, device=device)
        try:
            for start in range(0, len(rows), size):
                loss += backward(_stacked(rows[start : start + size]))
            return loss, size
        except Exception as error:
            if state is None or not is_out_of_memory(error):
                raise
        # Outside of the except block: the error is gone, and with it the tensors that it held.
        begin_again()
        restore_random_state(state, device)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        half = (size + 1) // 2
        logger.warning(
            "out of memory with micro-batches of %d sequences; continuing with %d, and with more "
            "micro-batches per step, so that a step keeps its tokens", size, half,
        )  # fmt: skip
        size = half


def own_part(rows: list[Rows], size: int, ranks: Ranks) -> list[Rows]:
    """The sequences of a step that this process works on: whole micro-batches; maybe none.

    Where all processes must run the model equally often, those with fewer micro-batches begin with
    some in which nothing is scored, which add zeros.

    Args:
        rows: all of the step.
        size: sequences of a micro-batch, as the settings have it.
        ranks: the processes of the run.
    """
    micro_batches = math.ceil(len(rows) / size)
    share = ranks.share(micro_batches)
    own = rows[share.start * size : share.stop * size]
    if not ranks.alike:
        return own
    silent = {**rows[0], "labels": torch.full_like(rows[0]["labels"], IGNORE)}
    return [silent] * (math.ceil(micro_batches / ranks.groups) - len(share)) * size + own


def moved(batch: Rows, device: torch.device) -> Rows:
    """A micro-batch on the device, except for its labels, which the loss reads on the host."""
    if device.type == "cuda":  # from pinned memory a copy does not wait for its turn
        batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
    return {
        name: tensor if name == "labels" else tensor.to(device, non_blocking=True)
        for name, tensor in batch.items()
    }


def _stacked(rows: list[Rows]) -> Rows:
    # A block is a row, or several (`data.skipped_positions`).
    join = torch.stack if rows[0]["labels"].dim() == 1 else torch.cat
    return {key: join([row[key] for row in rows]) for key in rows[0]}
