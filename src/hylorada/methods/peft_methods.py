"""Any method of peft as an arm: on the same extended base, under the same gate and the same loop.

This project's own method carries its longer position range in its configuration. Those of peft know
nothing of it, so the base is extended first, as the settings of the run say, and the adapter comes
on top; whoever loads it again extends the base likewise (`load_run` does, by the run's record).

The components that act inside our own tuner (position bias, landmarks, shifted attention) have no
place here. Position embeddings and norms train as peft has it: as copies in ``modules_to_save``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as _IA3_FEEDFORWARD,
)
from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as _IA3_TARGETS
from torch import nn

from hylorada.architecture import anatomy
from hylorada.config import MethodConfig
from hylorada.errors import ConfigError, HyloradaError, in_one_line
from hylorada.methods.adaptive_rule import resolved_switches
from hylorada.methods.attach import between_peft_and_transformers, seeded
from hylorada.methods.peft_settings import kind_of, peft_config
from hylorada.methods.placement import (
    in_language_model,
    linear_names,
    norm_suffixes,
    stores_transposed,
)
from hylorada.methods.position_flow import position_flow
from hylorada.methods.position_range import RangeReport, extend_range, refuse_start

_WORDS = ("auto", "attention")  # for target_modules, as method.lora has them
_OURS = {"position_bias": "bias", "landmark": "landmarks", "s2_attn": "shifted attention"}


@dataclass
class Attached:
    """A base with its range extended and an adapter of peft on it.

    Attributes:
        model: the adapter around the base.
        range_report: what `extend_range` did.
        left_out: component that the adaptive rule would have chosen -> why it is not there.
    """

    model: PeftModel
    range_report: RangeReport
    left_out: dict[str, str] = field(default_factory=dict)


def attach_peft_method(
    base_model: nn.Module, method: MethodConfig, max_length: int, *, seed: int | None = None
) -> Attached:
    """Extend the range of a base and attach `method.peft` to it, in place.

    Args:
        base_model: a transformers model for causal language modelling.
        method: settings, with `peft` filled in.
        max_length: tokens that the model must reach.
        seed: of the initial weights; None draws from torch's generator as it stands.

    Raises:
        ConfigError: a setting that is wrong, or that cannot take effect on this model.
    """
    config = peft_config(method.peft)
    kind, left_out = kind_of(config), dict[str, str]()
    lm: Any = anatomy.causal_lm(base_model)
    switches = resolved_switches(method, max_length, anatomy.trained_length(lm.config))
    for name in _OURS:
        if switches[name]:
            left_out[name] = f"it acts inside this project's own adapter, and {kind} is peft's"
    to_save = _modules_to_save(config, method, lm, switches, left_out)
    wanted = method.position_range
    refuse_start(wanted.learned_init, lm)
    report = extend_range(lm, max_length, wanted.learned_init, wanted.rope_type, wanted.rope_factor)
    _fill_targets(config, lm)
    if to_save:
        own = list(getattr(config, "modules_to_save", None) or [])
        config.modules_to_save = sorted({*own, *to_save})  # type: ignore[attr-defined]
    try:
        with seeded(base_model, seed), between_peft_and_transformers():
            model: Any = get_peft_model(lm, config)
    except HyloradaError:
        raise
    except (ValueError, TypeError, KeyError, NotImplementedError, AssertionError) as error:
        if isinstance(error, NotImplementedError) and any(p.is_meta for p in lm.parameters()):
            raise  # what cannot be done without weights is no fault of the settings
        reason = in_one_line(error, 300)
        raise ConfigError(f"method.peft ({kind}) on {type(lm).__name__}: {reason}") from error
    _check_trainables(model, kind)
    return Attached(model, report, left_out)


def _modules_to_save(
    config: PeftConfig,
    method: MethodConfig,
    lm: Any,
    switches: dict[str, bool],
    left_out: dict[str, str],
) -> list[str]:
    """The position embeddings and norms that train beside the adapter, by name."""
    names: list[str] = []
    position, norms = anatomy.position_embedding(lm), norm_suffixes(lm)
    found = {
        "train_embeddings": [position[0]] if position is not None else [],
        "train_norms": in_language_model(lm, norms) if norms else [],
    }
    absent = {
        "train_embeddings": f"{type(lm).__name__} has no learned position embeddings to train",
        "train_norms": f"the norms of {type(lm).__name__} have no parameters to train",
    }
    kind = kind_of(config)
    for name, modules in found.items():
        if not switches[name]:
            continue
        reason = "" if modules else absent[name]
        if not any(item.name == "modules_to_save" for item in fields(config)):
            reason = f"peft's {type(config).__name__} cannot train whole modules (modules_to_save)"
        elif kind == "LN_TUNING" and name == "train_norms":
            reason = "LN_TUNING trains the norms itself"
        elif any(p.dtype == torch.bfloat16 for p in lm.parameters()):
            reason = "peft trains such copies in the base's bfloat16; set model.dtype=float32"
        if not reason:
            names += modules
        elif getattr(method, name) == "true":
            raise ConfigError(f"{name}: {reason}; set method.{name}=false")
        else:
            left_out[name] = reason
    return names


def _fill_targets(config: Any, lm: Any) -> None:
    """The modules to adapt: as asked, else peft's for the architecture, else those of LoRA here."""
    known = {item.name for item in fields(config)}
    if "fan_in_fan_out" in known and not config.fan_in_fan_out:
        config.fan_in_fan_out = stores_transposed(lm)
    if "target_modules" not in known:
        return
    kind, asked, model_type = kind_of(config), config.target_modules, lm.config.model_type
    word = next(iter(asked)) if isinstance(asked, (list, set)) and len(asked) == 1 else asked
    if word is not None and word not in _WORDS:
        return
    if kind == "IA3":
        if word is None and model_type in _IA3_TARGETS and model_type in _IA3_FEEDFORWARD:
            return
    else:
        tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
        peft_knows = getattr(tuner, "target_module_mapping", None)
        if word is None and (peft_knows is None or model_type in peft_knows):
            return
    if kind == "LN_TUNING":
        config.target_modules = set(in_language_model(lm, norm_suffixes(lm)))
        return
    names = linear_names(lm, word or "auto")
    if kind == "IA3":
        downward = _into_the_residual_path(lm, names)
        if config.feedforward_modules is None:
            config.feedforward_modules = set(downward)
        names = [*linear_names(lm, "attention"), *downward]
    idle = position_flow(lm, names).idle
    config.target_modules = set(in_language_model(lm, [n for n in names if n not in idle]))


