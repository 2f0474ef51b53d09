"""Causal attention in fp32 on a CPU, by oneDNN's matrix products.

torch's fused CPU kernel multiplies through the BLAS library, which in fp32 reaches a third of some
CPUs. (In bf16 it does not pay to do it oneself: the kernel's softmax is fp32 and costs the same.)
Here a block of queries meets all of its keys at once, one head at
a time:

    S = scale * Q K^T + causal mask,   P = softmax(S),   O = P V

with S of one block [Q, E] as the only large tensor, small enough for the caches. Nothing but q, k
and v is kept for the backward pass, which forms P again:

    dV = P^T dO,   dS = P * (dO V^T - rowsum(P * dO V^T)),   dQ = scale dS K,   dK = scale dS^T Q

Legend: M sequences, H query heads, K key-value heads, G tokens, D width of a head, Q queries in a
block, E keys that the block's last query sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hylorada.kernels.linear import fast_linear, onednn_serves, product_dtype
from hylorada.kernels.switch import are_left_out

BLOCK = 256  # queries at a time
SHORTEST = 512  # tokens; below, the calls cost as much as the products


def serves(query_MHGD: Tensor) -> bool:
    """Whether `causal_attention` is there for this input and faster than SDPA."""
    return (
        not torch.compiler.is_compiling()
        and not are_left_out()
        and onednn_serves(query_MHGD.device)
        and query_MHGD.shape[2] >= SHORTEST
        and query_MHGD.dtype == product_dtype(query_MHGD) == torch.float32  # no autocast either
    )


def causal_attention(
    query_MHGD: Tensor, key_MKGD: Tensor, value_MKGD: Tensor, scaling: float | None
) -> Tensor:
    """softmax(scale * Q K^T, causal) V.

    Args:
        query_MHGD: queries, fp32.
        key_MKGD: keys of the same tokens; K divides H.
        value_MKGD: values.
        scaling: factor on the scores; None: 1 / sqrt(D).

    Returns:
        [M, H, G, D], a view of [M, G, H, D].
    """
    scale = query_MHGD.shape[-1] ** -0.5 if scaling is None else scaling
    return _CausalAttention.apply(query_MHGD, key_MKGD, value_MKGD, scale)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_MHGD: Tensor, key_MKGD: Tensor, value_MKGD: Tensor, scale: float
    ) -> Tensor:
        M, H, G, D = query_MHGD.shape
        out_MGHD = query_MHGD.new_empty(M, G, H, D)
        future_QQ = _future(G, query_MHGD.device)
        for m, h, kv in _heads(query_MHGD, key_MKGD):
            k_GD, v_GD = key_MKGD[m, kv].contiguous(), value_MKGD[m, kv].contiguous()
            scaled_GD = query_MHGD[m, h] * scale
            for start, end in _blocks(G):
                p_QE = _probabilities(scaled_GD[start:end], k_GD[:end], future_QQ)
                out_MGHD[m, start:end, h] = fast_linear(p_QE, v_GD[:end].t())
        ctx.save_for_backward(query_MHGD, key_MKGD, value_MKGD)
        ctx.scale = scale
        return out_MGHD.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MHGD: Tensor) -> tuple[Tensor | None, ...]:
        query_MHGD, key_MKGD, value_MKGD = ctx.saved_tensors
        G = query_MHGD.shape[2]
        dq_MHGD, dk_MKGD, dv_MKGD = (
            torch.empty_like(query_MHGD),
            torch.zeros_like(key_MKGD),
            torch.zeros_like(value_MKGD),
        )
        future_QQ = _future(G, grad_MHGD.device)
        for m, h, kv in _heads(query_MHGD, key_MKGD):
            scaled_GD, k_GD = query_MHGD[m, h] * ctx.scale, key_MKGD[m, kv].contiguous()
            g_GD, v_GD = grad_MHGD[m, h].contiguous(), value_MKGD[m, kv].contiguous()
            dk_DG, dv_DG = torch.zeros_like(k_GD.t()), torch.zeros_like(v_GD.t())
            for start, end in _blocks(G):
                block = slice(start, end)
                p_QE = _probabilities(scaled_GD[block], k_GD[:end], future_QQ)
                dp_QE = fast_linear(g_GD[block], v_GD[:end])
                ds_QE = torch._softmax_backward_data(dp_QE, p_QE, 1, torch.float32)
                dq_MHGD[m, h, block] = fast_linear(ds_QE, k_GD[:end].t()) * ctx.scale
                # transposed, because a product with few rows and many columns is the fast one
                dv_DG[:, :end] += fast_linear(g_GD[block].t(), p_QE.t())
                dk_DG[:, :end] += fast_linear(scaled_GD[block].t(), ds_QE.t())
            dk_MKGD[m, kv] += dk_DG.t()
            dv_MKGD[m, kv] += dv_DG.t()
        return dq_MHGD, dk_MKGD, dv_MKGD, None


def _heads(query_MHGD: Tensor, key_MKGD: Tensor) -> Iterator[tuple[int, int, int]]:
    """(sequence, query head, its key-value head)."""
    heads = query_MHGD.shape[1]
    repeats = heads // key_MKGD.shape[1]
    for m in range(query_MHGD.shape[0]):
        for h in range(heads):
            yield m, h, h // repeats


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    for start in range(0, length, BLOCK):
        yield start, min(start + BLOCK, length)


def _future(length: int, device: torch.device) -> Tensor:
    """-inf above the diagonal of a block, 0 elsewhere."""
    size = min(BLOCK, length)
    return torch.full((size, size), float("-inf"), device=device).triu(1)


def _probabilities(q_QD: Tensor, k_ED: Tensor, future_QQ: Tensor) -> Tensor:
    """softmax of the scores of the last Q of E tokens, [Q, E]; exactly 0 in the future."""
    s_QE = fast_linear(q_QD, k_ED)
    queries = len(q_QD)
    s_QE[:, -queries:] += future_QQ[:queries, :queries]
    return torch.softmax(s_QE, 1)
