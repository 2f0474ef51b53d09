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
transformers passes no mask at all and padding would be attended to); `segments` computes it.
Outside training, for n <= g, when decoding with a cache, and in layers that are to attend fully,
it is ordinary SDPA; heads that are to attend fully take the whole sequence for one segment.

Legend: B batch, H query heads, K key-value heads, N tokens, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import causal_mask_function, sdpa_mask

from hylorada.architecture.anatomy import attention_modules, backbone, causal_lm, decoder
from hylorada.errors import ConfigError
from hylorada.kernels import grouped_heads
from hylorada.kernels.linear import product_dtype
from hylorada.methods.s2_limits import (
    attends_fully,
    attention_configs,
    check_settings,
    excluded,
    full_heads_of,
    full_layers,
)
from hylorada.methods.segments import dense_mask, parted_heads, segmented

S2 = "s2"
_SETTINGS = (
    "s2_group_size", "s2_shift", "s2_in_evaluation", "s2_full_heads", "s2_replaced_attention",
)  # fmt: skip
# Arguments of other attention variants, which the segments would silently drop.
_UNSUPPORTED = ("softcap", "position_bias", "s_aux", "sliding_window")

# Index of a layer -> its heads in segments and all its heads, while `record_s2_layers` listens: of
# this thread of control, so that a model which another thread runs at the same time is not counted.
_taken: ContextVar[dict[int, tuple[int, int]] | None] = ContextVar("s2_layers_taken", default=None)


def enable_s2(
    model: nn.Module,
    group_size: int,
    shift: str,
    in_evaluation: bool = False,
    max_length: int | None = None,
    full: float = 0.0,
    share_of_heads: float = 0.0,
) -> int:
    """Switch shifted sparse attention on, for every attention layer of ``model`` or most of them.

    The settings live on the model's transformers config (``s2_group_size``, ``s2_shift``,
    ``s2_in_evaluation``, ``s2_full_heads``) and are read at every call.

    Args:
        model: a causal language model, or a PeftModel of one.
        group_size: g, tokens in a segment; even.
        shift: "layers" or "heads".
        in_evaluation: also in evaluation mode; otherwise only in training mode.
        max_length: tokens in a training sequence, to refuse a group that never splits it.
        full: share of the layers that attend fully all the same (`s2_limits.full_layers`).
        share_of_heads: that attend fully in the other layers (`s2_limits.full_heads`).

    Returns:
        The number of layers that take it, counted by running a short probe.

    Raises:
        ConfigError: a setting that is wrong or cannot take effect on this model.
    """
    lm = causal_lm(model)
    check_settings(lm, group_size, shift, max_length, share_of_heads)
    layers = attention_modules(lm)
    attending_fully = {id(layers[i]) for i in full_layers(len(layers), full)}
    replaced = attention_of(lm)
    if replaced == S2:
        replaced = getattr(lm.config, "s2_replaced_attention", "sdpa")
    for config in attention_configs(lm):
        config.s2_group_size = group_size
        config.s2_shift = shift
        config.s2_in_evaluation = in_evaluation
        config.s2_full_heads = full_heads_of(config, share_of_heads)[0]
        config.s2_replaced_attention = replaced
    for module in layers:
        if (index := getattr(module, "layer_idx", None)) is not None:
            vars(module)["s2_shifted"] = bool(int(index) % 2)
        vars(module)["s2_full"] = id(module) in attending_fully
    use_attention(lm, S2)
    try:
        taken = s2_heads(model)
        if share_of_heads and any(some == heads for some, heads in taken.values()):
            raise excluded(f"how many heads {type(lm).__name__} has its config does not say")
    except ConfigError:
        disable_s2(model)
        raise
    if not taken:
        disable_s2(model)
        raise excluded(
            f"no layer of {type(lm).__name__} takes it, its attention does not go through "
            "transformers' AttentionInterface"
        )
    return len(taken)


def disable_s2(model: nn.Module) -> None:
    """Undo `enable_s2`; the model's former attention implementation returns."""
    lm = causal_lm(model)
    replaced = getattr(lm.config, "s2_replaced_attention", None)
    if replaced and attention_of(lm) == S2:
        use_attention(lm, replaced)
    for config in attention_configs(lm):
        for name in _SETTINGS:
            config.__dict__.pop(name, None)
    for module in attention_modules(lm):
        vars(module).pop("s2_shifted", None)
        vars(module).pop("s2_full", None)


def attention_of(model: nn.Module) -> str:
    """The attention implementation of the language model."""
    return decoder(model).config._attn_implementation


