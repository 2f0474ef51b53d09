"""The weights that train: which they are, and whether they may be saved or measured."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from hylorada.process.ranks import Ranks
from hylorada.training.checkpoint import Named


def trainable(model: nn.Module) -> Named:
    """The parameters that train, with their full names."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def not_finite(trainables: Named) -> str:
    """Which weights hold numbers that are not finite, in words; empty if none does."""
    bad = [name for name, p in trainables if not bool(torch.isfinite(p).all())]
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    return f"{', '.join(bad[:3])}{more} not finite" if bad else ""


def refuse_apart(trainables: Named, ranks: Ranks) -> None:
    """Refuse weights that are not the same, to the bit, on all processes of a run.

    Raises:
        RuntimeError: they are not, by a bug or a fault of the hardware.
    """
    if ranks.world == 1:
        return
    digest = hashlib.sha256()
    for _, parameter in trainables:
        data: Any = parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(memoryview(data.numpy()))
    if not ranks.agree(int.from_bytes(digest.digest()[:6])):  # as many bits as a float64 keeps
        raise RuntimeError("the processes of this run have come to different weights")
