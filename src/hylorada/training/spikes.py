"""Steps whose loss is far above that of the steps before them (`train.loss_spike`).

Far means above the median of these losses by more than so many of their median absolute deviations
times 1.4826, which for normally distributed numbers is one standard deviation. Nothing here waits
for the device: history and limit are tensors on it.
"""

from __future__ import annotations

import torch
from torch import Tensor

WINDOW = 64  # steps that the median is taken of
FEWEST = 16  # steps before which nothing is a spike
_NORMAL = 1.4826  # standard deviation / median absolute deviation, of normal numbers
SMALLEST = 0.02  # nats per token, taken for the deviation where the losses hardly differ


class LossSpikes:
    """The losses of one training, and where a spike begins.

    Args:
        deviations: above the median.
        device: of the losses.
    """

    def __init__(self, deviations: float, device: torch.device) -> None:
        self.deviations = deviations
        # The newest at the end; NaN where there was none yet.
        self._losses = torch.full((WINDOW,), torch.nan, dtype=torch.float64, device=device)

    def limit(self) -> Tensor:
        """The loss above which the next step is a spike, nats per token; infinite at first."""
        count = (~self._losses.isnan()).sum()
        median = _median(self._losses, count)
        deviation = _NORMAL * _median((self._losses - median).abs(), count)
        limit = median + self.deviations * deviation.clamp(min=SMALLEST)
        return torch.where(count >= FEWEST, limit, torch.inf)

    def add(self, loss: Tensor, counts: Tensor) -> None:
        """Take the loss of a step into the history.

        Args:
            loss: nats per token, a scalar.
            counts: whether it is one of the history; otherwise nothing changes.
        """
        later = torch.cat([self._losses[1:], loss.reshape(1).to(self._losses.dtype)])
        self._losses = torch.where(counts, later, self._losses)

    def state(self) -> list[float]:
        """For a checkpoint."""
        return [loss for loss in self._losses.tolist() if loss == loss]

    def restore(self, state: list[float]) -> None:
        """What `state` gave."""
        self._losses.fill_(torch.nan)
        if state:
            self._losses[-len(state) :] = torch.tensor(state, dtype=self._losses.dtype)


def _median(values: Tensor, count: Tensor) -> Tensor:
    """The lower median of those that are not NaN, of which there are ``count``."""
    place = ((count - 1).clamp(min=0) // 2).reshape(1)
    return values.sort().values.gather(0, place).squeeze(0)  # NaN comes last
