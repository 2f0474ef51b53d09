"""One optimizer step: the arithmetic between a step's sequences and the weights it moves.

    loss = sum of -log p(token) over the step's scored tokens / number of these tokens

Forward and backward, one micro-batch after another; the norm of all gradients; clipping; AdamW. The
weights move only if loss and gradients are finite and the loss is no spike that the settings leave
out. The device itself decides that: a step is launched, and nothing that it computes is read here
(`launched` says how it is read later).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hylorada.architecture.labels import IGNORE
from hylorada.config import TrainConfig
from hylorada.process.fault_points import fault_point
from hylorada.process.ranks import Ranks
from hylorada.training.checkpoint import Named
from hylorada.training.exact_sum import ExactSum
from hylorada.training.group_rates import rates_by_name
from hylorada.training.launched import Launched, launch_reading
from hylorada.training.loss_scale import LossScale
from hylorada.training.micro_batches import Rows, in_parts_that_fit, moved, own_part
from hylorada.training.optim import make_optimizer, set_learning_rate, step_if
from hylorada.training.spikes import LossSpikes

Loss = Callable[..., tuple[Tensor, Tensor]]
"""(input_ids, labels, position_ids) -> (summed negative log-likelihood, scored tokens)."""


class OptimizerStep:
    """Everything that a step needs beside its sequences, and keeps from one step to the next.

    Attributes:
        optimizer: AdamW, with its moments.
        sums: adds up the gradients of the micro-batches, over all processes.
        scale: the factor on the loss in fp16; None in other precisions.
        spikes: knows the losses so far; None where `loss_spike` is "none".
    """

    def __init__(
        self,
        model: nn.Module,
        trainables: Named,
        settings: TrainConfig,
        device: torch.device,
        autocast: torch.dtype | None,
        ranks: Ranks,
    ) -> None:
        """Nothing is computed yet.

        Args:
            model: the adapted model.
            trainables: its parameters that train, with their full names.
            settings: of training.
            device: of the model.
            autocast: what to compute in under autocast; None: without it.
            ranks: the processes that share the micro-batches of each step.
        """
        self.trainables, self.settings, self.device = trainables, settings, device
        self.autocast, self.ranks = autocast, ranks
        rates = rates_by_name(model, settings.lr_scale)
        self.optimizer = make_optimizer(trainables, settings, rates)
        self.sums = ExactSum([p for _, p in trainables], ranks)
        self.scale = LossScale(device) if autocast == torch.float16 else None
        self.spikes = (
            None
            if settings.loss_spike == "none"
            else LossSpikes(settings.loss_spike_deviations, device)
        )

    def launch(
        self,
        step: int,
        rows: list[Rows],
        loss_model: Loss,
        *,
        rate: float,
        micro_batch_size: int,
        started: float,
    ) -> Launched:
        """Have the device do all of a step.

        Args:
            step: its number, from 1.
            rows: its sequences, those of all processes.
            loss_model: the loss of a micro-batch.
            rate: the learning rate.
            micro_batch_size: sequences in a micro-batch; fewer where memory runs out.
            started: when the step began, in seconds of the training's clock.
        """
        tokens = sum(int((row["labels"][..., 1:] != IGNORE).sum()) for row in rows)
        with self.sums, self.ranks.taking_part():
            sum_nll, size = in_parts_that_fit(
                own_part(rows, self.settings.micro_batch_size, self.ranks),
                micro_batch_size,
                lambda batch: self._backward(loss_model, batch, tokens),
                self.sums.forget,
                self.device,
                self.ranks.independent,
            )
            fault_point("mid_step", step)
            sum_nll, size = self.sums.give(sum_nll, size)

        loss = sum_nll / tokens
        named = [(name, p.grad) for name, p in self.trainables if p.grad is not None]
        gradients = [gradient for _, gradient in named]
        if self.scale is not None:
            self.scale.take_off(gradients)
        norm = torch.nn.utils.get_total_norm(gradients)
        moves = torch.isfinite(loss) & torch.isfinite(norm)
        extras = {} if self.scale is None else {"loss_scale": self.scale.factor}
        if self.spikes is not None:
            extras["spike_limit"] = limit = self.spikes.limit()
            if self.settings.loss_spike != "warn":
                moves = moves & ~(loss > limit)
            self.spikes.add(loss, moves)
        launched = launch_reading(step, tokens, started, loss, norm, named, extras)
        launched.rate, launched.micro_batch_size = rate, size

        if self.settings.max_grad_norm:
            parameters = [p for _, p in self.trainables]
            torch.nn.utils.clip_grads_with_norm_(parameters, self.settings.max_grad_norm, norm)
        set_learning_rate(self.optimizer, rate)
        step_if(self.optimizer, moves)
        if self.scale is not None:
            self.scale.update(loss, norm)
        self.optimizer.zero_grad(set_to_none=True)
        return launched

    def _backward(self, loss_model: Loss, batch: Rows, tokens: int) -> Tensor:
        """Add the gradients of a micro-batch; its summed loss."""
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            sum_nll, _ = loss_model(**moved(batch, self.device))
        # Divided by the tokens of the whole step: every token weighs the same, whatever its
        # micro-batch.
        mean = sum_nll / tokens
        (mean if self.scale is None else self.scale.applied(mean)).backward()
        return sum_nll.detach()

    def state(self) -> dict[str, Any]:
        """For a checkpoint's `state.json`; the optimizer's moments have a file of their own."""
        return {
            **({} if self.scale is None else {"loss_scale": self.scale.state()}),
            **({} if self.spikes is None else {"losses": self.spikes.state()}),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave, as far as it is in a checkpoint."""
        if self.spikes is not None and "losses" in state:
            self.spikes.restore(state["losses"])
        if self.scale is not None and "loss_scale" in state:
            self.scale.restore(state["loss_scale"])
