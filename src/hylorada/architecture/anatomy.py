"""Where the parts of a causal language model are, for any architecture of transformers.

The rooms that need it (methods, evaluation, runner) ask here, so that no other file knows the names
`transformer.h`, `model.layers` or `gpt_neox.embed_in`. Everything is found by what a part does, not
by a table of class names; a model whose part cannot be found gets an error that says which.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from hylorada.errors import ConfigError

# Attention to an encoder, which a language model has not: it never runs.
_CROSS = re.compile(r"(^|\.)(encoder_attn|cross_?attn|cross_?attention)", re.IGNORECASE)


def causal_lm(model: nn.Module) -> Any:
    """The transformers model itself, out of a PeftModel if it is in one; adapters stay in it."""
    get_base_model = getattr(model, "get_base_model", None)
    return get_base_model() if callable(get_base_model) else model


def text_config(config: Any) -> Any:
    """The part of a config that describes the language model; of most models, all of it."""
    for name in ("text_config", "decoder", "generator"):  # as transformers' get_text_config
        part = getattr(config, name, None)
        if isinstance(part, PretrainedConfig):
            return part
    return config


def backbone(model: nn.Module) -> Any:
    """The model without its output head: token ids in, final hidden states out."""
    lm = causal_lm(model)
    inner = getattr(lm, lm.base_model_prefix, None)
    if inner is None:  # the prefix is that of a model around this one (Llama 4)
        inner = next((c for c in lm.children() if isinstance(c, PreTrainedModel)), None)
    if inner is None or inner is lm:
        raise ConfigError(
            f"model: {type(lm).__name__} has no backbone below its output head; "
            "use a causal language model (AutoModelForCausalLM)"
        )
    return inner


def output_head(model: nn.Module) -> nn.Module:
    """The linear layer before the logits; `logits.output_head` says what else makes them."""
    lm = causal_lm(model)
    head: nn.Module | None = lm.get_output_embeddings()
    if head is None:
        raise ConfigError(f"model: {type(lm).__name__} has no output head")
    return head


def text_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules of the language model, with their names within the transformers model.

    Without those that read pictures or sound: a module belongs to the innermost transformers model
    around it, whose config tells what it is for.
    """
    lm = causal_lm(model)
    own = {lm.config.model_type, text_config(lm.config).model_type}
    found: dict[int, tuple[str, nn.Module]] = {}

    def walk(name: str, module: nn.Module) -> None:
        if isinstance(module, PreTrainedModel) and module.config.model_type not in own:
            return
        if id(module) not in found:
            found[id(module)] = (name, module)
            for child_name, child in module.named_children():
                walk(f"{name}.{child_name}" if name else child_name, child)

    walk("", lm)
    return list(found.values())


def decoder(model: nn.Module) -> Any:
    """The transformers model that runs the decoder layers; its output is the final norm's output.

    Not always the backbone: OPTForCausalLM calls ``model.decoder`` directly, and a model that reads
    pictures too has its language model inside.
    """
    return _decoder_and_layers(model)[0]


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers, in order."""
    return _decoder_and_layers(model)[1]


def _decoder_and_layers(model: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    lm = causal_lm(model)
    inner = backbone(lm)
    lists = [
        (name, module)
        for name, module in text_modules(lm)
        if isinstance(module, nn.ModuleList) and len(module)
    ]
    stacks = [stack for stack in lists if _is_block(stack[1][0])]
    if not stacks:  # blocks of an older form: nothing marks them but their number
        count = getattr(text_config(lm.config), "num_hidden_layers", None)
        alike = [stack for stack in lists if len(stack[1]) == count and has_linear(stack[1][0])]
        stacks = alike if len(alike) == 1 else []
    if not stacks:
        raise ConfigError(
            f"model: the layers of {type(lm).__name__} are not one list of blocks, so no adapter "
            "can be placed in them; use another architecture"
        )
    outer = [s for s in stacks if not any(s[0].startswith(f"{other}.") for other, _ in stacks)]
    name, layers = max(outer, key=lambda stack: len(stack[1]))
    owner, module = inner, lm
    for part in name.split("."):
        module = getattr(module, part)
        if isinstance(module, PreTrainedModel):
            owner = module
    return owner, layers


def _is_block(module: nn.Module) -> bool:
    return isinstance(module, GradientCheckpointingLayer) or bool(attention_modules(module))


def has_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer or has one below it."""
    return any(isinstance(m, (nn.Linear, Conv1D)) for m in module.modules())


def attention_modules(module: nn.Module) -> list[nn.Module]:
    """The causal self-attention modules below ``module``, in order.

    Where transformers marks them (`is_causal` and `layer_idx`), those; in a decoder layer of an
    older form, the outermost modules that call themselves attention.
    """
    whole = isinstance(module, PreTrainedModel)
    found = [
        m
        for name, m in (text_modules(module) if whole else module.named_modules())
        if hasattr(m, "is_causal") and hasattr(m, "layer_idx") and not _CROSS.search(name)
    ]
    return found or _by_name(module, "")


def _by_name(module: nn.Module, path: str) -> list[nn.Module]:
    found = []
    for name, child in module.named_children():
        full = f"{path}{name}"
        if "attention" in type(child).__name__.lower() and has_linear(child):
            if not _CROSS.search(full):
                found.append(child)
        else:
            found += _by_name(child, f"{full}.")
    return found


def is_cross_attention(name: str) -> bool:
    """Whether a module's name is that of attention to an encoder, which never runs here."""
    return bool(_CROSS.search(name))


