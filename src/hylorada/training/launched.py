"""A training step that was launched on the device, and its outcome, which is read later at once.

The loss, the norm of the gradients and the largest absolute value of each gradient are put into one
tensor on the device, which is copied to the host once they are computed. When the host reads them,
it waits for that copy and for nothing that was launched after it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Outcome:
    """The outcome of a step.

    Attributes:
        loss: nats per scored token.
        norm: of all gradients together, before clipping.
        not_finite: which of its numbers are not finite; empty if all are.
        loss_scale: the factor on the loss in fp16; None in other precisions.
        spike: why its loss is a spike; empty if it is none.
    """

    loss: float
    norm: float
    not_finite: str = ""
    loss_scale: float | None = None
    spike: str = ""


@dataclass
class Launched:
    """A step that the device was told to do.

    Attributes:
        step: its number, from 1.
        tokens: scored in it.
        started: when, in seconds of the training's clock.
        names: of the parameters with a gradient.
        numbers: on the host: loss, norm, one for each of `extras`, and the largest absolute value
            of each gradient.
        copied: happens when ``numbers`` has arrived; None if it has.
        rate: the learning rate.
        micro_batch_size: sequences of a micro-batch that fitted into memory.
        extras: names of what else is read of the step: `loss_scale`, `spike_limit`.
    """

    step: int
    tokens: int
    started: float
    names: list[str]
    numbers: Tensor
    copied: torch.cuda.Event | None = None
    rate: float = 0.0
    micro_batch_size: int = 1
    extras: tuple[str, ...] = ()

    def read(self) -> Outcome:
        """The outcome, once the device has computed it."""
        if self.copied is not None:
            self.copied.synchronize()
        loss, norm, *largest = self.numbers.tolist()
        extras = {name: largest.pop(0) for name in self.extras}
        factor, limit = extras.get("loss_scale"), extras.get("spike_limit")
        if math.isfinite(loss) and math.isfinite(norm):
            is_spike = limit is not None and loss > limit
            spike = f"loss spike: {loss:.4f} after steps that allow {limit:.4f}" if is_spike else ""
            return Outcome(loss, norm, loss_scale=factor, spike=spike)
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
    extras: Mapping[str, Tensor],
) -> Launched:
    """Have the numbers of a step copied to the host once the device has computed them.

    Args:
        step: its number.
        tokens: scored in it.
        started: when the step began, in seconds of the training's clock.
        loss: nats per token, a scalar in float64.
        norm: of all gradients, a scalar.
        named: the gradients, as they are now, with the names of their parameters.
        extras: scalars by their names in `Launched`, as they are before the step changes them.
    """
    gradients = [gradient for _, gradient in named]
    largest = torch._foreach_norm(gradients, math.inf) if gradients else []
    parts = [loss, norm, *extras.values(), *largest]
    numbers, copied = torch.cat([x.reshape(1) for x in parts]), None
    if numbers.device.type == "cuda":
        host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        numbers = host.copy_(numbers, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
    names = [name for name, _ in named]
    return Launched(step, tokens, started, names, numbers, copied, extras=tuple(extras))
