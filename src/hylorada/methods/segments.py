"""Causal attention within segments of a sequence, as shifted sparse attention needs it.

Full segments are zero-copy views stacked along the batch of one SDPA call, so no N x N tensor
exists and the fused kernels run.

Legend: B batch, H query heads, K key-value heads, N tokens, M segments in one call, G tokens in
each of them, D width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers.integrations.sdpa_attention import repeat_kv

from hylorada.kernels import grouped_heads


def segmented(
    query_BHND: torch.Tensor,
    key_BKND: torch.Tensor,
    value_BKND: torch.Tensor,
    mask: torch.Tensor | None,
    shifted: bool,
    group_size: int,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    """Attention in segments of one pattern; the output [B, N, H, D]."""
    batch, heads, length, _ = query_BHND.shape
    repeats = heads // key_BKND.shape[1]
    # With a mask, and on some GPUs, grouped heads would leave the fused kernels.
    if repeats > 1 and (mask is not None or not grouped_heads.fused(query_BHND)):
        key_BKND, value_BKND = repeat_kv(key_BKND, repeats), repeat_kv(value_BKND, repeats)
        repeats = 1
    lead = group_size // 2 if shifted else 0
    full = (length - lead) // group_size
    tail = lead + full * group_size
    runs = [(0, 1, lead), (lead, full, group_size), (tail, 1, length - tail)]  # start, count, size
    runs = [run for run in runs if run[1] * run[2]]
    # Split once, and not narrowed run by run: the gradient is one tensor put together, where each
    # narrowing would fill one with zeros and add it.
    tokens = [count * size for _, count, size in runs]
    whole = (query_BHND, key_BKND, value_BKND)
    parts = zip(*(x.split(tokens, 2) for x in whole), strict=True) if len(runs) > 1 else [whole]
    outputs = []
    for (start, count, size), part in zip(runs, parts, strict=True):
        mask_MGG = None if mask is None else _segment_mask(mask, batch, start, count, size)
        q_MHGD, k_MKGD, v_MKGD = (_stack_segments(x, count, size) for x in part)
        out_MHGD = F.scaled_dot_product_attention(
            *(q_MHGD, k_MKGD, v_MKGD, mask_MGG, dropout, mask_MGG is None),
            scale=scaling,
            enable_gqa=repeats > 1,
        )
        # The fused kernels write [batch, tokens, heads, width], so this is a view of their output.
        outputs.append(out_MHGD.transpose(1, 2).reshape(batch, count * size, heads, -1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)


Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Queries, keys, values and mask of some of the heads."""


def parted_heads(
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor], mask: torch.Tensor | None, first: int
) -> tuple[Heads, Heads]:
    """The first query heads with their key-value heads, and the others; a single one serves both.

    Each tensor is split once: its gradient is put together, and not filled up with zeros and added.

    Args:
        tensors: queries [B, H, N, D], keys and values [B, K, N, D].
        mask: None, segment ids [B, N], or [B or 1, H or 1, N, N].
        first: query heads, a multiple of H / K unless K is 1.
    """
    heads = tensors[0].shape[1]

    def parted(x_BHxx: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        count = x_BHxx.shape[1]
        if count == 1:
            return x_BHxx, x_BHxx
        here = first * count // heads
        one, other = x_BHxx.split([here, count - here], 1)
        return one, other

    pairs = [parted(x) for x in tensors]
    masks = (mask, mask) if mask is None or mask.dim() == 2 else parted(mask)
    (q, k, v), (q_rest, k_rest, v_rest) = zip(*pairs, strict=True)
    return (q, k, v, masks[0]), (q_rest, k_rest, v_rest, masks[1])


def _stack_segments(x_BHND: torch.Tensor, count: int, size: int) -> torch.Tensor:
    """Segments along the batch, [B * M, H, G, D]: a view for B = 1, whatever the strides."""
    return x_BHND.unflatten(2, (count, size)).transpose(1, 2).flatten(0, 1)


def _segment_mask(
    mask: torch.Tensor, batch: int, start: int, count: int, size: int
) -> torch.Tensor:
    """The diagonal blocks of a mask, [B * M, 1 or H, G, G]; never an N x N tensor of our own."""
    end = start + count * size
    if mask.dim() == 2:
        return dense_mask(mask[:, start:end].reshape(batch * count, size))
    blocks_BHMGMG = mask[:, :, start:end, start:end].unflatten(3, (count, size))
    blocks_BHMGMG = blocks_BHMGMG.unflatten(2, (count, size))
    blocks_BMHGG = blocks_BHMGMG.diagonal(dim1=2, dim2=4).permute(0, 4, 1, 2, 3)
    return blocks_BMHGG.expand(batch, -1, -1, -1, -1).flatten(0, 1)


def dense_mask(ids_BN: torch.Tensor) -> torch.Tensor:
    """Causal within equal ids, [B, 1, N, N]; padding sees padding, so no row is ever empty."""
    index_N = torch.arange(ids_BN.shape[1], device=ids_BN.device)
    same_BNN = ids_BN[:, :, None] == ids_BN[:, None, :]
    return (same_BNN & (index_N[:, None] >= index_N))[:, None]
