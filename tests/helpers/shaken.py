"""A model in which every trainable parameter shows, and how exact equal computations are."""

from __future__ import annotations

import torch
from torch import nn


def shaken(model: nn.Module, scale: float = 0.1, seed: int = 0) -> nn.Module:
    """Move every trainable parameter, so that each of them shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model.eval()


# Equalities between two ways to compute one thing are checked in float64, to this tolerance: what
# is left is rounding, far below any mistake.
EXACT = {"rtol": 0, "atol": 1e-9}
