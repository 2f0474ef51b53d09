"""How the method gets onto a model: peft learns its name, `adapt` attaches it."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import torch
from peft import PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType, register_peft_method
from torch import nn

from hylorada.errors import ConfigError
from hylorada.methods.hylorada_config import HyloradaConfig
from hylorada.methods.tuner import HyloradaModel


def register_method() -> None:
    """Make "hylorada" a method that peft knows by name. Calling it again changes nothing.

    peft's list of types is a closed enum, so it gets one more member first.
    """
    if "HYLORADA" not in PeftType.__members__:
        member = str.__new__(PeftType, "HYLORADA")
        member._name_ = member._value_ = "HYLORADA"
        type.__setattr__(PeftType, "HYLORADA", member)
        PeftType._member_names_.append("HYLORADA")
        PeftType._member_map_["HYLORADA"] = member
        PeftType._value2member_map_["HYLORADA"] = member
    if PeftType("HYLORADA") not in PEFT_TYPE_TO_TUNER_MAPPING:
        register_peft_method(
            name="hylorada", config_cls=HyloradaConfig, model_cls=HyloradaModel, prefix="lora_"
        )


def adapt(
    base_model: nn.Module,
    config: HyloradaConfig,
    max_length: int | None = None,
    *,
    seed: int | None = None,
) -> PeftModel:
    """Attach the method to a causal language model, in place.

    At this point the adapted model computes exactly what the base model with the extended range
    does. Initial weights come from torch's generator; the layers draw in the order of the model,
    the landmarks last, so that arms with one seed share the same A.

    Args:
        base_model: a transformers model for causal language modelling.
        config: what to attach; not changed.
        max_length: tokens that the model must reach, if the config does not say.
        seed: of the initial weights; None draws from torch's generator as it stands.

    Raises:
        ConfigError: a component cannot take effect on this model.
    """
    config = copy.deepcopy(config)
    if max_length is not None:
        if config.max_length not in (0, max_length):
            raise ConfigError(
                f"method: the config is for max_length {config.max_length}, adapt was called with "
                f"{max_length}; use one length"
            )
        config.max_length = max_length
        config.__post_init__()
    with torch.random.fork_rng(devices=[]) if seed is not None else nullcontext():
        if seed is not None:
            torch.manual_seed(seed)
        return get_peft_model(base_model, config)
