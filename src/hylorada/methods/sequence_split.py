"""Sequences too long for one process, split over several: shifted sparse attention, exactly.

In S2-Attn no plain segment crosses a boundary between two parts, as long as a part is a multiple of
the group g; of the shifted ones exactly one does, with g/2 tokens on either side. So a process
needs the last g/2 tokens of keys and values of its left neighbour, in shifted layers (or of shifted
heads) alone, whatever the length of the sequence and the number of processes. Full attention (an
arm without S2, a step of `full_share`, some layers or heads) needs the keys and values of all
tokens before, which are gathered.

Loss and gradients, summed over the processes, are those of one process up to the order of sums.
It is one registered attention function, "sequence_split", which stands in for the model's own
inside `split_sequences`. It is told which part it works on as an argument that transformers hands
down to every attention layer, since activation checkpointing computes layers again in another
thread, at another time. Without a part it is what it stands in for.

What cannot be split so is refused (`split_limits`).

Legend: B sequences, H query heads, K key-value heads, N tokens of a sequence, T tokens of a part,
S keys, D width of a head.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv

from hylorada.architecture import anatomy
from hylorada.kernels import grouped_heads
from hylorada.kernels.linear import product_dtype
from hylorada.methods.landmarks import Landmark
from hylorada.methods.s2_attention import attention_of, by_pattern, use_attention
from hylorada.methods.s2_limits import attends_fully, attention_configs
from hylorada.methods.segments import segmented
from hylorada.methods.sequence_part import SequencePart, documents_of, running_part, with_halo
from hylorada.methods.split_limits import (
    REPLACED,
    group_size_in,
    group_size_of,
    refuse_length,
    refuse_unsplittable,
    refused,
)

SPLIT = "sequence_split"
# Arguments of other attention variants, which would silently be dropped.
_UNSUPPORTED = ("softcap", "position_bias", "s_aux", "sliding_window")


class SequenceSplit:
    """Sequences split over the processes of a group.

    Attributes:
        model: the causal language model that runs them.
        group: of torch.distributed; None: this process alone.
        index: of this process in the group.
        count: processes in it.
        sent: bytes that this process has sent, by what they were.
    """

    def __init__(self, model: nn.Module, group: Any) -> None:
        self.model = model
        self.group = group
        self.index = 0 if group is None else dist.get_rank(group)
        self.count = 1 if group is None else dist.get_world_size(group)
        self.sent: Counter[str] = Counter()

    def part(self, position_ids_BN: Tensor) -> SequencePart:
        """This process's part of rows with these positions.

        Raises:
            ConfigError: rows of this length cannot be split.
        """
        length = position_ids_BN.shape[1]
        refuse_length(length, self.count, group_size_in(self.model, length))
        documents_BN = documents_of(position_ids_BN)
        return SequencePart(self.group, self.index, self.count, length, documents_BN, self.sent)


@contextmanager
def split_sequences(model: nn.Module, group: Any) -> Iterator[SequenceSplit]:
    """Inside the block, the model can be run on a part of its sequences.

    Args:
        model: a causal language model, or a PeftModel of one, as it trains.
        group: the processes that share a sequence (torch.distributed); all of them enter.

    Raises:
        ConfigError: something about the model cannot be split.
    """
    lm = anatomy.causal_lm(model)
    split = SequenceSplit(model, group)
    refuse_unsplittable(model, split.count)
    replaced = attention_of(lm)
    configs = attention_configs(lm)
    for config in configs:
        setattr(config, REPLACED, replaced)
    use_attention(lm, SPLIT)
    try:
        _refuse_if_not_taken(lm)
        yield split
    finally:
        use_attention(lm, replaced)
        for config in configs:
            config.__dict__.pop(REPLACED, None)


def bytes_of_a_step(
    model: nn.Module,
    rows: int,
    length: int,
    processes: int,
    itemsize: int,
    index: int = 0,
    recomputed: int = 0,
) -> dict[str, int]:
    """Bytes that process ``index`` sends in one forward and backward pass, by what they are.

    Args:
        model: as it trains, without `split_sequences` or inside it.
        rows: sequences.
        length: tokens of each.
        processes: that share them.
        itemsize: bytes of a number of keys and values, 2 in bf16.
        index: of the process.
        recomputed: every how many-th layer sends its keys, values and halo once more, by
            activation checkpointing; 0: none.
    """  # fmt: skip
    lm, found = anatomy.causal_lm(model), Counter[str]()
    group_size = group_size_in(model, length)
    for module in anatomy.attention_modules(lm):
        config: Any = module.config
        layer: Any = module.layer_idx
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        times = 2 if recomputed and layer % recomputed == 0 else 1
        width = 2 * (getattr(module, "head_dim", None) or config.hidden_size // heads)  # K and V
        in_segments = group_size and not attends_fully(module)
        fully = config.s2_full_heads if in_segments else heads
        gathered = max(1, fully * kv_heads // heads) if fully else 0
        tokens = (processes - 1) * (length // processes)
        found["keys and values"] += times * rows * gathered * width * tokens * itemsize
        found["keys and values gradient"] += rows * gathered * width * tokens * itemsize
        if not in_segments:
            continue
        heads -= fully
        kv_heads = max(1, kv_heads - gathered)
        if config.s2_shift == "heads":
            odd = kv_heads % 2 and kv_heads > 1
            kv_heads = heads // 2 if odd else max(1, kv_heads // 2)
        elif not layer % 2:
            continue
        halo = rows * kv_heads * width * (group_size // 2) * itemsize
        found["halo"] += times * halo * (index < processes - 1)
        found["halo gradient"] += halo * (index > 0)
    for module in model.modules():
        if isinstance(module, Landmark):
            carry = (processes - 1) * rows * (len(module.L) + 1) * 8  # float64
            found["carry"] += carry
            found["carry gradient"] += carry
    return {what: count for what, count in found.items() if count}


def split_attention_forward(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sequence_part: SequencePart | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of a part of the tokens; signature of transformers' AttentionInterface.

    Args:
        module: the attention layer.
        query_BHTD: queries, rotary embedding of the whole sequence's positions applied.
        key_BKTD: keys; K divides H.
        value_BKTD: values.
        attention_mask: None for a part; else what the replaced attention takes.
        dropout: 0 for a part.
        scaling: factor on the scores; None: 1 / sqrt(D).
        sequence_part: which part; None: whole sequences, by the replaced attention.
        **kwargs: the rest of what transformers passes on.

    Returns:
        The output [B, T, H, D], and None in place of attention weights.
    """
    config: Any = module.config
    if sequence_part is None:
        if running_part() is not None:
            raise refused(f"{type(module).__name__} is not told which part it works on")
        whole = AttentionInterface()[getattr(config, REPLACED)]
        return whole(
            module, query_BHTD, key_BKTD, value_BKTD, attention_mask, dropout=dropout,
            scaling=scaling, **kwargs,
        )  # fmt: skip
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise refused(f"{type(module).__name__} needs {name}, which split attention has not")
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if attention_mask is not None or not causal or dropout:
        what = "a mask" if attention_mask is not None else "dropout" if dropout else "no causality"
        raise refused(f"{type(module).__name__} was given {what}")
    sequence_part.taken.add(module.layer_idx)  # type: ignore[arg-type]
    dtype = product_dtype(query_BHTD)
    query_BHTD, key_BKTD, value_BKTD = (x.to(dtype) for x in (query_BHTD, key_BKTD, value_BKTD))
    group_size = group_size_of(config, module.training, sequence_part.length)
    if not group_size or attends_fully(module):
        return _full(query_BHTD, key_BKTD, value_BKTD, None, sequence_part, scaling), None
    out_BTHD = by_pattern(
        module, query_BHTD, key_BKTD, value_BKTD, None,
        partial(_segments, part=sequence_part, group_size=group_size, scaling=scaling),
        partial(_full, part=sequence_part, scaling=scaling),
    )  # fmt: skip
    return out_BTHD, None


