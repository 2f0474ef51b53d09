"""Which sequences cannot be split over processes, found before they are."""

from __future__ import annotations

from typing import Any

from torch import nn

from hylorada.architecture import anatomy
from hylorada.errors import ConfigError
from hylorada.methods.landmarks import Landmark
from hylorada.methods.rope_tables import rope_config
from hylorada.methods.s2_attention import S2, attention_of
from hylorada.methods.s2_limits import attention_configs

REPLACED = "split_replaced_attention"
"""The name, in the model's config, of the attention that split attention stands in for."""


def refuse_unsplittable(model: nn.Module, processes: int, length: int = 0) -> None:
    """Refuse a model whose sequences cannot be split, by its modules and its config.

    Args:
        model: with its adapter; needs no weights.
        processes: that share a sequence.
        length: tokens of a sequence; 0: not known yet.

    Raises:
        ConfigError: naming what is in the way, and what to do.
    """
    lm = anatomy.causal_lm(model)
    kind, attention = type(lm).__name__, anatomy.attention_modules(lm)
    if not attention or not type(anatomy.decoder(lm))._can_set_attn_implementation():
        raise refused(f"no attention of {kind} goes through transformers' AttentionInterface")
    layers = anatomy.decoder_layers(lm)
    if len(attention) != len(layers):
        raise refused(
            f"{kind} has {len(layers)} layers and attention in {len(attention)} of them; what else "
            "passes from token to token is not known"
        )
    form = anatomy.position_form(lm)
    if form in (anatomy.PositionForm.DISTANCES, anatomy.PositionForm.STATE):
        raise refused(f"{kind} has {form.value}")
    if attention_of(lm) not in (S2, "sdpa"):
        raise refused(
            f"attention is {attention_of(lm)}; set model.attn_implementation=sdpa", cure=""
        )
    for config in attention_configs(lm):
        window = getattr(config, "sliding_window", None)
        types = getattr(config, "layer_types", None) or []
        if any(t != "full_attention" for t in types) or (window and not types):
            raise refused(f"not every layer of {kind} attends fully")
    dynamic = _changing_rope(lm)
    if dynamic:
        raise refused(
            f"rope_type={dynamic} takes its frequencies from the largest position that it is given",
            "use method.position_range.rope_type=yarn, or sequence_ranks=1",
        )
    for module in model.modules():
        if isinstance(module, Landmark) and module.pooling == "sequence_mean":
            raise refused(
                "landmark.pooling=sequence_mean reads the parts after a token's own",
                "use prefix_mean, or sequence_ranks=1",
            )
        if isinstance(module, nn.Dropout) and module.p > 0:
            raise refused(
                "dropout draws for whole sequences", "set lora_dropout=0, or sequence_ranks=1"
            )
    if length:
        refuse_length(length, processes, group_size_in(model, length))


def group_size_in(model: nn.Module, length: int) -> int:
    """Tokens in a segment, in training; 0 where the model attends fully to sequences so long."""
    configs = attention_configs(anatomy.causal_lm(model))
    return max(group_size_of(config, True, length) for config in configs)


def group_size_of(config: Any, training: bool, length: int) -> int:
    """The same, of an attention layer with this config, in training mode or not."""
    implementation = getattr(config, REPLACED, config._attn_implementation)
    if implementation != S2 or not (training or config.s2_in_evaluation):
        return 0
    return config.s2_group_size if config.s2_group_size < length else 0


def refuse_length(length: int, processes: int, group_size: int) -> None:
    """Refuse sequences that cannot be cut into equal parts without cutting a segment.

    Args:
        length: tokens of a sequence.
        processes: that share it.
        group_size: tokens in a segment; 0: attention is full.
    """
    if length % processes:
        raise refused(
            f"{length} tokens are no multiple of {processes} processes",
            "use another length or sequence_ranks",
        )
    if group_size and (length // processes) % group_size:
        raise refused(
            f"{length} tokens over {processes} processes are {length // processes} each, which is "
            f"no multiple of the group of {group_size}",
            "use another method.s2_attn.group_size, length or sequence_ranks",
        )


def _changing_rope(lm: Any) -> str:
    """The rope type whose frequencies depend on how far the positions reach; empty if none does."""
    for _, module in anatomy.rotary_modules(lm):
        parameters = getattr(rope_config(lm, module), "rope_parameters", None) or {}
        nested = [own for own in parameters.values() if isinstance(own, dict)]
        for own in nested or [parameters]:
            if own.get("rope_type") in ("dynamic", "longrope"):
                return str(own["rope_type"])
    return ""


def refused(reason: str, cure: str = "set sequence_ranks=1") -> ConfigError:
    """The refusal, with what to do."""
    return ConfigError(f"sequence_ranks: {reason}{'; ' if cure else ''}{cure}")
