"""Which position each token has, and which bucket of a table that is (paper 2.2).

    log2:      bucket(p) = floor(log2(p + 1))                        (the paper)
    relative:  bucket(p) = floor(p * buckets / max_length)           (equal slices of the length)

both limited to the last bucket. Of 64 log2 buckets a text of 4096 tokens reaches 13.

Legend: B sequences, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hylorada.errors import ConfigError


class Positions:
    """The integer positions of the tokens that the current decoder layer works on.

    A forward pre-hook on every attention module publishes them: all architectures of transformers
    hand `position_ids` to it, and activation checkpointing runs it again. Layers recomputed in the
    backward pass of an earlier batch therefore see that batch's positions. (A hook on the model or
    on a decoder layer is not run again, and silently gives wrong gradients.)

    What depends on the positions alone is computed once for all layers (`once`), which are handed
    one and the same tensor of positions.
    """

    def __init__(self) -> None:
        self.position_ids_BT: Tensor | None = None
        self._made: dict[tuple[int, int], tuple[Tensor, Any, Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without what `once` keeps: it has an autograd graph, which cannot be copied."""
        return {**self.__dict__, "_made": {}}

    def publish(self, attention: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """The pre-hook; B may be 1 for the whole batch."""
        position_ids = kwargs.get("position_ids")
        if position_ids is None or position_ids.dim() != 2:
            raise ConfigError(
                f"method: {type(attention).__name__} is not given position_ids [batch, tokens]; "
                "position bias and landmarks cannot be used with this model"
            )
        self.position_ids_BT = position_ids

    def current(self) -> Tensor:
        """The positions, [B or 1, T]."""
        if self.position_ids_BT is None:
            raise ConfigError(
                "method: a layer with position bias ran before any attention layer; "
                "adapt only layers of the decoder"
            )
        return self.position_ids_BT

    def once(self, make: nn.Module, width: int) -> Tensor:
        """``make(positions)`` [B, T], repeated to [B, T, width] and kept for all layers.

        It is computed for the first layer that asks, and again when the positions are another
        tensor, a parameter has moved, or gradients are wanted that were not (or no longer):
        activation checkpointing runs layers in either mode.

        Args:
            make: its result is kept for several backward passes, so its graph must save no tensor.
            width: how often each token's number stands in the result, which is a view.
        """
        position_ids_BT = self.current()
        if torch.compiler.is_compiling():
            return _spread(make(position_ids_BT), width)
        parameters = list(make.parameters())
        wanted = torch.is_grad_enabled() and any(p.requires_grad for p in parameters)
        state = (
            wanted,
            torch.is_inference_mode_enabled(),
            *map(_stamp, [position_ids_BT, *parameters]),
        )
        kept = self._made.get((id(make), width))
        if kept is None or kept[0] is not position_ids_BT or kept[1] != state:
            kept = (position_ids_BT, state, _spread(make(position_ids_BT), width))
            self._made[id(make), width] = kept
        return kept[2]

    def forget(self, *_: Any) -> None:
        """Drop what `once` keeps; a pre-hook of the decoder, so that no forward pass reuses it."""
        self._made = {}


def _spread(x_BT: Tensor, width: int) -> Tensor:
    return x_BT.unsqueeze(-1).expand(-1, -1, width)


def _stamp(x: Tensor) -> tuple[int, int]:
    """Changes when x is written to, except in inference mode, whose tensors have no version."""
    return x.data_ptr(), 0 if x.is_inference() else x._version


def bucket(position_ids_BT: Tensor, buckets: int, bucketing: str, max_length: int) -> Tensor:
    """Bucket numbers in [0, buckets), same shape, int64. Pad tokens at -1 (OPT) count as 0.

    log2 reads the binary exponent of a double: exact below 2**53, where a float32 logarithm is off
    by one from 2**21 on and bf16 positions from 256 on.
    """
    p_BT = position_ids_BT.clamp(min=0)
    if bucketing == "log2" and torch.compiler.is_compiling():  # inductor has no frexp for doubles
        power_K = 2 ** torch.arange(1, min(buckets, 63), device=p_BT.device)
        return (p_BT.long().unsqueeze(-1) + 1 >= power_K).sum(-1)
    if bucketing == "log2":
        bucket_BT = torch.frexp((p_BT + 1).double()).exponent.long() - 1
    else:
        bucket_BT = p_BT.long() * buckets // max_length
    return bucket_BT.clamp(max=buckets - 1)


def buckets_reached(max_length: int, buckets: int, bucketing: str) -> int:
    """How many of the buckets a text of max_length tokens uses."""
    return int(bucket(torch.arange(max_length), buckets, bucketing, max_length).unique().numel())
