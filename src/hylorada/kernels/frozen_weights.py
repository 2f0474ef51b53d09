"""Frozen weights in the precision that their products are computed in, cast once.

Under autocast a float32 weight is cast to bf16 or fp16 in every forward and again in every backward
pass, always to the same numbers. Where nothing but a frozen linear layer reads it, it may as well
be kept so: the products are the same bit for bit, in half the memory. What anything else reads
(embeddings and heads tied to them, norms, weights that train, weights under an adapter that
computes from them, as DoRA does) stays as it is.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.distributed.tensor import DTensor

from hylorada.kernels.frozen_layers import (
    FrozenConv1D,
    FrozenLinear,
    FrozenLoraLinear,
    use_frozen_kernels,
)


def make_fast(model: nn.Module, autocast: torch.dtype | None) -> None:
    """The fast kernels for a model that is not changed any more, and weights that suit them.

    Args:
        model: with its adapter attached.
        autocast: what it is computed in under autocast from now on; None: without it.
    """
    use_frozen_kernels(model)
    if autocast is not None:
        keep_products_in(model, autocast)


@torch.no_grad()
def keep_products_in(model: nn.Module, dtype: torch.dtype) -> int:
    """Cast, in place, every frozen weight and bias that is read by products of this dtype alone.

    Args:
        model: with the kernels of `use_frozen_kernels`, from now on only run under autocast to
            ``dtype``.
        dtype: of the products.

    Returns:
        How many numbers were cast; 0 if all were already.
    """
    uses = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    computed_from = _under_other_adapters(model)
    count = 0
    for module in model.modules():
        if not isinstance(module, (FrozenLinear, FrozenConv1D)) or id(module) in computed_from:
            continue
        for parameter in module.parameters(recurse=False):
            if isinstance(parameter, DTensor):  # of a sharded base: cast where it is whole
                continue
            alone = uses[id(parameter)] == 1 and not parameter.requires_grad
            if alone and parameter.is_floating_point() and parameter.dtype != dtype:
                parameter.data = parameter.data.to(dtype)
                count += parameter.numel()
    return count


def _under_other_adapters(model: nn.Module) -> set[int]:
    """The layers whose weight an adapter may read itself: any but LoRA that only adds to them."""
    found: set[int] = set()
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer) and not _only_adds(layer):
            found |= {id(module) for module in layer.modules()}
    return found


def _only_adds(layer: Any) -> bool:
    return isinstance(layer, FrozenLoraLinear) and all(
        hasattr(variant, "scale_of") for variant in layer.lora_variant.values()
    )
