"""The gradients of a step, added up so that their order changes no bit.

Micro-batches give float32 gradients. Their sum in float64 is exact as long as no two of them differ
in one number by a factor of more than 2^26. Therefore it does not matter which process computed
which of them, in what order they arrive, or how many processes there are. In float32 every
addition rounds, and the same step on two processes differs from that on one in the seventh digit.

One tensor goes through all processes once a step: all gradients, how many micro-batches gave each
(an optimizer leaves out a parameter that none gave one), and what else of a step is added up.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import torch
from torch import Tensor, nn

from hylorada.process.ranks import Ranks


class ExactSum:
    """Adds up gradients while it is open (as a context).

    Each backward pass leaves its gradients here then and none at the parameters, until `give`.

    Args:
        parameters: those that train.
        ranks: the processes that the sum is of.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
        self._parameters, self._ranks = list(parameters), ranks
        # Of one micro-batch as it came; of several their sum in float64.
        self._sums: list[Tensor | None] = [None] * len(self._parameters)
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> ExactSum:
        for number, parameter in enumerate(self._parameters):
            hook = parameter.register_post_accumulate_grad_hook(
                lambda p, number=number: self._take(number, p)
            )
            self._hooks.append(hook)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._hooks:
            self._hooks.pop().remove()
        self._sums = [None] * len(self._parameters)

    def _take(self, number: int, parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        before = self._sums[number]
        assert gradient is not None
        self._sums[number] = gradient if before is None else before.double().add_(gradient)

    def forget(self) -> None:
        """Drop what was added up: the step begins again."""
        self._sums = [None] * len(self._parameters)
        for parameter in self._parameters:
            parameter.grad = None

    def give(self, loss: Tensor, size: int) -> tuple[Tensor, int]:
        """Give each parameter the sum over all micro-batches of all processes as its gradient.

        The processes also agree on what they must do alike: whether to stop, and how small the
        micro-batches are where memory has run out on one of them.

        Args:
            loss: of this process's micro-batches, a scalar in float64, on the parameters' device.
            size: sequences of a micro-batch that fitted into memory here.

        Returns:
            The loss of all processes, and the size that fitted on each of them.
        """
        ranks = self._ranks
        if ranks.world > 1:
            # Each process fills in its own column, so that the sum holds what all of them say.
            columns_2W = torch.zeros(2, ranks.world, dtype=torch.float64)
            columns_2W[:, ranks.rank] = torch.tensor([ranks.heard, size])
            loss, columns = self._exchange(loss, columns_2W.reshape(-1))
            heard_W, sizes_W = columns.view(2, -1)
            ranks.agree_to_stop(int(heard_W.max()))
            size = int(sizes_W.min())
        for parameter, gradient in zip(self._parameters, self._sums, strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.dtype)
        self._sums = [None] * len(self._parameters)
        return loss, size

    def _exchange(self, loss: Tensor, extras_A: Tensor) -> tuple[Tensor, Tensor]:
        """Sum gradients, loss and other numbers (float64 on the host) over all processes."""
        counts = torch.tensor([each is not None for each in self._sums], dtype=torch.float64)
        parts = [
            loss.new_zeros(parameter.numel()) if gradient is None else gradient.reshape(-1).double()
            for parameter, gradient in zip(self._parameters, self._sums, strict=True)
        ]
        on_host = torch.cat([counts, extras_A])
        if loss.device.type == "cpu":
            *parts, on_host = self._sum([*parts, loss.reshape(1), on_host])
        else:  # the host reads these numbers, and must not wait for the gradients
            self._ranks.sum(on_host)
            parts = self._sum([*parts, loss.reshape(1)])
        *sums, loss = parts
        counts, extras_A = on_host.split([len(counts), len(extras_A)])
        self._sums = [
            each.view_as(parameter) if count else None
            for each, parameter, count in zip(sums, self._parameters, counts.tolist(), strict=True)
        ]
        return loss.reshape(()), extras_A

    def _sum(self, parts: list[Tensor]) -> list[Tensor]:
        """Over all processes, of one-dimensional parts, in one go."""
        flat = self._ranks.sum(torch.cat(parts))
        return list(flat.split([len(part) for part in parts]))
