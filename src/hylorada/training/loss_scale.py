"""A factor on the loss that keeps small gradients in fp16 (arXiv:1710.03740, section 3.2).

The gradient of a mean over thousands of tokens falls below fp16's smallest numbers (6e-8) on its
way through the layers. So the loss is multiplied by a power of two before the backward pass and the
gradients, in float32, are divided by it afterwards, exactly. The factor is searched for: a gradient
that overflows halves it and moves no weight, and after `PATIENCE` steps without one it is doubled.

Nothing here waits for the device: factor and count are tensors on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FIRST = 2.0**16
LAST = 1.0  # a gradient that overflows without a factor is a divergence
MOST = 2.0**24
PATIENCE = 2000  # steps


class LossScale:
    """The factor of one training.

    Args:
        device: of the loss.
    """

    def __init__(self, device: torch.device) -> None:
        self.factor = torch.tensor(FIRST, device=device)
        self.steps = torch.zeros((), dtype=torch.int64, device=device)  # since it was changed

    def applied(self, loss: Tensor) -> Tensor:
        """What to call ``backward`` on."""
        return loss * self.factor

    def take_off(self, gradients: Sequence[Tensor]) -> None:
        """Divide gradients by the factor, in place."""
        torch._foreach_mul_(list(gradients), self.factor.reciprocal())

    def update(self, loss: Tensor, norm: Tensor) -> None:
        """The factor of the next step.

        Args:
            loss: of this step, without the factor; where it is not finite, the factor stays.
            norm: of its gradients.
        """
        fits, loss_is_finite = torch.isfinite(norm), torch.isfinite(loss)
        steps = torch.where(fits, self.steps + 1, 0)
        grown = torch.where(steps >= PATIENCE, (self.factor * 2).clamp(max=MOST), self.factor)
        factor = torch.where(fits, grown, (self.factor / 2).clamp(min=LAST))
        self.factor = torch.where(loss_is_finite, factor, self.factor)
        steps = torch.where(steps >= PATIENCE, 0, steps)
        self.steps = torch.where(loss_is_finite, steps, self.steps)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"factor": float(self.factor), "steps": int(self.steps)}

    def restore(self, state: dict[str, Any]) -> None:
        """What `state` gave."""
        self.factor.fill_(state["factor"])
        self.steps.fill_(state["steps"])


def searching(loss: float, factor: float) -> str:
    """Why a step with non-finite gradients belongs to the search; empty if it does not.

    Args:
        loss: of the step, without the factor.
        factor: that it had.
    """
    if not math.isfinite(loss) or factor <= LAST:
        return ""
    return f"a gradient overflows at a loss scale of {factor:g}, which is halved"