def use_attention(model: nn.Module, implementation: str) -> None:
    """Set the attention implementation of the language model; a vision part keeps its own."""
    decoder(model).set_attn_implementation(implementation)


def s2_heads(model: nn.Module) -> dict[int, tuple[int, int]]:
    """Index of a layer -> its heads that really run in segments during training, and all its heads.

    Counted by running a few tokens in training mode with small segments, not by reading the config.
    Settings, modes and random state are left as they were.
    """
    lm = causal_lm(model)
    configs = [c for c in attention_configs(lm) if hasattr(c, "s2_group_size")]
    if not configs:
        return {}
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
    return taken


@contextmanager
def record_s2_layers() -> Iterator[dict[int, tuple[int, int]]]:
    """Collect what runs in segments inside the ``with`` block, as `s2_heads` returns it.

    Of what the calling thread runs: forward passes, and on a CPU what activation checkpointing
    computes again in the backward pass. A block inside another one has a list of its own.
    """
    taken: dict[int, tuple[int, int]] = {}
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
    active = (module.training or config.s2_in_evaluation) and not attends_fully(module)
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if not (active and causal and group_size < length == key_BKND.shape[2]):
        if attention_mask is not None and attention_mask.dim() == 2:
            attention_mask = dense_mask(attention_mask)
        return grouped_heads.sdpa(
            module, query_BHND, key_BKND, value_BKND, attention_mask, dropout, scaling, **kwargs
        )
    # What autocast would do in each of several calls.
    dtype = product_dtype(query_BHND)
    query_BHND, key_BKND, value_BKND = (x.to(dtype) for x in (query_BHND, key_BKND, value_BKND))
    attend = partial(segmented, dropout=dropout, scaling=scaling)
    out_BNHD = by_pattern(
        module, query_BHND, key_BKND, value_BKND, attention_mask,
        partial(attend, group_size=group_size), partial(attend, shifted=False, group_size=length),
    )  # fmt: skip
    return out_BNHD, None


def by_pattern(
    module: nn.Module,
    query_BHND: torch.Tensor,
    key_BKND: torch.Tensor,
    value_BKND: torch.Tensor,
    mask: torch.Tensor | None,
    attend: Callable[..., torch.Tensor],
    attend_to_all: Callable[..., torch.Tensor],
) -> torch.Tensor:
    """Attention of one layer by the pattern of its config, [B, N, H, D].

    Args:
        module: the attention layer.
        query_BHND: queries.
        key_BKND: keys.
        value_BKND: values.
        mask: as `s2_attention_forward` has it.
        attend: (queries, keys, values, mask, shifted) -> output of those heads, in segments.
        attend_to_all: (queries, keys, values, mask) -> output of those that attend fully.
    """
    config: Any = module.config
    heads, kv_heads, fully = query_BHND.shape[1], key_BKND.shape[1], config.s2_full_heads
    if kv_heads > 1 and fully * kv_heads % heads:
        raise excluded(
            f"{fully} of {heads} heads of {type(module).__name__} do not go with their "
            f"{kv_heads} key-value heads (use full_heads=0)"
        )
    taken = None if torch.compiler.is_compiling() else _taken.get()
    if taken is not None:
        taken[module.layer_idx] = heads - fully, heads  # type: ignore[index]
    out_BNHD = []
    if fully:
        first, rest = parted_heads((query_BHND, key_BKND, value_BKND), mask, fully)
        out_BNHD.append(attend_to_all(*first))
        query_BHND, key_BKND, value_BKND, mask = rest
    if config.s2_shift == "layers":
        shifted: Any = getattr(module, "s2_shifted", None)  # one of two, for one graph each
        if shifted is None:
            shifted = bool(module.layer_idx % 2)  # type: ignore[operator]
        out_BNHD.append(attend(query_BHND, key_BKND, value_BKND, mask, shifted))
        return out_BNHD[0] if len(out_BNHD) == 1 else torch.cat(out_BNHD, 2)
    heads, kv_heads = query_BHND.shape[1], key_BKND.shape[1]
    if kv_heads % 2 and kv_heads > 1:  # the halves would cut a key-value head in two
        key_BKND = repeat_kv(key_BKND, heads // kv_heads)
        value_BKND = repeat_kv(value_BKND, heads // kv_heads)
    halves = parted_heads((query_BHND, key_BKND, value_BKND), mask, (heads + 1) // 2)
    out_BNHD += [
        attend(*half, shifted) for half, shifted in zip(halves, (False, True), strict=True)
    ]
    return torch.cat(out_BNHD, 2)


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


AttentionInterface.register(S2, s2_attention_forward)
AttentionMaskInterface.register(S2, s2_mask)
