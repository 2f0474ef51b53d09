"""Where the parts of a causal language model are, for any architecture of transformers.

The rooms that need it (methods, evaluation, runner) ask here, so that no other file knows the names
`transformer.h`, `model.layers` or `gpt_neox.embed_in`. Everything is found by what a part does, not
by a table of class names; a model whose part cannot be found gets an error that says which.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from hylorada.errors import ConfigError


def causal_lm(model: nn.Module) -> Any:
    """The transformers model itself, out of a PeftModel if it is in one; adapters stay in it."""
    get_base_model = getattr(model, "get_base_model", None)
    return get_base_model() if callable(get_base_model) else model


def backbone(model: nn.Module) -> Any:
    """The model without its output head: token ids in, final hidden states out."""
    lm = causal_lm(model)
    inner = getattr(lm, lm.base_model_prefix, None)
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


def decoder(model: nn.Module) -> nn.Module:
    """The module that owns the list of decoder layers; its output is the final norm's output.

    Not always the backbone: OPTForCausalLM calls ``model.decoder`` directly.
    """
    return _decoder_and_layers(model)[0]


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers, in order."""
    return _decoder_and_layers(model)[1]


def _decoder_and_layers(model: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    stacks = [
        (module, child)
        for module in backbone(model).modules()
        for child in module.children()
        if isinstance(child, nn.ModuleList) and len(child) and attention_modules(child[0])
    ]
    found = max(stacks, key=lambda stack: len(stack[1]), default=None)
    if found is None:
        raise ConfigError(
            f"model: no decoder layers with causal attention in {type(causal_lm(model)).__name__}"
        )
    return found


def attention_modules(module: nn.Module) -> list[nn.Module]:
    """The causal self-attention modules below ``module``, in order."""
    return [m for m in module.modules() if hasattr(m, "is_causal") and hasattr(m, "layer_idx")]


def norm_names(model: nn.Module) -> list[str]:
    """Full names, within the transformers model, of its normalisation layers on the residual path.

    Query and key norms inside an attention module (Qwen3) are not on it and are left out.
    """
    lm = causal_lm(model)
    inside_attention = {id(n) for a in attention_modules(lm) for n in a.modules()}
    return [
        name
        for name, module in lm.named_modules()
        if "norm" in type(module).__name__.lower() and id(module) not in inside_attention
    ]


def position_embedding(model: nn.Module) -> tuple[str, nn.Embedding, int] | None:
    """Name, module and offset of the learned position embeddings; None if there are none.

    The offset is the number of leading rows that no position uses (OPT: 2).
    """
    lm = causal_lm(model)
    trained = lm.config.max_position_embeddings
    token_embedding = lm.get_input_embeddings()
    for name, module in lm.named_modules():
        if not isinstance(module, nn.Embedding) or module is token_embedding:
            continue
        offset = int(getattr(module, "offset", 0))
        if module.num_embeddings == trained + offset:
            return name, module, offset
    return None


def rotary_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that hold rotary frequencies (``inv_freq``), with their names."""
    return [(n, m) for n, m in causal_lm(model).named_modules() if hasattr(m, "inv_freq")]


def trained_length(config: Any) -> int:
    """The number of positions a base model was trained on, in tokens.

    It stays the same when `methods.position_range` extends the model. A model that its makers
    rescaled and trained further (Llama 3.1) was trained on the longer range.
    """
    extended = getattr(config, "hylorada_range", None)
    length = extended["from"] if extended else getattr(config, "max_position_embeddings", None)
    if not length:
        raise ConfigError(f"model: {type(config).__name__} does not say how long it was trained")
    return int(length)