def split_mask(*args: Any, config: Any = None, **kwargs: Any) -> Any:
    """No mask for a part, whose documents it knows itself; else that of the replaced attention."""
    if running_part() is not None:
        return None
    whole = AttentionMaskInterface()[getattr(config, REPLACED)]
    return whole(*args, config=config, **kwargs)


def _segments(
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    _mask: None,
    shifted: bool,
    part: SequencePart,
    group_size: int,
    scaling: float | None,
) -> Tensor:
    """Attention in segments of one pattern; the output [B, T, H, D]."""
    attend: Callable[..., Tensor] = partial(
        segmented, shifted=False, group_size=group_size, dropout=0.0, scaling=scaling
    )
    ids_BT = None if part.documents_BN is None else part.own(part.documents_BN)
    if not shifted:
        return attend(query_BHTD, key_BKTD, value_BKTD, ids_BT)
    half = group_size // 2
    key_first, value_first, key_rest, value_rest = with_halo(key_BKTD, value_BKTD, half, part)
    query_first, query_rest = query_BHTD.split([half, part.tokens - half], 2)
    before = key_first.shape[2] - half
    # The left neighbour's half of the segment is asked too, and the answer thrown away: so causal
    # kernels serve, which know no queries that begin in the middle.
    query_first = F.pad(query_first, (0, 0, before, 0))
    ids_first = ids_rest = None
    if part.documents_BN is not None:
        ids_first = part.documents_BN[:, part.start - before : part.start + half]
        ids_rest = part.documents_BN[:, part.start + half : part.start + part.tokens]
    first_BFHD = attend(query_first, key_first, value_first, ids_first)[:, before:]
    return torch.cat([first_BFHD, attend(query_rest, key_rest, value_rest, ids_rest)], 1)


