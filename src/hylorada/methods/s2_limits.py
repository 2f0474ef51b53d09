"""What shifted sparse attention cannot be combined with, found before it is switched on."""

from __future__ import annotations

from typing import Any

from torch import nn

from hylorada.architecture.anatomy import attention_modules, causal_lm, decoder
from hylorada.config_rules import choices
from hylorada.errors import ConfigError

SHIFTS = choices("method.s2_attn.shift")


def attention_configs(model: nn.Module) -> list[Any]:
    """The config objects that the model and its attention layers read, each once."""
    lm = causal_lm(model)
    configs = [lm.config, *(m.config for m in attention_modules(lm) if hasattr(m, "config"))]
    return list({id(config): config for config in configs}.values())


def check_settings(lm: Any, group_size: int, shift: str, max_length: int | None) -> None:
    """Refuse settings that are wrong, or that cannot take effect on this model."""
    if shift not in SHIFTS:
        raise ConfigError(f"s2_attn.shift: {shift!r} is not one of {', '.join(SHIFTS)}")
    if group_size < 2 or group_size % 2:
        raise ConfigError(
            f"s2_attn.group_size: {group_size} is not an even number of at least 2 tokens; "
            "the shifted segments start at half a group"
        )
    if max_length is not None and group_size >= max_length:
        raise ConfigError(
            f"s2_attn.group_size: {group_size} tokens do not split a sequence of {max_length}; "
            "take a group below the length, or set method.s2_attn.enabled=false"
        )
    reason = s2_obstacle(lm, shift)
    if reason:
        raise excluded(reason)


def s2_obstacle(model: nn.Module, shift: str) -> str:
    """Why a model cannot take shifted sparse attention, by its config and modules; empty if it can.

    Needs no weights. What only a forward pass shows, `enable_s2` finds.
    """
    lm = causal_lm(model)
    kind = type(lm).__name__
    for config in attention_configs(lm):
        types = getattr(config, "layer_types", None) or []
        window = getattr(config, "sliding_window", None)
        local = getattr(config, "attention_window_size", None)  # RecurrentGemma
        if local or (any("sliding" in t for t in types) if types else window):
            window = local or window
            return f"{kind} already limits attention to a window of {window} tokens"
        if "chunked_attention" in types:
            chunk = getattr(config, "attention_chunk_size", None)
            return f"{kind} already limits attention to chunks of {chunk} tokens"
        if getattr(config, "attn_logit_softcapping", None):
            return f"{kind} caps its attention scores, which shifted sparse attention does not"
        heads = getattr(config, "num_attention_heads", 0)
        if shift == "heads" and isinstance(heads, int) and heads % 2:
            return (
                f"shift=heads needs an even number of heads, {kind} has {heads} (use shift=layers)"
            )
    attention = attention_modules(lm)
    # otherwise transformers only logs a warning and changes nothing
    if not attention or not type(decoder(lm))._can_set_attn_implementation():
        return f"no attention of {kind} goes through transformers' AttentionInterface"
    if not all(getattr(module, "is_causal", True) for module in attention):
        return f"the attention of {kind} is not causal"
    return ""


def excluded(reason: str) -> ConfigError:
    """The refusal, with what to do."""
    return ConfigError(f"s2_attn: {reason}; set method.s2_attn.enabled=false")
