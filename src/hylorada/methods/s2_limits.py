"""What shifted sparse attention cannot be combined with, found before it is switched on."""

from __future__ import annotations

from typing import Any

from torch import nn

from hylorada.architecture.anatomy import attention_modules, causal_lm, decoder
from hylorada.config.rules import choices
from hylorada.errors import ConfigError

SHIFTS = choices("method.s2_attn.shift")


def attention_configs(model: nn.Module) -> list[Any]:
    """The config objects that the model and its attention layers read, each once."""
    lm = causal_lm(model)
    configs = [lm.config, *(m.config for m in attention_modules(lm) if hasattr(m, "config"))]
    return list({id(config): config for config in configs}.values())


def full_layers(layers: int, share: float) -> list[int]:
    """The layers that attend fully, evenly spread; before the first half as many as between two.

    Args:
        layers: of the model.
        share: of them.

    Raises:
        ConfigError: that is no layer, or every one of them.
    """
    found = [i for i in range(layers) if int((i + 1) * share + 0.5) > int(i * share + 0.5)]
    if share and not 0 < len(found) < layers:
        raise ConfigError(
            f"s2_attn.full_layers: a share of {share:g} of {layers} layers is "
            f"{'every layer' if found else 'no layer'}; use one that leaves some to the segments, "
            "or set method.s2_attn.full_layers=0"
        )
    return found


def full_heads(heads: int, kv_heads: int, share: float) -> int:
    """The query heads that attend fully, of one layer: the first ones.

    Query heads that share a key-value head go together, unless all of them share a single one.

    Args:
        heads: query heads.
        kv_heads: key-value heads, which divide them.
        share: of the key-value heads; of the query heads, if there is one key-value head.

    Raises:
        ConfigError: that is no head, or every one of them.
    """
    units = kv_heads if kv_heads > 1 else heads
    count = int(units * share + 0.5)
    if share and not 0 < count < units:
        what = "key-value heads" if 1 < kv_heads < heads else "heads"
        raise ConfigError(
            f"s2_attn.full_heads: a share of {share:g} of {units} {what} is "
            f"{'every head' if count else 'no head'}; use one that leaves some to the segments, "
            "or set method.s2_attn.full_heads=0"
        )
    return count * (heads // units)


def full_heads_of(config: Any, share: float) -> tuple[int, int]:
    """The query heads that attend fully and all of them, by a config; 0 and 0 if it says nothing.

    Raises:
        ConfigError: as `full_heads`.
    """
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):  # of a part that reads pictures; or a number for each layer
        return 0, 0
    return full_heads(heads, getattr(config, "num_key_value_heads", None) or heads, share), heads


def attends_fully(layer: nn.Module) -> bool:
    """Whether an attention layer is one of those of `full_layers`."""
    return getattr(layer, "s2_full", False)


def check_settings(
    lm: Any, group_size: int, shift: str, max_length: int | None, share_of_heads: float
) -> None:
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
    reason = s2_obstacle(lm, shift, share_of_heads)
    if reason:
        raise excluded(reason)


def s2_obstacle(model: nn.Module, shift: str, share_of_heads: float = 0.0) -> str:
    """Why a model cannot take shifted sparse attention, by its config and modules; empty if it can.

    Needs no weights. What only a forward pass shows, `enable_s2` finds.

    Args:
        model: a causal language model, or a PeftModel of one.
        shift: "layers" or "heads".
        share_of_heads: that attend fully all the same (`full_heads`).

    Raises:
        ConfigError: that share is no head, or every one of them.
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
        fully, heads = full_heads_of(config, share_of_heads)
        if shift == "heads" and (heads - fully) % 2:
            in_segments = f" in segments, of which {kind} has {heads - fully} of {heads}"
            which = in_segments if fully else f", {kind} has {heads}"
            return f"shift=heads needs an even number of heads{which} (use shift=layers)"
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