def _into_the_residual_path(lm: Any, names: list[str]) -> list[str]:
    """Of linear layers those that end an MLP: IA3 scales what goes into them."""
    attention = set(linear_names(lm, "attention"))
    width = lm.get_input_embeddings().weight.shape[1]
    found = set()
    for layer in anatomy.decoder_layers(lm):
        for name in names:
            if name in attention:
                continue
            try:
                module: Any = layer.get_submodule(name)
            except AttributeError:  # a layer of another kind
                continue
            size_in, size_out = _sizes(module)
            if size_out == width and size_in != width:
                found.add(name)
    return sorted(found)


def _sizes(linear: Any) -> tuple[int, int]:
    if hasattr(linear, "in_features"):
        return linear.in_features, linear.out_features
    return tuple(linear.weight.shape)  # Conv1D keeps [in, out]


def _check_trainables(model: PeftModel, kind: str) -> None:
    trainables = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trainables:
        raise ConfigError(
            f"method.peft ({kind}): nothing trains on {type(anatomy.causal_lm(model)).__name__}; "
            "name its modules in method.peft.target_modules"
        )
    for name, parameter in trainables:
        if parameter.dtype != torch.float32 and not parameter.is_meta:
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise ConfigError(
                f"method.peft ({kind}): peft keeps {name} in {dtype}, in which it would train; set "
                "model.dtype=float32"
            )
