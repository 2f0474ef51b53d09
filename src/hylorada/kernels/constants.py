"""Plain numbers as tensors: put on a device once, where each call would launch a fill."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.lru_cache(maxsize=64)
def number(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """It, [1]; one tensor for all who ask, so not to be written to."""
    with torch.inference_mode(False):
        return torch.full((1,), value, dtype=dtype, device=device)