def norm_names(model: nn.Module) -> list[str]:
    """Full names, within the transformers model, of its normalisation layers on the residual path.

    They have the width of the residual stream and parameters of their own (OLMo's have none). Query
    and key norms inside an attention module (Qwen3) are not on that path and are left out.
    """
    lm = causal_lm(model)
    width = getattr(text_config(lm.config), "hidden_size", None)
    inside_attention = {id(n) for a in attention_modules(lm) for n in a.modules()}
    return [
        name
        for name, module in text_modules(lm)
        if "norm" in type(module).__name__.lower()
        and id(module) not in inside_attention
        and not is_cross_attention(name)
        and any(p.shape[-1:] == (width,) for p in module.parameters(recurse=False))
    ]


# What the config classes of transformers call the number of positions.
_COUNTS = (
    "max_position_embeddings", "n_positions", "seq_length", "max_seq_len", "max_sequence_length",
    "n_ctx", "context_length", "max_target_positions",
)  # fmt: skip


def position_count(config: Any) -> tuple[str, int] | None:
    """The name and the value of a config's number of positions; None if it has none.

    The name belongs to `text_config(config)`.
    """
    text = text_config(config)
    for name in _COUNTS:
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return name, value
    return None


def trained_length(config: Any) -> int:
    """The number of positions a base model was trained on, in tokens.

    What the user says (`hylorada_trained_length`) comes first. It stays the same when
    `methods.position_range` extends the model. A model that its makers rescaled and trained further
    (Llama 3.1) was trained on the longer range.
    """
    told = getattr(config, "hylorada_trained_length", None)
    if told:
        return int(told)
    extended = getattr(config, "hylorada_range", None)
    if extended:
        return int(extended["from"])
    found = position_count(config)
    if found is None:
        raise ConfigError(
            f"model: {type(config).__name__} does not say how long the texts of its training were; "
            "set model.trained_length to that number of tokens"
        )
    return found[1]


def quantised_products(model: nn.Module) -> set[torch.dtype]:
    """The precisions that layers with packed weights (bitsandbytes' 4-bit ones) compute in."""
    packed = (
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and not module.weight.is_floating_point()
    )
    found: list[Any] = [getattr(module, "compute_dtype", None) for module in packed]
    return {dtype for dtype in found if isinstance(dtype, torch.dtype)}


def position_embedding(model: nn.Module) -> tuple[str, nn.Embedding, int] | None:
    """Name, module and offset of the learned position embeddings; None if there are none.

    The offset is the number of leading rows that no position uses (OPT: 2).
    """
    lm = causal_lm(model)
    count = position_count(lm.config)
    token_embedding = lm.get_input_embeddings()
    for name, module in text_modules(lm):
        if not isinstance(module, nn.Embedding) or module is token_embedding or _sinusoidal(module):
            continue
        offset = int(getattr(module, "offset", 0))
        if count is not None and module.num_embeddings == count[1] + offset:
            return name, module, offset
    return None


def rotary_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules of the language model that hold rotary frequencies, with their names.

    A module has one table (``inv_freq``) or one for each kind of layer
    (``full_attention_inv_freq``, ...).
    """
    return [(name, module) for name, module in text_modules(model) if rotary_tables(module)]


def rotary_tables(module: nn.Module) -> dict[str, str]:
    """The tables of a rotary module: the kind of layer (empty for all) and the buffer's name."""
    end = "inv_freq"
    names = [n for n in module._buffers if n.endswith(end)]
    if not names and hasattr(module, end):
        names = [end]
    aside = ("original_", "long_")  # what the module keeps to compute from
    return {
        name.removesuffix(end).removesuffix("_"): name
        for name in names
        if not name.removesuffix(end).endswith(aside)
    }


# No position enters these models, as far as no rotary module was found: a state carries the order.
# Their code was read; a model that is not here and has no position that can be found is refused.
_ORDER_BY_STATE = {
    "mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm",
    "jamba", "zamba", "zamba2", "nemotron_h", "granitemoehybrid", "kimi_linear", "olmo_hybrid",
}  # fmt: skip


class PositionForm(StrEnum):
    """How a model knows where a token stands."""

    LEARNED = "learned position embeddings"
    ROTARY = "rotary position embeddings"
    ROTARY_TABLE = "a rotary table of fixed length"
    SINUSOIDAL = "sinusoidal position embeddings of fixed length"
    DISTANCES = "no positions but distances, added to the attention scores (ALiBi)"
    STATE = "no positions: a recurrent state carries the order"
    UNKNOWN = "positions that could not be found"


def position_form(model: nn.Module) -> PositionForm:
    """What a model's positions are, by its modules; `UNKNOWN` where the search finds nothing."""
    lm = causal_lm(model)
    text = text_config(lm.config)
    attention = getattr(text, "attn_config", None)
    if text.model_type == "bloom" or getattr(text, "alibi", getattr(attention, "alibi", False)):
        return PositionForm.DISTANCES  # before rotary: Falcon has both modules and uses one
    if rotary_modules(lm):
        return PositionForm.ROTARY
    if position_embedding(lm) is not None:
        return PositionForm.LEARNED
    if any("embed_positions" in m._buffers for m in attention_modules(lm)):
        return PositionForm.ROTARY_TABLE
    for _, module in text_modules(lm):
        if _sinusoidal(module):
            is_rotary = text.model_type == "roformer"
            return PositionForm.ROTARY_TABLE if is_rotary else PositionForm.SINUSOIDAL
        if "pos_encoding" in module._buffers:
            return PositionForm.SINUSOIDAL
    if text.model_type in _ORDER_BY_STATE:
        return PositionForm.STATE
    return PositionForm.UNKNOWN


def _sinusoidal(module: nn.Module) -> bool:
    return "sinusoidal" in type(module).__name__.lower()
