"""What trains, by component: the parameter audit of records, reports and the integrity gate."""

from __future__ import annotations

import re

from torch import nn

from hylorada.architecture import anatomy
from hylorada.records.component_names import COMPONENTS

_LORA = re.compile(r"\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)\.")
_WRAPPERS = re.compile(r"\.(modules_to_save\.[^.]+|original_module|base_layer)(?=\.|$)")


def parameter_groups(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """The trainable parameters of a model by group, with their full names.

    Groups without any are left out; the order is that of `COMPONENTS`. "other" should never appear:
    it means that something trains which no component asked for.
    """
    homes = _homes(model)
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {group: [] for group in COMPONENTS}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[_group(name, homes)].append((name, parameter))
    return {group: members for group, members in groups.items() if members}


def _homes(model: nn.Module) -> dict[str, str]:
    """The group of each norm and embedding, by its path in the transformers model."""
    lm = anatomy.causal_lm(model)
    homes = {_bare(name): "norms" for name in anatomy.norm_names(model)}
    position = anatomy.position_embedding(model)
    if position is not None:
        homes[_bare(position[0])] = "position_embeddings"
    tokens = (lm.get_input_embeddings(), lm.get_output_embeddings())
    for name, module in lm.named_modules():
        if any(module is t for t in tokens):
            homes[_bare(name)] = "token_embeddings"
    return homes


def _bare(name: str) -> str:
    """A path without what peft puts around modules."""
    return _WRAPPERS.sub("", name.removeprefix("base_model.model."))


def _group(name: str, homes: dict[str, str]) -> str:
    if "lora_position_bias." in name:
        return "position_bias"
    if "lora_landmark." in name:
        return "landmark"
    if _LORA.search(name):
        return "lora"
    if ".trainable_tokens_delta." in name:
        return "token_embeddings"
    return homes.get(_bare(name).rpartition(".")[0], "other")