def _full(
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    _mask: None,
    part: SequencePart,
    scaling: float | None,
) -> Tensor:
    """Attention to all tokens before, of whatever part; the output [B, T, H, D]."""
    key_BKSD, value_BKSD = (_up_to_here(x, part) for x in (key_BKTD, value_BKTD))
    repeats = query_BHTD.shape[1] // key_BKSD.shape[1]
    packed = part.documents_BN is not None
    if repeats > 1 and (packed or not grouped_heads.fused(query_BHTD)):
        key_BKSD, value_BKSD = repeat_kv(key_BKSD, repeats), repeat_kv(value_BKSD, repeats)
        repeats = 1
    mask: Any = causal_lower_right(part.tokens, key_BKSD.shape[2])
    if part.documents_BN is not None:
        key_ids_BS = part.documents_BN[:, : part.start + part.tokens]
        same_BTS = part.own(part.documents_BN)[:, :, None] == key_ids_BS[:, None, :]
        mask = same_BTS.tril(part.start)[:, None]
    out_BHTD = F.scaled_dot_product_attention(
        query_BHTD, key_BKSD, value_BKSD, attn_mask=mask, scale=scaling, enable_gqa=repeats > 1
    )
    return out_BHTD.transpose(1, 2)


def _up_to_here(x_BKTD: Tensor, part: SequencePart) -> Tensor:
    """Of the parts before and of this one, [B, K, S, D]."""
    everybody_RBKTD = part.gathered(x_BKTD, "keys and values")
    return everybody_RBKTD[: part.index + 1].permute(1, 2, 0, 3, 4).flatten(2, 3)


def _refuse_if_not_taken(lm: Any) -> None:
    """Refuse a model whose attention layers are not told which part they work on, by running it."""
    embedding_VD = lm.get_input_embeddings().weight
    ids_1T = torch.arange(9, device=embedding_VD.device)[None] % embedding_VD.shape[0]
    positions_1T = torch.arange(9, device=embedding_VD.device)[None]
    part = SequencePart(None, 0, 1, 9)
    try:
        with torch.no_grad(), part.running():
            anatomy.backbone(lm)(
                input_ids=ids_1T, position_ids=positions_1T, use_cache=False, sequence_part=part
            )
    except TypeError as error:
        raise refused(f"{type(lm).__name__} hands nothing down to its layers") from error
    taken, layers = len(part.taken), len(anatomy.decoder_layers(lm))
    if taken != layers:
        raise refused(f"only {taken} of {layers} layers of {type(lm).__name__} take part")


AttentionInterface.register(SPLIT, split_attention_forward)
AttentionMaskInterface.register(SPLIT, split_mask)
