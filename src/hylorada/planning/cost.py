"""Floating-point operations of a base model, and what its training keeps in memory.

Of a frozen base with an adapter: the forward pass of a token takes two operations for each weight
of a linear layer, and its attention four for each number of a head and each token that it looks at.
The backward pass takes the first once more (no gradient of a frozen weight is made) and the second
two and a half times (Dao, arXiv 2307.08691); recomputation takes the forward pass once more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from hylorada.architecture import anatomy
from hylorada.config import S2AttentionConfig


@dataclass(frozen=True)
class Shape:
    """What decides on the cost of a model.

    Attributes:
        layers: decoder layers.
        width: of all heads of a layer together.
        weights: numbers in the linear layers of the decoder.
        head: numbers in the output head.
        parameters: all numbers.
        in_layers: of these, in the decoder layers.
        kv_width: of all key-value heads of a layer together.
    """

    layers: int
    width: int
    weights: int
    head: int
    parameters: int
    in_layers: int = 0
    kv_width: int = 0

    def forward(self, tokens: int, scored: int | None = None) -> float:
        """Operations of a pass over one sequence; see `evaluation.portion.Cost`.

        Attention is counted in full, as kernels without a causal mask of their own compute it.
        """
        logits = tokens if scored is None else scored
        return 2.0 * (self.weights * tokens + self.head * logits) + self._attention(tokens)

    def step(self, tokens: int, trained: int, recomputed: bool, span: float) -> float:
        """Operations of a pass forward and back over one sequence.

        Args:
            tokens: of the sequence.
            trained: numbers that train.
            recomputed: with activation checkpointing.
            span: tokens that a query meets, in the mean over layers and steps (`attention_span`).
        """
        linear = 2.0 * (self.weights + self.head) * tokens
        attention = self._attention(tokens, span)
        again = 2.0 * self.weights * tokens + attention if recomputed else 0.0
        return 2 * linear + 3.5 * attention + 6.0 * trained * tokens + again

    def _attention(self, tokens: int, span: float | None = None) -> float:
        return 4.0 * self.layers * self.width * tokens * (tokens if span is None else span)


def attention_span(s2: S2AttentionConfig, tokens: int, switched_on: bool) -> float:
    """Tokens that a query meets in training, in the mean over layers and steps.

    In segments of g tokens it is g, whose causal half is counted in full like that of a whole row.

    Args:
        s2: settings of shifted sparse attention.
        tokens: of a training sequence.
        switched_on: whether it runs, at this length.
    """
    group = s2.group_size or tokens // 8 * 2
    if not switched_on or group >= tokens:
        return float(tokens)
    if s2.largest_group:  # drawn evenly in the logarithm
        group_mean = (s2.largest_group - group) / math.log(s2.largest_group / group)
    else:
        group_mean = float(group)
    full = s2.full_layers + s2.full_heads + s2.full_share  # one of them at most
    return full * tokens + (1 - full) * group_mean


def shape_of(model: nn.Module) -> Shape:
    """The shape of a transformers model, which may be without weights."""
    config = anatomy.text_config(anatomy.causal_lm(model).config)
    layers = anatomy.decoder_layers(model)
    weights = sum(p.numel() for p in layers.parameters() if p.dim() > 1)
    heads = getattr(config, "num_attention_heads", None) or 1
    each = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head = sum(p.numel() for p in anatomy.output_head(model).parameters())
    parameters, in_layers = (sum(p.numel() for p in m.parameters()) for m in (model, layers))
    return Shape(len(layers), each * heads, weights, head, parameters, in_layers, each * kv_heads)
