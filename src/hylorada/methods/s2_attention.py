"""Shifted sparse attention, S2-Attn (paper 2.2; LongLoRA, arXiv:2309.12307, section 3.2).

A sequence is cut into segments of g tokens and a token attends causally within its own segment:

    plain:    0, g, 2g, ..., n
    shifted:  0, g/2, 3g/2, ..., n

The shifted segments straddle the plain boundaries, so information crosses them. Two patterns:

    layers    every odd layer is shifted, with all its heads (the paper)
    heads     the second half of the heads is shifted, in every layer (LongLoRA)

There is no wrap-around. LongLoRA shifts with `torch.roll`, which puts the first g/2 and the last
g/2 tokens into one segment and lets the past read the future; here the first shifted segment is
simply half as long. Any length works: the last segment is what remains.

It is one registered attention function, "s2", with a mask function of the same name (without one,
transformers passes no mask at all and padding would be attended to). Full segments are zero-copy
views stacked along the batch of one SDPA call, so no n x n tensor exists and the fused kernels run.
Outside training, for n <= g, and when decoding with a cache, it is ordinary SDPA.

Legend: B batch, H query heads, K key-value heads, N tokens, M segments in one call, G tokens in
each of them, D width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import causal_mask_function, sdpa_mask

from hylorada.architecture.anatomy import backbone, causal_lm, decoder
from hylorada.errors import ConfigError
from hylorada.kernels import grouped_heads
from hylorada.kernels.linear import product_dtype
from hylorada.methods.s2_limits import attention_configs, check_settings, excluded

S2 = "s2"
_SETTINGS = ("s2_group_size", "s2_shift", "s2_in_evaluation", "s2_replaced_attention")
# Arguments of other attention variants, which the segments would silently drop.
_UNSUPPORTED = ("softcap", "position_bias", "s_aux", "sliding_window")

# Layer indices, while `record_s2_layers` listens: of this thread of control, so that a model which
# another thread runs at the same time is not counted.
_taken: ContextVar[set[int] | None] = ContextVar("s2_layers_taken", default=None)


def enable_s2(
    model: nn.Module,
    group_size: int,
    shift: str,
    in_evaluation: bool = False,
    max_length: int | None = None,
) -> int:
    """Switch shifted sparse attention on, for every attention layer of ``model``.

    The settings live on the model's transformers config (``s2_group_size``, ``s2_shift``,
    ``s2_in_evaluation``) and are read at every call.

    Args:
        model: a causal language model, or a PeftModel of one.
        group_size: g, tokens in a segment; even.
        shift: "layers" or "heads".
        in_evaluation: also in evaluation mode; otherwise only in training mode.
        max_length: tokens in a training sequence, to refuse a group that never splits it.

    Returns:
        The number of layers that take it, counted by running a short probe.

    Raises:
        ConfigError: a setting that is wrong or cannot take effect on this model.
    """
    lm = causal_lm(model)
    check_settings(lm, group_size, shift, max_length)
    replaced = attention_of(lm)
    if replaced == S2:
        replaced = getattr(lm.config, "s2_replaced_attention", "sdpa")
    for config in attention_configs(lm):
        config.s2_group_size = group_size
        config.s2_shift = shift
        config.s2_in_evaluation = in_evaluation
        config.s2_replaced_attention = replaced
    use_attention(lm, S2)
    try:
        count = count_s2_layers(model)
    except ConfigError:
        disable_s2(model)
        raise
    if count == 0:
        disable_s2(model)
        raise excluded(
            f"no layer of {type(lm).__name__} takes it, its attention does not go through "
            "transformers' AttentionInterface"
        )
    return count


def disable_s2(model: nn.Module) -> None:
    """Undo `enable_s2`; the model's former attention implementation returns."""
    lm = causal_lm(model)
    replaced = getattr(lm.config, "s2_replaced_attention", None)
    if replaced and attention_of(lm) == S2:
        use_attention(lm, replaced)
    for config in attention_configs(lm):
        for name in _SETTINGS:
            config.__dict__.pop(name, None)


def attention_of(model: nn.Module) -> str:
    """The attention implementation of the language model."""
    return decoder(model).config._attn_implementation


def use_attention(model: nn.Module, implementation: str) -> None:
    """Set it; a part that reads pictures keeps its own."""
    decoder(model).set_attn_implementation(implementation)


