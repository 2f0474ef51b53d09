"""Which parameters have a learning rate of their own: `train.lr_scale`, by name."""

from __future__ import annotations

import dataclasses

from torch import nn

from hylorada.config import LrScaleConfig
from hylorada.errors import ConfigError
from hylorada.methods.parameter_groups import parameter_groups

# Component of the parameter audit -> the setting. LoRA's A and B are told apart by their names;
# DoRA's magnitudes and what other methods of peft add are in none, and move at train.lr.
_SETTINGS = {
    "position_bias": "position_bias",
    "landmark": "landmark",
    "position_embeddings": "embeddings",
    "token_embeddings": "embeddings",
    "norms": "norms",
}
_HALVES = {
    ".lora_A.": "lora_A",
    ".lora_embedding_A.": "lora_A",
    ".lora_B.": "lora_B",
    ".lora_embedding_B.": "lora_B",
}


def rates_by_name(model: nn.Module, scales: LrScaleConfig) -> dict[str, float]:
    """Name of a trained parameter -> its learning rate as a multiple of `train.lr`, if not 1.

    Args:
        model: with its adapter, on any device; nothing is computed.
        scales: of the settings.

    Raises:
        ConfigError: a scale is set for a group of which nothing trains.
    """
    wanted = {name: scale for name, scale in dataclasses.asdict(scales).items() if scale != 1}
    if not wanted:
        return {}
    found: dict[str, float] = {}
    idle = dict(wanted)
    trained: dict[str, None] = {}
    for component, members in parameter_groups(model).items():
        for name, _ in members:
            group = _SETTINGS.get(component) or _half(name)
            trained[group] = None
            if group in wanted:
                found[name] = wanted[group]
                idle.pop(group, None)
    for group, scale in idle.items():
        have = ", ".join(name for name in trained if name) or "none of these groups"
        raise ConfigError(
            f"train.lr_scale.{group}={scale:g} has no effect: nothing of that group trains with "
            f"this method, model and length (trained: {have}); set it to 1, or what trains to true"
        )
    return found


def _half(name: str) -> str:
    return next((half for part, half in _HALVES.items() if part in name), "")
