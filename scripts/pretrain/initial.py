"""Where the weights start: waves as positions, and heads of the first layer that look back.

A model this small, given a few million tokens, does not find "the token to my left" by itself when
positions are unstructured embeddings; without that no head can copy. Both are given at the start
and trained on like every other weight. Dimensions: N samples, D model width, K waves of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

WAVES = 32
LOOK_BACK = ((0, 1), (1, 1), (2, 2), (3, 1))
"""Heads of the first layer, each with the number of tokens it looks back."""
_SLOWEST = 1000.0


def sinusoids(positions: int, width: int, size: float = 0.15) -> Tensor:
    """Return waves in the first 64 columns, of root mean square `size`, to add to the positions."""
    table = torch.zeros(positions, width)
    table[:, : 2 * WAVES] = size * _waves(positions, WAVES)
    return table


def _waves(positions: int, count: int) -> Tensor:
    angle = torch.arange(positions)[:, None] * _frequencies(count)
    return math.sqrt(2) * torch.cat([angle.sin(), angle.cos()], dim=1)


def _frequencies(count: int) -> Tensor:
    """Return the `count` fastest waves, in radians a token."""
    return _SLOWEST ** -(torch.arange(count) / WAVES)


@torch.no_grad()
def look_back(
    model: GPT2LMHeadModel, head: int, distance: int, gap: float = 3.0, samples: int = 80_000
) -> None:
    """Set a head of the first layer to attend to the token `distance` to the left.

    Queries and keys read the waves off the layer's normalised input by least squares (tokens are
    noise there), and queries read them `distance` tokens earlier: a rotation of each wave. `gap`
    is by how much the score of that token exceeds its neighbours', in nats. Values and outputs
    start as random orthogonal projections.
    """
    transformer = model.transformer
    block, width = transformer.h[0], model.config.n_embd
    size = width // model.config.n_head
    waves = size // 2
    generator = torch.Generator().manual_seed(head)
    positions = torch.randint(model.config.n_positions, (samples,), generator=generator)
    tokens = torch.randint(1, model.config.vocab_size, (samples,), generator=generator)
    x_ND = block.ln_1(transformer.wte.weight[tokens] + transformer.wpe.weight[positions])
    x_ND = torch.cat([x_ND, torch.ones(samples, 1)], dim=1)
    target_NK = _waves(model.config.n_positions, waves)[positions]
    gram_DD = x_ND.T @ x_ND + 10.0 * torch.eye(width + 1)
    read_DK = torch.linalg.solve(gram_DD, x_ND.T @ target_NK)

    frequency_K = _frequencies(waves)
    sine_DK, cosine_DK = read_DK.split(waves, dim=1)
    sin, cos = (distance * frequency_K).sin(), (distance * frequency_K).cos()
    earlier_DK = torch.cat([sine_DK * cos - cosine_DK * sin, cosine_DK * cos + sine_DK * sin], 1)
    weight_K = frequency_K.sqrt()  # fast waves tell neighbours apart
    weight_K = weight_K / weight_K.norm() * math.sqrt(waves)
    fall = 2 * (weight_K.square() * (1 - frequency_K.cos())).sum()  # from a token to the next
    weight_K = torch.cat([weight_K, weight_K]) * (gap * math.sqrt(size) / fall).sqrt()

    weight, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
    for part, read in enumerate((earlier_DK * weight_K, read_DK * weight_K)):
        columns = slice(part * width + head * size, part * width + (head + 1) * size)
        weight[:, columns], bias[columns] = read[:-1], read[-1]
    columns = slice(2 * width + head * size, 2 * width + (head + 1) * size)
    random_DK = torch.randn(2, width, size, generator=generator)
    value_DK, output_DK = (torch.linalg.qr(each)[0] for each in random_DK)
    weight[:, columns], bias[columns] = 0.04 * math.sqrt(width) * value_DK, 0.0
    block.attn.c_proj.weight[head * size : (head + 1) * size] = (
        0.02 * math.sqrt(width) * output_DK.T
    )