def count_s2_layers(model: nn.Module) -> int:
    """The number of layers whose attention really runs in segments during training.

    Counted by running a few tokens in training mode with small segments, not by reading the config.
    Settings, modes and random state are left as they were.
    """
    lm = causal_lm(model)
    configs = [c for c in attention_configs(lm) if hasattr(c, "s2_group_size")]
    if not configs:
        return 0
    kept = [config.s2_group_size for config in configs]
    modes = [(module, module.training) for module in lm.modules()]
    embedding_VD = lm.get_input_embeddings().weight
    ids_BN = torch.arange(9, device=embedding_VD.device)[None] % embedding_VD.shape[0]
    cuda = [embedding_VD.device] if embedding_VD.is_cuda else []
    try:
        for config in configs:
            config.s2_group_size = 4
        lm.train()
        with torch.random.fork_rng(cuda), torch.no_grad(), record_s2_layers() as taken:
            backbone(lm)(input_ids=ids_BN, use_cache=False)
    finally:
        for config, group_size in zip(configs, kept, strict=True):
            config.s2_group_size = group_size
        for module, mode in modes:
            module.training = mode
    return len(taken)


@contextmanager
def record_s2_layers() -> Iterator[set[int]]:
    """Collect the indices of the layers that run in segments inside the ``with`` block.

    Of what the calling thread runs: forward passes, and on a CPU what activation checkpointing
    computes again in the backward pass. A block inside another one has a list of its own.
    """
    taken: set[int] = set()
    token = _taken.set(taken)
    try:
        yield taken
    finally:
        _taken.reset(token)


