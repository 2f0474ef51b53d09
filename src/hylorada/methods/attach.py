"""Attaching adapters: `adapt` a new one, `load_adapter` a saved one; peft learns our name."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from hylorada.config.python_arguments import LARGEST_SEED, path, shown, whole_number
from hylorada.errors import ConfigError, DataError, HyloradaError, in_one_line
from hylorada.methods.hylorada_config import NAME_IN_FILES, HyloradaConfig
from hylorada.methods.loaded_tensors import check_loaded, refuse_unfitting
from hylorada.methods.tuner import HyloradaModel
from hylorada.peft_registration import add_method


def register_method() -> None:
    """Make "hylorada" a method that peft knows by name. Calling it again changes nothing."""
    add_method("HYLORADA", HyloradaConfig, HyloradaModel, "lora_", NAME_IN_FILES)


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
        ConfigError: a component cannot take effect on this model; it carries an adapter; or an
            argument is of another kind.
    """
    _refuse_other_kinds(base_model, config)
    if seed is not None:
        seed = whole_number("adapt: seed", seed, -(2**63), LARGEST_SEED)
    if getattr(base_model, "peft_config", None):
        raise ConfigError(
            "method: this model carries an adapter; load its base anew, or take it off by unload()"
        )
    config = copy.deepcopy(config)
    if max_length is not None:
        max_length = whole_number("adapt: max_length", max_length, 0)
        if config.max_length not in (0, max_length):
            raise ConfigError(
                f"method: the config is for max_length {config.max_length}, adapt was called with "
                f"{max_length}; use one length"
            )
        config.max_length = max_length
        config.__post_init__()
    if not config.max_length:
        _refuse_unused_range(config)
    with seeded(base_model, seed), between_peft_and_transformers():
        try:
            return get_peft_model(base_model, config)
        except HyloradaError:
            raise
        except (ValueError, NotImplementedError) as error:  # peft's own refusals
            raise ConfigError(f"method: {in_one_line(error)}") from error


def _refuse_unused_range(config: HyloradaConfig) -> None:
    """Settings of a longer range, where no length is to be reached."""
    extends = config.rope_scaling_type not in ("auto", "none") or config.rope_scaling_factor > 1
    if extends and "rope_scaling_type" not in config.chosen_by_rule:
        raise ConfigError(
            "method: rope_scaling_type and rope_scaling_factor have no effect without max_length; "
            "say the tokens to reach, as in adapt(base, config, max_length=4096)"
        )


def _refuse_other_kinds(base_model: Any, config: Any) -> None:
    """What is no model of transformers, or no config of this method."""
    if not isinstance(base_model, PreTrainedModel | PeftModel):
        raise ConfigError(
            f"adapt: base_model is {shown(base_model)}; use a loaded transformers model, as from "
            "AutoModelForCausalLM.from_pretrained(...)"
        )
    if not isinstance(config, HyloradaConfig):
        raise ConfigError(
            f"adapt: config is {shown(config)}; use a HyloradaConfig, as from "
            "HyloradaConfig.for_length(4096, trained_length=1024)"
        )


def load_adapter(base_model: nn.Module, folder: Path | str) -> PeftModel:
    """Attach an adapter that `save_pretrained` wrote, of this method or of another, in place.

    Args:
        base_model: the model that it was made for; its range is extended as the adapter says.
        folder: holds adapter_config.json and adapter_model.safetensors.

    Raises:
        ConfigError: a component cannot take effect on this model.
        DataError: a tensor that the adapter needs is not in its file, or one of the file reaches
            nothing in the model.
        RuntimeError, ValueError, KeyError: peft's, where the adapter does not fit the model.
    """
    folder = path("load_adapter: folder", folder)
    # By itself peft reads the weights onto a GPU even for a model on the CPU.
    device = next(base_model.parameters()).device
    with between_peft_and_transformers():
        warnings.filterwarnings("ignore", "Found missing adapter keys")  # an error below
        try:
            model = PeftModel.from_pretrained(base_model, str(folder), torch_device=str(device))
        except DataError as error:
            raise DataError(f"{folder}: {error}") from error
        except KeyError as error:
            key = str(error.args[0])
            if "." in key:  # of modules_to_save: peft looks these tensors up
                refuse_unfitting(str(folder), [key], [])
            raise
        check_loaded(model, folder)
    return model


@contextmanager
def seeded(model: nn.Module, seed: int | None) -> Iterator[None]:
    """Seed torch's generators inside the block and put them back; None leaves them as they are."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices={p.device for p in model.parameters() if p.is_cuda}):
        torch.manual_seed(seed)
        yield


@contextmanager
def between_peft_and_transformers() -> Iterator[None]:
    """Silence a warning: peft reads `is_gradient_checkpointing`, which transformers deprecates."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning
        )
        yield
