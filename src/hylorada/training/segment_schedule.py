"""Shifted sparse attention by schedule: in which training steps it runs, and in which segments.

Evaluation attends fully, so a model that is trained in segments of g tokens alone has met no
distance above g. A share of the steps with full attention, or segments whose length is drawn anew
for each step, lets it meet them at a part of the cost. What a step does follows from its number and
the seed, so a continued run does the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from hylorada.config import S2AttentionConfig
from hylorada.methods.s2_limits import attention_configs
from hylorada.settings.run import steps_with_full_attention


def group_size_at(
    step: int, steps: int, settings: S2AttentionConfig, group_size: int, length: int, seed: int
) -> int:
    """Tokens in a segment in one step; `length` where attention is full.

    Args:
        step: from 1.
        steps: in the whole run.
        settings: the schedule.
        group_size: g of the method, in tokens.
        length: of a training sequence, in tokens.
        seed: of the run.
    """
    full = steps_with_full_attention(steps, settings.full_share)
    if settings.full_steps == "even":
        is_full = step * full // steps > (step - 1) * full // steps
    else:
        is_full = step > steps - full if settings.full_steps == "last" else step <= full
    if is_full:
        return length
    if not settings.largest_group:
        return group_size
    rng = random.Random(f"segments/{seed}/{step}")
    drawn = math.exp(rng.uniform(math.log(group_size), math.log(settings.largest_group)))
    return min(2 * round(drawn / 2), length)


@contextmanager
def scheduled_segments(
    model: nn.Module, settings: S2AttentionConfig, length: int, seed: int
) -> Iterator[Callable[[int, int], None]]:
    """Inside the block, what is yielded gives the model the segments of (step, steps).

    Afterwards, and where the model has no shifted attention, they are the method's own.
    """
    configs = [c for c in attention_configs(model) if hasattr(c, "s2_group_size")]
    own = [config.s2_group_size for config in configs]

    def prepare(step: int, steps: int) -> None:
        for config, group_size in zip(configs, own, strict=True):
            config.s2_group_size = group_size_at(step, steps, settings, group_size, length, seed)

    try:
        yield prepare
    finally:
        for config, group_size in zip(configs, own, strict=True):
            config.s2_group_size = group_size
