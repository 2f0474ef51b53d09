"""Mixtures of experts: where their weights are, which layers are routers, what an adapter reaches.

Since transformers 5 the experts of a layer are parameters of three dimensions [experts, out, in] of
one module, not linear layers, and they hold nine tenths of a layer. peft puts LoRA onto such
parameters themselves (`target_parameters`): for each expert e its own

    W'_e = W_e + alpha / sqrt(r) * B_e A_e

which is added to the weights before they multiply. So there is no token to scale for, and the
position bias does not act on experts; nor can there be dropout, DoRA or a bias of B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft.tuners.lora.layer import ParamWrapper
from torch import nn
from torch.nn.modules.conv import _ConvNd

from hylorada.architecture import anatomy


@dataclass
class Experts:
    """How much of a model's decoder layers is experts, and how much of that an adapter reaches.

    Attributes:
        share: of the layers' parameters that is experts, 0 to 1.
        adapted: of the experts' parameters that an adapter reaches, 0 to 1.
        note: one line for the log.
    """

    share: float
    adapted: float
    note: str

    def to_dict(self) -> dict[str, Any]:
        """For records."""
        return {"share": self.share, "adapted": self.adapted, "note": self.note}


def expert_parameters(layer: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of a decoder layer's experts by their path in it; adapters around them aside."""
    found: dict[str, nn.Parameter] = {}
    for path, module in layer.named_modules():
        path = path.replace(".base_layer", "")
        if isinstance(module, (ParamWrapper, _ConvNd)):
            continue
        if "expert" not in path.lower() and "expert" not in type(module).__name__.lower():
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 3 and parameter.is_floating_point():
                found[f"{path}.{name}"] = parameter
    return found


def is_router(path: str, linear: Any, experts: dict[str, nn.Parameter]) -> bool:
    """Whether a linear layer of a decoder layer says which experts a token goes to, or how much.

    It has one output for each expert, or one for a shared expert, and is called gate or router.
    """
    outputs = {1, *(parameter.shape[0] for parameter in experts.values())}
    named = any(word in path.lower() for word in ("gate", "router"))
    return bool(experts) and named and linear.out_features in outputs


def target_parameters(model: nn.Module, config: Any) -> list[str] | None:
    """Paths, from a decoder layer, of the experts' weights; None where there are none to adapt."""
    if _obstacle(config):
        return None
    names = {name for layer in anatomy.decoder_layers(model) for name in expert_parameters(layer)}
    return sorted(names) or None


def _obstacle(config: Any) -> str:
    """What peft's LoRA on parameters cannot have."""
    for setting, word in (
        ("use_dora", "DoRA"), ("lora_dropout", "dropout"), ("lora_bias", "a bias of B"),
    ):  # fmt: skip
        if getattr(config, setting, None):
            return f"peft's LoRA on experts has no {word}"
    return ""


def reached_experts(model: nn.Module) -> Experts | None:
    """What a model's adapter makes of its experts; None for a model without any."""
    total = experts = adapted = 0
    for layer in anatomy.decoder_layers(model):
        own = {id(p) for p in expert_parameters(layer).values()}
        wrapped = {
            id(module.get_param()) for module in layer.modules() if isinstance(module, ParamWrapper)
        }
        for path, parameter in layer.named_parameters():
            if ".lora_" in path or ".modules_to_save." in path:
                continue
            total += parameter.numel()
            experts += parameter.numel() if id(parameter) in own else 0
            adapted += parameter.numel() if id(parameter) in own & wrapped else 0
    if not experts:
        return None
    share, reach = experts / total, adapted / experts
    part = f"{share:.0%} of the decoder layers' parameters"
    config = getattr(model, "active_peft_config", None)
    if config is None:
        return Experts(share, reach, f"experts are {part}")
    if reach == 1.0:
        note = f"experts are adapted: {part}"
        if getattr(config, "position_bias_enabled", False):
            note += "; the position bias acts on the linear layers alone"
    elif reach == 0.0:
        reason = _obstacle(config) or "lora.target_modules names other layers"
        note = f"experts are not adapted: {part} ({reason})"
    else:
        note = f"experts are adapted in part ({reach:.0%} of them): {part}"
    return Experts(share, reach, note)
