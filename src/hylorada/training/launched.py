"""A training step that was launched, and what came of it: read later, in one go.

The loss, the norm of the gradients and the largest number of each gradient are put into one tensor
on the device and copied to the host behind the work that computes them. The host waits for that
copy alone, when it reads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
        spike: why its loss is a spike; empty if it is none.
    """

    loss: float
    norm: float
    why: str = ""
    loss_scale: float | None = None
    spike: str = ""


@dataclass
class Launched:
    """A step that the device was told to do.

    Attributes:
        step: its number, from 1.
        tokens: scored in it.
        started: when, by `time.perf_counter`.
        names: of the parameters with a gradient.
        numbers: on the host: loss, norm, one each of `asides`, and the largest absolute value of
            each gradient.
        copied: when ``numbers`` is there; None if it is.
        rate: the learning rate.
        asides: what else of the step is read: its `loss_scale`, its `spike_limit`.
    """

    step: int
    tokens: int
    started: float
    names: list[str]
    numbers: Tensor
    copied: torch.cuda.Event | None = None
    rate: float = 0.0
    asides: tuple[str, ...] = ()

    def read(self) -> Outcome:
        """Wait for the numbers of this step, and for nothing that was launched after it."""
        if self.copied is not None:
            self.copied.synchronize()
        loss, norm, *largest = self.numbers.tolist()
        asides = {name: largest.pop(0) for name in self.asides}
        factor, limit = asides.get("loss_scale"), asides.get("spike_limit")
        if math.isfinite(loss) and math.isfinite(norm):
            spike = limit is not None and loss > limit
            why = f"loss spike: {loss:.4f} after steps that allow {limit:.4f}" if spike else ""
            return Outcome(loss, norm, loss_scale=factor, spike=why)
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
    asides: Mapping[str, Tensor] | None = None,
) -> Launched:
    """Have the numbers of a step copied to the host, behind the work that computes them.

    Args:
        step: its number.
        tokens: scored in it.
        started: when.
        loss: nats per token, a scalar in float64.
        norm: of all gradients, a scalar.
        named: the gradients, as they are now, with the names of their parameters.
        asides: scalars by their names in `Launched`, as they are before the step changes them.
    """
    asides = asides or {}
    gradients = [gradient for _, gradient in named]
    largest = torch._foreach_norm(gradients, math.inf) if gradients else []
    parts = [loss, norm, *asides.values(), *largest]
    numbers, copied = torch.cat([x.reshape(1) for x in parts]), None
    if numbers.device.type == "cuda":
        host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        numbers = host.copy_(numbers, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
    names = [name for name, _ in named]
    return Launched(step, tokens, started, names, numbers, copied, asides=tuple(asides))
