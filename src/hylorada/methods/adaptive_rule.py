"""From a run's settings to a resolved `HyloradaConfig`: the adaptive rule for each "auto".

All methods go through one config class, LoRA and LongLoRA too, so that every arm gets the same
position range, and so that HyLoRADA at 512 tokens is rsLoRA itself.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from hylorada.architecture import anatomy
from hylorada.architecture.anatomy import PositionForm
from hylorada.config import MethodConfig
from hylorada.config.fields import SWITCHES as SETTINGS
from hylorada.errors import ConfigError
from hylorada.methods.hylorada_config import (
    LONG_CONTEXT,
    VERY_LONG_CONTEXT,
    HyloradaConfig,
)
from hylorada.methods.placement import SWITCHES
from hylorada.methods.position_range import refuse_start, without_rope


def from_method(method: MethodConfig, max_length: int, base_config: Any) -> HyloradaConfig | None:
    """The PEFT configuration of a method at one length on one architecture.

    Args:
        method: settings, with "true", "false" or "auto" for each component.
        max_length: tokens.
        base_config: transformers config of the base model, before its range is extended.

    Returns:
        None for a method that trains nothing (baseline); its range is extended all the same.

    Raises:
        ConfigError: a switch set to "true", or a number set by hand, cannot take effect.
    """
    skeleton = _skeleton(base_config)
    _check_range(method, skeleton)
    settings = _settings(method)
    switches = resolved_switches(method, max_length, anatomy.trained_length(base_config))
    if not method.lora.enabled:
        asked = [name for name, setting in settings.items() if setting == "true"]
        if asked:
            raise ConfigError(
                f"method: {asked[0]} has no effect while lora.enabled is false (nothing trains); "
                f"set {asked[0]} to false or lora.enabled to true"
            )
        return None
    if method.train_embeddings == "true" and anatomy.position_embedding(skeleton) is None:
        raise ConfigError(
            f"method: {type(skeleton).__name__} has no learned position embeddings to train; "
            "set train_embeddings to auto or false"
        )
    if method.placebo and not (switches["position_bias"] or switches["landmark"]):
        raise ConfigError(
            f"method: placebo=true has no effect at {max_length} tokens, where position bias and "
            "landmarks are off; set one of them to true, or placebo to false"
        )
    lora = method.lora
    target = lora.target_modules
    s2 = method.s2_attn
    return HyloradaConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,  # type: ignore[arg-type]  # peft takes any number
        lora_dropout=lora.lora_dropout,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        lora_init=lora.init,
        target_modules=target[0] if len(target) == 1 and target[0] in _SHORTHANDS else list(target),
        position_bias_enabled=switches["position_bias"],
        position_buckets=method.position_bias.buckets,
        bucketing=method.position_bias.bucketing,
        landmark_enabled=switches["landmark"],
        num_landmarks=method.landmark.num_landmarks,
        landmark_pooling=method.landmark.pooling,
        landmark_position_buckets=method.landmark.position_buckets,
        s2_attn_enabled=switches["s2_attn"],
        s2_group_size=s2.group_size or max_length // 8 * 2,  # a quarter, even
        s2_shift=s2.shift,
        s2_in_evaluation=s2.in_evaluation and (switches["s2_attn"] or s2.enabled == "false"),
        s2_full_layers=s2.full_layers if switches["s2_attn"] else 0.0,
        s2_full_heads=s2.full_heads if switches["s2_attn"] else 0.0,
        rope_scaling_type=method.position_range.rope_type,
        rope_scaling_factor=method.position_range.rope_factor,
        learned_init=method.position_range.learned_init,
        train_embeddings=switches["train_embeddings"],
        train_norms=switches["train_norms"],
        placebo=method.placebo,
        max_length=max_length,
        chosen_by_rule=[SWITCHES[name] for name, setting in settings.items() if setting == "auto"],
    )


def resolved_switches(
    method: MethodConfig, max_length: int, trained_length: int
) -> dict[str, bool]:
    """Component -> whether it is on: as set by hand, else by the adaptive rule for a length.

    Args:
        method: settings, with "true", "false" or "auto" for each component.
        max_length: tokens.
        trained_length: of the base, in tokens.
    """
    rule = {
        "position_bias": max_length >= LONG_CONTEXT,
        "landmark": max_length >= LONG_CONTEXT,
        "s2_attn": max_length >= VERY_LONG_CONTEXT,
        "train_embeddings": max_length > trained_length,
        "train_norms": max_length >= VERY_LONG_CONTEXT,
    }
    return {name: _resolve(name, value, rule[name]) for name, value in _settings(method).items()}


def _settings(method: MethodConfig) -> dict[str, str]:
    """Component -> what is set for it."""
    return {
        "position_bias": method.position_bias.enabled,
        "landmark": method.landmark.enabled,
        "s2_attn": method.s2_attn.enabled,
        "train_embeddings": method.train_embeddings,
        "train_norms": method.train_norms,
    }


_SHORTHANDS = ("auto", "attention", "all-linear")


def _skeleton(base_config: Any) -> Any:
    """The model without weights: what it has is read off its modules, not off its config."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(base_config)


def _resolve(name: str, setting: str, rule: bool) -> bool:
    if setting not in SETTINGS:
        raise ConfigError(f"method: {name} is {setting!r}; use one of {', '.join(SETTINGS)}")
    return rule if setting == "auto" else setting == "true"


def _check_range(method: MethodConfig, skeleton: Any) -> None:
    """A setting made by hand must have the positions to act on: rotary ones, or learned ones."""
    wanted, form = method.position_range, anatomy.position_form(skeleton)
    refuse_start(wanted.learned_init, skeleton)
    if form is not PositionForm.ROTARY and (
        wanted.rope_type not in ("auto", "none") or wanted.rope_factor
    ):
        raise ConfigError(
            f"method: {without_rope(type(skeleton).__name__, form)}; RoPE scaling does not apply; "
            "set position_range.rope_type to auto and rope_factor to 0"
        )