def s2_attention_forward(
    module: nn.Module,
    query_BHND: torch.Tensor,
    key_BKND: torch.Tensor,
    value_BKND: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within segments; signature of transformers' AttentionInterface.

    Args:
        module: the attention layer; its ``config`` has the settings, its ``layer_idx`` the parity.
        query_BHND: queries, rotary embedding applied.
        key_BKND: keys; K divides H.
        value_BKND: values.
        attention_mask: None (causal), segment ids [B, N] of `s2_mask`, or a caller's 4-D mask
            [B or 1, H or 1, N, N], boolean or additive.
        dropout: probability on the attention weights.
        scaling: factor on the scores; None: 1 / sqrt(D).
        **kwargs: the rest of what transformers passes on.

    Returns:
        The output [B, N, H, D], and None in place of attention weights.
    """
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise excluded(
                f"{type(module).__name__} needs {name}, which shifted sparse attention does not "
                "have"
            )
    config: Any = module.config
    group_size, length = config.s2_group_size, query_BHND.shape[2]
    active = module.training or config.s2_in_evaluation
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if not (active and causal and group_size < length == key_BKND.shape[2]):
        if attention_mask is not None and attention_mask.dim() == 2:
            attention_mask = _dense_mask(attention_mask)
        return grouped_heads.sdpa(
            module, query_BHND, key_BKND, value_BKND, attention_mask, dropout, scaling, **kwargs
        )
    taken = None if torch.compiler.is_compiling() else _taken.get()
    if taken is not None:
        taken.add(module.layer_idx)  # type: ignore[arg-type]
    # What autocast would do in each of several calls.
    dtype = product_dtype(query_BHND)
    query_BHND, key_BKND, value_BKND = (x.to(dtype) for x in (query_BHND, key_BKND, value_BKND))
    segmented = partial(_segmented, group_size=group_size, dropout=dropout, scaling=scaling)
    if config.s2_shift == "layers":
        shifted = bool(module.layer_idx % 2)  # type: ignore[operator]
        return segmented(query_BHND, key_BKND, value_BKND, attention_mask, shifted), None
    heads, kv_heads = query_BHND.shape[1], key_BKND.shape[1]
    if kv_heads % 2 and kv_heads > 1:  # the halves would cut a key-value head in two
        key_BKND = repeat_kv(key_BKND, heads // kv_heads)
        value_BKND = repeat_kv(value_BKND, heads // kv_heads)
    out_BNHD = []
    for shifted in (False, True):
        part = partial(_half_of_heads, second=shifted)
        mask = attention_mask
        if mask is not None and mask.dim() == 4:
            mask = part(mask)
        q_BHND, k_BKND, v_BKND = part(query_BHND), part(key_BKND), part(value_BKND)
        out_BNHD.append(segmented(q_BHND, k_BKND, v_BKND, mask, shifted))
    return torch.cat(out_BNHD, 2), None


def s2_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    config: Any = None,
    device: torch.device | str = "cpu",
    use_vmap: bool = False,
    local_size: int | None = None,
    **kwargs: Any,
) -> torch.Tensor | None:
    """The mask for `s2_attention_forward`; signature of transformers' AttentionMaskInterface.

    Args:
        batch_size: B.
        q_length: N.
        kv_length: keys; more than N when decoding with a cache.
        kv_offset: index of the first key.
        mask_function: transformers' mask as a function of indices; packed documents are in it.
        attention_mask: 2-D, True for real tokens.
        config: the model's config.
        device: where the mask is made.
        use_vmap: the mask function is a caller's own, not one of plain indices.
        local_size: sliding window, in tokens; refused. Models whose config has no window ask for
            the mask of one all the same, of 0 tokens or None, and give it to no layer (Qwen2-MoE).
        **kwargs: the rest, passed on.

    Returns:
        None where causality alone is right (real tokens never see padding on their right), document
        ids [B, N] with 0 for padding, or transformers' 4-D mask where segments cannot apply.
    """
    if local_size:
        raise excluded(
            f"a sliding window ({local_size} tokens) and shifted sparse attention exclude each "
            "other"
        )
    if local_size == 0:
        return None
    if use_vmap or q_length != kv_length or q_length <= config.s2_group_size:
        return sdpa_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            config=config,
            device=device,
            use_vmap=use_vmap,
            **kwargs,
        )
    if attention_mask is None and mask_function is causal_mask_function:
        return None
    # A token starts a document if it does not see its left neighbour: O(N) questions to the mask.
    q_1N = torch.arange(q_length, device=device)[None]
    b_B1 = torch.arange(batch_size, device=device)[:, None]
    joined_BN = mask_function(b_B1, b_B1.new_zeros(()), q_1N, (q_1N - 1).clamp(min=0))
    starts_BN = ~joined_BN.expand(batch_size, -1) | (q_1N == 0)
    ids_BN = starts_BN.cumsum(1)
    if attention_mask is not None:
        real_BN = attention_mask[:, kv_offset : kv_offset + kv_length]
        ids_BN = torch.where(real_BN, ids_BN, 0)
    if not torch.compiler.is_compiling():  # the answer depends on data
        one_document = (ids_BN[:, 0] == 1) & (ids_BN.diff(dim=1) <= 0).all(1)
        if one_document.all():
            return None
    return ids_BN


def _segmented(
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


def _half_of_heads(x_BHxx: torch.Tensor, second: bool) -> torch.Tensor:
    """The first or second half of the heads; a single head serves both."""
    return x_BHxx if x_BHxx.shape[1] == 1 else x_BHxx.chunk(2, 1)[int(second)]


def _stack_segments(x_BHND: torch.Tensor, count: int, size: int) -> torch.Tensor:
    """Segments along the batch, [B * M, H, G, D]: a view for B = 1, whatever the strides."""
    return x_BHND.unflatten(2, (count, size)).transpose(1, 2).flatten(0, 1)


def _segment_mask(
    mask: torch.Tensor, batch: int, start: int, count: int, size: int
) -> torch.Tensor:
    """The diagonal blocks of a mask, [B * M, 1 or H, G, G]; never an N x N tensor of our own."""
    end = start + count * size
    if mask.dim() == 2:
        return _dense_mask(mask[:, start:end].reshape(batch * count, size))
    blocks_BHMGMG = mask[:, :, start:end, start:end].unflatten(3, (count, size))
    blocks_BHMGMG = blocks_BHMGMG.unflatten(2, (count, size))
    blocks_BMHGG = blocks_BHMGMG.diagonal(dim1=2, dim2=4).permute(0, 4, 1, 2, 3)
    return blocks_BMHGG.expand(batch, -1, -1, -1, -1).flatten(0, 1)


def _dense_mask(ids_BN: torch.Tensor) -> torch.Tensor:
    """Causal within equal ids, [B, 1, N, N]; padding sees padding, so no row is ever empty."""
    index_N = torch.arange(ids_BN.shape[1], device=ids_BN.device)
    same_BNN = ids_BN[:, :, None] == ids_BN[:, None, :]
    return (same_BNN & (index_N[:, None] >= index_N))[:, None]


AttentionInterface.register(S2, s2_attention_forward)
AttentionMaskInterface.register(S2, s2_mask)
