"""Attention with fewer key-value heads than query heads, on a GPU that must be helped with it.

torch's fused kernels take grouped heads as they are (``enable_gqa``) in half precision on an Ampere
GPU or a later one. Elsewhere on a GPU, in float32 or before Ampere, the one fused kernel that is
left refuses them, and torch computes all n x n scores of a layer: 8.6 GB at 8K tokens and 32 heads.
There the key-value heads are repeated first, which costs their memory alone and gives the same
numbers.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from hylorada.kernels.linear import product_dtype

_AMPERE = (8, 0)  # compute capability


def fused(query: Tensor) -> bool:
    """Whether a fused kernel takes grouped heads for these queries, under autocast as it stands."""
    if query.device.type != "cuda":
        return True
    half = product_dtype(query) in (torch.bfloat16, torch.float16)
    return half and torch.cuda.get_device_capability(query.device) >= _AMPERE


def sdpa(
    module: Any,
    query_BHND: Tensor,
    key_BKND: Tensor,
    value_BKND: Tensor,
    attention_mask: Tensor | None,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' "sdpa", with key-value heads repeated where no fused kernel takes them."""
    groups = getattr(module, "num_key_value_groups", 1)
    # With a mask, transformers repeats them itself.
    if groups > 1 and attention_mask is None and not fused(query_BHND):
        key_BKND, value_BKND = repeat_kv(key_BKND, groups), repeat_kv(value_BKND, groups)
        # All that it asks of a layer beside the groups, which are no more.
        module = SimpleNamespace(is_causal=getattr(module, "is_causal", True))
    return sdpa_attention_forward(
        module, query_BHND, key_BKND, value_BKND, attention_mask, *args, **kwargs
    )


def use_here(device: torch.device) -> None:
    """Let every model of this process that asks for "sdpa" have `sdpa`, if it runs on a GPU."""
    if device.type == "cuda":
        AttentionInterface.register("sdpa", sdpa)
