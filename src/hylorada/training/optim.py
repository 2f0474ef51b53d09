"""AdamW with decay on matrices only, and a learning rate that is a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hylorada.config import TrainConfig


def make_optimizer(
    trainables: Iterable[tuple[str, nn.Parameter]],
    settings: TrainConfig,
    rates: Mapping[str, float] | None = None,
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) over the trainable parameters.

    Weight decay pulls towards zero, which means something for a matrix of a linear map; biases,
    norms' gains, the 65 numbers of the position bias and scalar gates are left free. So are the
    vectors that other methods of peft keep as matrices of one row or column (IA3's, which start at
    one); LoRA's A and B of rank 1 are matrices all the same.

    Args:
        trainables: the parameters, with their full names.
        settings: `lr` is the base rate.
        rates: name -> multiple of the base rate, of those that have one of their own. AdamW's decay
            is multiplied by the rate, and so grows with it.
    """
    rates = rates or {}
    named = list(trainables)
    groups: list[dict[str, Any]] = []
    for matrices, decay in ((True, settings.weight_decay), (False, 0.0)):
        members = [item for item in named if _is_matrix(*item) is matrices]
        for rate in dict.fromkeys(rates.get(name, 1.0) for name, _ in members):
            alike = [p for name, p in members if rates.get(name, 1.0) == rate]
            group = {"lr": settings.lr * rate, "weight_decay": decay, "rate": rate}
            groups.append({"params": alike, **group})
    return torch.optim.AdamW(
        groups,
        lr=settings.lr,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
        fused=True,  # one launch for all parameters, which `step_if` can make conditional
    )


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    line = 1 < parameter.numel() == max(parameter.shape, default=0)  # one row, one column
    return parameter.dim() >= 2 and (not line or ".lora_" in name)


def step_if(optimizer: torch.optim.AdamW, moves: Tensor) -> None:
    """Make an optimizer step if `moves` is true, which only the device knows: nothing is read here.

    Otherwise weights, moments and step counters stay as they are, to the bit.

    Args:
        optimizer: of `make_optimizer`.
        moves: whether to move the weights, a boolean scalar on the device.
    """
    # As torch's own gradient scaler does it: a fused optimizer skips a step that found an inf.
    fused: Any = optimizer
    fused.grad_scale, fused.found_inf = None, (~moves).float()
    try:
        fused.step()
    finally:
        del fused.grad_scale, fused.found_inf


def learning_rate(step: int, total_steps: int, settings: TrainConfig) -> float:
    """The learning rate of one step: linear warm-up, then constant or cosine.

    Args:
        step: optimizer step, from 1 to ``total_steps``.
        total_steps: length of the run.
        settings: ``lr`` is the peak, ``lr * min_lr_ratio`` the end of the cosine.
    """
    warmup = math.ceil(total_steps * settings.warmup_ratio)
    if step <= warmup:
        return settings.lr * step / warmup
    if settings.lr_scheduler == "constant":
        return settings.lr
    assert settings.lr_scheduler == "cosine", settings.lr_scheduler
    done = (step - warmup) / (total_steps - warmup + 1)  # the last step still moves
    floor = settings.min_lr_ratio
    return settings.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give every parameter group of `make_optimizer` its multiple of this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = value * group["rate"]
