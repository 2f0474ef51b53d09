"""What belongs to an adapter, for any method of PEFT, and what the gate cannot ask of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from hylorada.errors import ConfigError, in_one_line
from hylorada.methods.parameter_groups import parameter_groups

LORA_LIKE = ("LORA", "HYLORADA")  # the same parameters, by the same names


def adapter_kind(adapter: Any) -> str:
    """The PEFT type in lower case; "lora" for this method too; empty for no adapter."""
    if adapter is None:
        return ""
    return "lora" if _name(adapter) in LORA_LIKE else _name(adapter).lower()


def _name(adapter: Any) -> str:
    return str(getattr(adapter.peft_type, "name", adapter.peft_type))


def refuse_unsupported_adapter(adapter: Any, run: Callable[[], Any]) -> None:
    """Refuse methods of peft that need more than token ids, or that add tokens of their own.

    Raises:
        ConfigError: the adapter is of such a method.
    """
    if adapter is None:
        return
    kind = _name(adapter)
    if getattr(adapter, "is_prompt_learning", False):
        raise ConfigError(
            f"integrity: {kind} puts virtual tokens before the text, which loss and scores leave "
            "out; use an adapter of the weights, such as LoRA"
        )
    if kind in LORA_LIKE:
        return  # one that cannot run is at fault, which the checks say
    try:
        run()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = in_one_line(error)
        raise ConfigError(
            f"integrity: {kind} cannot be run on token ids alone ({type(error).__name__}: "
            f"{reason}); use an adapter that needs nothing else"
        ) from error


def own_groups(model: Any, kind: str) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """The trainable parameters by component; those of another method under its PEFT type."""
    groups = parameter_groups(model)
    if kind == "lora":
        return groups
    names = own_names(model)
    mine = [member for members in groups.values() for member in members if is_own(member[0], names)]
    taken = {id(parameter) for _, parameter in mine}
    rest = {
        group: [member for member in members if id(member[1]) not in taken]
        for group, members in groups.items()
    }
    found = {kind: mine, **rest}
    return {group: members for group, members in found.items() if members}


def count_by_component(model: Any) -> dict[str, int]:
    """The number of trainable values in each component that has any, for any method of PEFT."""
    configs = getattr(model, "peft_config", None) or {}
    kind = adapter_kind(next(iter(configs.values()), None)) or "lora"
    return {
        group: sum(parameter.numel() for _, parameter in members)
        for group, members in own_groups(model, kind).items()
    }


def own_names(model: Any) -> tuple[set[str], str]:
    """What a method's parameters are called in its layers, and how such names begin."""
    names = {
        name
        for module in model.modules()
        if isinstance(module, BaseTunerLayer)
        for name in (*module.adapter_layer_names, *module.other_param_names)
    }
    names |= {"adaption_prompt", "adaption_gate"}  # of a method that has no layers of that kind
    return names, getattr(model.base_model, "prefix", None) or "\0"


def is_own(path: str, names: tuple[set[str], str]) -> bool:
    """Whether a parameter was added by the method, by its path."""
    known, prefix = names
    return any(part in known or part.startswith(prefix) for part in path.split("."))
