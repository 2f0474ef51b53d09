"""Which modules of a model the adapter goes into, by name, and what of it the model can have.

Names are given the way peft matches them: the end of a module's path, short enough to read in an
adapter_config.json (paper 2.1, 2.2). A component that the adaptive rule chose and that a model
cannot have is left out, with the reason; one that was switched on by hand is refused.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from hylorada.architecture import anatomy
from hylorada.architecture.anatomy import PositionForm
from hylorada.errors import ConfigError
from hylorada.methods.experts import expert_parameters, is_router, target_parameters
from hylorada.methods.hylorada_config import HyloradaConfig
from hylorada.methods.position_flow import PositionFlow, position_flow
from hylorada.methods.position_range import nothing_to_extend, without_rope
from hylorada.methods.s2_attention import disable_s2, enable_s2
from hylorada.methods.s2_limits import s2_obstacle

logger = logging.getLogger(__name__)

# The paper's 811K: on GPT-2, c_fc is not adapted.
_LEFT_OUT_OF_AUTO = {"gpt2": ("mlp.c_fc",)}
# What peft keeps adapters off: the fused kernels of these models read its weight.
_READ_BY_KERNELS = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}
# Component, as the settings of a run call it, and its switch.
SWITCHES = {
    "position_bias": "position_bias_enabled",
    "landmark": "landmark_enabled",
    "s2_attn": "s2_attn_enabled",
    "train_embeddings": "train_embeddings",
    "train_norms": "train_norms",
}

# As a user of the command line switches it off.
_KEYS = {
    **{name: f"method.{name}.enabled" for name in ("position_bias", "landmark", "s2_attn")},
    **{name: f"method.{name}" for name in ("train_embeddings", "train_norms")},
}


def resolve(config: HyloradaConfig, model: nn.Module) -> HyloradaConfig:
    """A copy of the config with everything that depends on the model filled in.

    Where the model has weights, it is run on a few tokens to see what its layers are given.

    Raises:
        ConfigError: a switch that was set by hand has nothing to act on in this model.
    """
    config = copy.deepcopy(config)
    chosen = config.target_modules in ("auto", "attention")
    if config.target_modules == "auto" and config.target_parameters is None:
        config.target_parameters = target_parameters(model, config)
    if chosen:
        config.target_modules = linear_names(model, str(config.target_modules))
        config.fan_in_fan_out = stores_transposed(model)
    flow = position_flow(model, config.target_modules)
    if chosen and flow.idle:
        config.target_modules = [n for n in config.target_modules or () if n not in flow.idle]
        config.left_out["target_modules"] = (
            f"{_name(model)} does not call {', '.join(flow.idle)}, so an adapter there cannot act"
        )
    if chosen:
        config.target_modules = in_language_model(model, list(config.target_modules or ()))
    for component, reason in _obstacles(config, model, flow):
        switch = SWITCHES[component]
        if switch not in config.chosen_by_rule:
            raise ConfigError(f"{component}: {reason}; set {_KEYS[component]}=false")
        setattr(config, switch, False)
        config.left_out[component] = reason
        logger.debug("left out: %s (%s)", component, reason)
    if not config.s2_attn_enabled:
        config.s2_in_evaluation = False
        config.s2_full_layers = config.s2_full_heads = 0.0
    to_save = list(config.modules_to_save or [])
    if config.train_embeddings:
        found = anatomy.position_embedding(model)
        assert found is not None
        to_save.append(_without_wrapper(found[0]))
    if config.train_norms:
        to_save += in_language_model(model, norm_suffixes(model))
    config.modules_to_save = sorted(set(to_save)) or None
    _resolve_rope(config, model)
    config.chosen_by_rule = []
    return config


def _resolve_rope(config: HyloradaConfig, model: nn.Module) -> None:
    form = anatomy.position_form(model)
    by_rule = "rope_scaling_type" in config.chosen_by_rule
    by_rule = by_rule or (config.rope_scaling_type == "auto" and not config.rope_scaling_factor)
    if form is not PositionForm.ROTARY:
        if by_rule or config.rope_scaling_type == "none":
            config.rope_scaling_type = "none"
            config.rope_scaling_factor = 0.0
        else:
            raise ConfigError(
                f"method: {without_rope(_name(model), form)}; RoPE scaling does not apply; set "
                "rope_scaling_type to auto and its factor to 0"
            )
    elif by_rule and nothing_to_extend(model):
        config.rope_scaling_type = "none"
        config.rope_scaling_factor = 0.0


def _obstacles(
    config: HyloradaConfig, model: nn.Module, flow: PositionFlow
) -> list[tuple[str, str]]:
    """The components that are switched on and that this model cannot have, with the reasons."""
    kind = _name(model)
    found: list[tuple[str, str]] = []
    if config.train_embeddings and anatomy.position_embedding(model) is None:
        found.append(("train_embeddings", f"{kind} has no learned position embeddings to train"))
    if config.train_norms and not anatomy.norm_names(model):
        found.append(("train_norms", f"the norms of {kind} have no parameters to train"))
    if config.s2_attn_enabled:
        reason = _s2_reason(config, model)
        if reason:
            found.append(("s2_attn", reason))
    if config.position_bias_enabled and flow.position_bias:
        found.append(("position_bias", flow.position_bias))
    if config.landmark_enabled and flow.landmark:
        found.append(("landmark", flow.landmark))
    return found


def _s2_reason(config: HyloradaConfig, model: nn.Module) -> str:
    """Why shifted sparse attention is not for this model; empty if it is.

    What was asked for by hand, `enable_s2` itself refuses.
    """
    reason = s2_obstacle(model, config.s2_shift, config.s2_full_heads)
    has_weights = not any(p.is_meta for p in model.parameters())
    if reason or not has_weights or "s2_attn_enabled" not in config.chosen_by_rule:
        return reason
    layers = len(anatomy.attention_modules(anatomy.causal_lm(model)))
    try:
        count = enable_s2(model, config.s2_group_size, config.s2_shift)
    except ConfigError as error:
        return str(error).removeprefix("s2_attn: ").partition("; set ")[0]
    disable_s2(model)
    taken = f"only {count} of the {layers} attention layers of {_name(model)} take it"
    return "" if count == layers else taken


def linear_names(model: nn.Module, which: str) -> list[str]:
    """Paths, from a decoder layer, of its linear layers: "auto" (all) or "attention".

    Routers of experts are left alone.
    """
    lm = anatomy.causal_lm(model)
    left_out = _LEFT_OUT_OF_AUTO.get(lm.config.model_type, ())
    names: set[str] = set()
    for layer in anatomy.decoder_layers(model):
        attention = {id(m) for a in anatomy.attention_modules(layer) for m in a.modules()}
        experts = expert_parameters(layer)
        for name, module in _linears(layer):
            if which == "attention" and id(module) not in attention:
                continue
            by_kernel = lm.config.model_type in _READ_BY_KERNELS and name.endswith("out_proj")
            aside = name in left_out or by_kernel or anatomy.is_cross_attention(name)
            if not aside and not is_router(name, _base(module), experts):
                names.add(name)
    return sorted(names)


def in_language_model(model: nn.Module, names: list[str]) -> list[str]:
    """The names, or full paths where a name would also fit a part that reads pictures or sound."""
    lm = anatomy.causal_lm(model)
    own = {path for path, _ in anatomy.text_modules(lm)}

    def fitting(paths: Iterable[str]) -> list[str]:
        return [p for p in paths if any(p == n or p.endswith(f".{n}") for n in names)]

    everywhere = fitting(path for path, _ in lm.named_modules())
    return names if own.issuperset(everywhere) else sorted(fitting(own))


def _linears(layer: nn.Module, path: str = "") -> list[tuple[str, nn.Module]]:
    """Linear layers below, not looking into those that already carry an adapter."""
    found = []
    for name, child in layer.named_children():
        base = _base(child)
        if isinstance(base, (nn.Linear, Conv1D)):
            found.append((path + name, child))
        elif base is child:
            found += _linears(child, f"{path}{name}.")
    return found


def stores_transposed(model: nn.Module) -> bool:
    """GPT-2 stores its weights transposed, in Conv1D; peft wants to be told."""
    linears = _linears(anatomy.decoder_layers(model)[0])
    return all(isinstance(_base(module), Conv1D) for _, module in linears)


def _base(module: Any) -> nn.Module:
    """The layer below an adapter's, if there is one."""
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module


def norm_suffixes(model: nn.Module) -> list[str]:
    """The norms of the residual path: names within a layer, and full names outside the layers."""
    lm = anatomy.causal_lm(model)
    inside = {
        id(module): name
        for layer in anatomy.decoder_layers(model)
        for name, module in layer.named_modules()
    }
    modules = dict(lm.named_modules())
    names = {inside.get(id(modules[n]), n) for n in anatomy.norm_names(model)}
    return sorted({_without_wrapper(n) for n in names})


def _without_wrapper(name: str) -> str:
    """The path of a module that an adapter before this one already trains a copy of."""
    return name.split(".original_module")[0].split(".modules_to_save.")[0]


def _name(model: nn.Module) -> Any:
    return type(anatomy.causal_lm(model)).__name__
