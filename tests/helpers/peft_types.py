"""An adapter of every method that peft has, on a tiny model, with numbers that move the logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, PromptLearningConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

from helpers.families import make_model

TARGETS = {"gpt2": ["c_attn", "mlp.c_proj"], "llama": ["q_proj", "v_proj", "down_proj"]}
NORM = {"gpt2": "ln_f", "llama": "norm"}
EMBEDDING = {"gpt2": "wte", "llama": "embed_tokens"}
LAYERS = {"gpt2": "h", "llama": "layers"}

# What a method needs beside target_modules to fit into 32 dimensions.
_NEEDS: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10},
    "ADAPTION_PROMPT": {"adapter_len": 3, "adapter_layers": 2},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 20},
    "GRALORA": {"r": 4, "gralora_k": 2},
    "MISS": {"r": 4},
    "OFT": {"oft_block_size": 4, "r": 0},
    "POLY": {"n_tasks": 2, "n_skills": 2},
    "PSOFT": {"r": 4},
    "ROAD": {"group_size": 4},
    "SHIRA": {"r": 4},
    "TRAINABLE_TOKENS": {"token_indices": [1, 2, 3]},
    "VBLORA": {"num_vectors": 16, "vector_length": 8, "topk": 2},
    "WAVEFT": {"n_frequency": 20},
}
_OWN_TARGETS = ("ADAPTION_PROMPT", "TRAINABLE_TOKENS")
# Of these no file is made here: they have their own tests, or are no adapter of a model.
ELSEWHERE = {"HYLORADA", "XLORA", "SHADOW"}
# peft 0.21 has them for nn.Linear alone, or for Llama's attention alone.
NOT_ON_GPT2 = {
    "ADAMSS", "ADAPTION_PROMPT", "BEFT", "BOFT", "C3A", "DELORA", "GLORA", "HRA", "LILY", "LOHA",
    "LOKR", "MISS", "OFT", "OSF", "PEANUT", "POLY", "PSOFT", "ROAD", "SHIRA", "SUPERTUNING",
}  # fmt: skip


def peft_types() -> dict[str, type[PeftConfig]]:
    """Every method by its name, without those that put virtual tokens before the text."""
    every = {str(getattr(t, "value", t)): c for t, c in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    return {
        name: config
        for name, config in every.items()
        if name not in ELSEWHERE and not issubclass(config, PromptLearningConfig)
    }


def type_config(name: str, family: str) -> PeftConfig:
    """The configuration of a method, by its name in peft."""
    config = peft_types()[name]
    settings: dict[str, Any] = {"task_type": "CAUSAL_LM", **_NEEDS.get(name, {})}
    if "target_modules" in config.__dataclass_fields__ and name not in _OWN_TARGETS:
        settings["target_modules"] = [NORM[family]] if name == "LN_TUNING" else TARGETS[family]
    if name == "IA3":
        settings["feedforward_modules"] = TARGETS[family][-1:]
    return config(**settings)


def lora_variants(family: str) -> dict[str, LoraConfig]:
    """Plain LoRA with whatever else peft may put into its file or leave out of it."""
    targets, norm, embedding = TARGETS[family], [NORM[family]], [EMBEDDING[family]]
    settings: dict[str, dict[str, Any]] = {
        "norms": {"modules_to_save": norm},
        "embeddings": {"modules_to_save": [*embedding, "lm_head"]},
        "tied embeddings": {"modules_to_save": embedding, "ensure_weight_tying": True},
        "LoRA on embeddings": {"target_modules": [*targets, *embedding]},
        "tokens": {"trainable_token_indices": [2, 5]},
        "DoRA": {"use_dora": True},
        "all biases": {"bias": "all"},
        "biases of B": {"lora_bias": True},
        "excluded": {
            "target_modules": "all-linear",
            "exclude_modules": ["0.attn.c_attn", "layers.0.self_attn.q_proj"],
        },
        "one layer": {"layers_to_transform": [1], "layers_pattern": LAYERS[family]},
        "ranks": {"rank_pattern": {targets[0]: 2}, "alpha_pattern": {targets[0]: 3}},
        "parameters": {"target_modules": [], "target_parameters": [f"{targets[0]}.weight"]},
        "PiSSA": {"init_lora_weights": "pissa"},
    }
    common = {"task_type": "CAUSAL_LM", "target_modules": targets}
    return {name: LoraConfig(**{**common, **changes}) for name, changes in settings.items()}


def base(family: str, tied: bool = False) -> nn.Module:
    """The model that the adapters are for, with a head of its own or the embeddings as its head."""
    model = make_model(family)
    model.config.tie_word_embeddings = tied
    weight = model.get_input_embeddings().weight
    model.lm_head.weight = weight if tied else nn.Parameter(weight.detach() + 0.01)
    return model.requires_grad_(False)


def trained(model: nn.Module, config: PeftConfig) -> PeftModel:
    """The model with the adapter, as if it had been trained."""
    adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return adapted.eval()


def save(model: PeftModel, folder: Path, **settings: Any) -> Path:
    """As peft writes it, without asking the hub."""
    model.save_pretrained(str(folder), **{"save_embedding_layers": False, **settings})
    return folder
