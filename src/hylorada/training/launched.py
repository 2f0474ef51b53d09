"""A training step that was launched, and what came of it: read later, in one go.

The loss, the norm of the gradients and the largest number of each gradient are put into one tensor
on the device and copied to the host behind the work that computes them. The host waits for that
copy alone, when it reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Outcome:
    """What came of a step.

    Attributes:
        loss: nats per scored token.
        norm: of all gradients together, before clipping.
        why: where the numbers that are not finite come from; empty if all are.
        loss_scale: the factor on the loss that the gradients had; None: it has none.
    """

    loss: float
    norm: float
    why: str = ""
    loss_scale: float | None = None

    @property
    def is_finite(self) -> bool:
        """Whether the weights have moved."""
        return not self.why


@dataclass
class Launched:
    """A step that the device was told to do.

    Attributes:
        step: its number, from 1.
        tokens: scored in it.
        started: when, by `time.perf_counter`.
        names: of the parameters with a gradient.
        numbers: on the host: loss, norm, the factor on the loss if there is one, and the largest
            absolute value of each gradient.
        copied: when ``numbers`` is there; None if it is.
        rate: the learning rate.
    """

    step: int
    tokens: int
    started: float
    names: list[str]
    numbers: Tensor
    copied: torch.cuda.Event | None = None
    rate: float = 0.0

    def read(self) -> Outcome:
        """Wait for the numbers of this step, and for nothing that was launched after it."""
        if self.copied is not None:
            self.copied.synchronize()
        loss, norm, *largest = self.numbers.tolist()
        factor = largest.pop(0) if len(largest) > len(self.names) else None
        if math.isfinite(loss) and math.isfinite(norm):
            return Outcome(loss, norm, loss_scale=factor)
        reasons = [] if math.isfinite(loss) else [f"loss is {loss}"]
        bad = [n for n, x in zip(self.names, largest, strict=True) if not math.isfinite(x)]
        if bad:
            more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
            reasons.append(f"gradient of {', '.join(bad[:3])}{more}")
        return Outcome(loss, norm, "; ".join(reasons) or "gradient norm overflows", factor)


def launch_reading(
    step: int,
    tokens: int,
    started: float,
    loss: Tensor,
    norm: Tensor,
    named: Sequence[tuple[str, Tensor]],
    factor: Tensor | None = None,
) -> Launched:
    """Have the numbers of a step copied to the host, behind the work that computes them.

    Args:
        step: its number.
        tokens: scored in it.
        started: when.
        loss: nats per token, a scalar in float64.
        norm: of all gradients, a scalar.
        named: the gradients, as they are now, with the names of their parameters.
        factor: on the loss, before the step changes it; a scalar.
    """
    gradients = [gradient for _, gradient in named]
    largest = torch._foreach_norm(gradients, math.inf) if gradients else []
    parts = [loss, norm, *([] if factor is None else [factor]), *largest]
    numbers, copied = torch.cat([x.reshape(1) for x in parts]), None
    if numbers.device.type == "cuda":
        host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        numbers = host.copy_(numbers, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
    return Launched(step, tokens, started, [name for name, _ in named], numbers, copied)
