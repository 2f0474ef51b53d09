"""Which modules of a model the adapter goes into, by name (paper 2.1, 2.2).

Names are given the way peft matches them: the end of a module's path, short enough to read in an
adapter_config.json.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from hylorada import anatomy
from hylorada.errors import ConfigError
from hylorada.methods.hylorada_config import HyloradaConfig

# The paper's 811K: on GPT-2, c_fc is not adapted.
_LEFT_OUT_OF_AUTO = {"gpt2": ("mlp.c_fc",)}


def resolve(config: HyloradaConfig, model: nn.Module) -> HyloradaConfig:
    """A copy of the config with everything that depends on the model filled in.

    Raises:
        ConfigError: a switch that was set by hand has nothing to act on in this model.
    """
    config = copy.deepcopy(config)
    if config.target_modules in ("auto", "attention"):
        config.target_modules = linear_names(model, str(config.target_modules))
        config.fan_in_fan_out = _all_conv1d(model)
    to_save = list(config.modules_to_save or [])
    if config.train_embeddings:
        found = anatomy.position_embedding(model)
        if found is not None:
            to_save.append(_without_wrapper(found[0]))
        elif "train_embeddings" in config.chosen_by_rule:
            config.train_embeddings = False
        else:
            raise ConfigError(
                f"method: {_name(model)} has no learned position embeddings to train; "
                "set train_embeddings to false"
            )
    if config.train_norms:
        to_save += norm_suffixes(model)
    config.modules_to_save = sorted(set(to_save)) or None
    if not anatomy.rotary_modules(model):
        by_rule = "rope_scaling_type" in config.chosen_by_rule
        if by_rule or config.rope_scaling_type == "none":
            config.rope_scaling_type = "none"
            config.rope_scaling_factor = 0.0
        elif config.rope_scaling_type != "auto" or config.rope_scaling_factor:
            raise ConfigError(
                f"method: {_name(model)} has no rotary position embedding; RoPE scaling does not "
                "apply; set rope_scaling_type to auto and its factor to 0"
            )
    config.chosen_by_rule = []
    return config


def linear_names(model: nn.Module, which: str) -> list[str]:
    """Paths, from a decoder layer, of its linear layers: "auto" (all) or "attention"."""
    lm = anatomy.causal_lm(model)
    left_out = _LEFT_OUT_OF_AUTO.get(lm.config.model_type, ())
    names: set[str] = set()
    for layer in anatomy.decoder_layers(model):
        attention = {id(m) for a in anatomy.attention_modules(layer) for m in a.modules()}
        for name, module in _linears(layer):
            if which == "attention" and id(module) not in attention:
                continue
            if name not in left_out:
                names.add(name)
    return sorted(names)


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


def _all_conv1d(model: nn.Module) -> bool:
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
