"""What the layers of a model are given to know positions by, found by running a few tokens.

The position bias scales each token's update by its position: every adapted layer must run after
the attention of its own decoder layer was given `position_ids`, and on the very tokens that those
belong to. Not so in layers without attention (recurrent ones), in routed experts (some tokens of
the sequence), and where keys and values are computed again from a compressed cache (DeepSeek's
latent attention: all tokens so far). Landmarks need the positions once, and a decoder whose output
is what the output head reads.

An adapter acts where its layer is called. Some modelling files read the weight of a linear layer
and never call it (Mamba's `dt_proj`): such layers are found by the same run.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hylorada.architecture import anatomy

logger = logging.getLogger(__name__)

_PIECES = (6, 3)  # tokens: a text, and its continuation with a cache
_SAME = 1e-5  # relative: two ways to one tensor


@dataclass
class PositionFlow:
    """Why a component is not available; empty where it is.

    Attributes:
        position_bias: of the position bias.
        landmark: of the landmarks.
        idle: names, in their decoder layers, of adapted layers that training does not call.
    """

    position_bias: str = ""
    landmark: str = ""
    idle: tuple[str, ...] = ()


class _Watch:
    """What the hooks saw."""

    def __init__(self) -> None:
        self.positions: Tensor | None = None  # of the decoder layer that is running
        self.given = False
        self.starts = 0  # the position of the first token that is read now
        self.restarts = False  # a text that continues with a cache is given other positions
        self.bias = ""
        self.output: Any = None
        self.read: Tensor | None = None
        self.idle: dict[int, str] = {}  # the adapted layers that were not called yet

    def layer(self, module: nn.Module, args: Any) -> None:
        self.positions = None

    def attention(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        positions = kwargs.get("position_ids")
        if isinstance(positions, Tensor) and positions.dim() == 2:
            self.positions, self.given = positions, True
            self.restarts |= bool(positions[0, 0] != self.starts)

    def linear(self, name: str, module: nn.Module, args: Any) -> None:
        self.idle.pop(id(module), None)
        if module.training:
            return
        tokens = args[0].shape[:-1].numel()
        if self.positions is None:
            self.bias = self.bias or f"runs without attention that is given position_ids ({name})"
        elif tokens != self.positions.numel():
            self.bias = self.bias or f"works on other tokens than its attention ({name})"

    def decoder(self, module: nn.Module, args: Any, output: Any) -> None:
        self.output = output

    def head(self, module: nn.Module, args: Any) -> None:
        self.read = args[0]


def position_flow(model: nn.Module, target_modules: Any) -> PositionFlow:
    """Run a short text and see which components its layers can carry.

    On a model without weights, and where the text does not run, nothing is known and nothing is
    said: the integrity gate runs the model again.

    Args:
        model: a causal language model, adapted or not; left as it was.
        target_modules: what is adapted: ends of names, or whatever else peft accepts, which then
            counts as all linear layers of the decoder layers.
    """
    lm = anatomy.causal_lm(model)
    if any(p.is_meta for p in lm.parameters()):
        return PositionFlow()
    kind, watch = type(lm).__name__, _Watch()
    if not _run(lm, target_modules, watch):
        return PositionFlow()
    idle = tuple(sorted(set(watch.idle.values())))
    if not watch.given:
        reason = f"no attention layer of {kind} is given position_ids"
        return PositionFlow(reason, reason, idle)
    if watch.restarts:
        reason = f"{kind} gives a text that continues with a cache the positions of its beginning"
        return PositionFlow(reason, reason, idle)
    bias = f"in {kind} an adapted layer {watch.bias}" if watch.bias else ""
    return PositionFlow(bias, _landmark_reason(kind, watch), idle)


def _landmark_reason(kind: str, watch: _Watch) -> str:
    output = watch.output
    h_BTd = output[0] if isinstance(output, tuple) else getattr(output, "last_hidden_state", None)
    read = watch.read
    if isinstance(h_BTd, Tensor) and read is not None and read.shape == h_BTd.shape:
        h, r = h_BTd.double(), read.double()
        factor = (h * r).sum() / (h * h).sum().clamp(min=1e-300)  # MiniCPM 3 scales what it reads
        if (h * factor - r).abs().max() <= _SAME * r.abs().max():
            return ""
    return f"the output head of {kind} does not read the output of its decoder"


def _run(lm: Any, target_modules: Any, watch: _Watch) -> bool:
    """Watch a step of training, and a text read in two pieces; whether anything of it ran."""
    handles: list[Any] = []
    modes = [(module, module.training) for module in lm.modules()]
    plain = [(m, dict(m.__dict__), dict(m._buffers)) for _, m in anatomy.rotary_modules(lm)]
    embedding_VD = lm.get_input_embeddings().weight
    ids_1T = torch.arange(sum(_PIECES), device=embedding_VD.device)[None] % embedding_VD.shape[0]
    cuda = [embedding_VD.device] if embedding_VD.is_cuda else []
    try:
        for attention in anatomy.attention_modules(lm):
            hook: Any = watch.attention
            handles.append(attention.register_forward_pre_hook(hook, with_kwargs=True))
        for layer in anatomy.decoder_layers(lm):
            handles.append(layer.register_forward_pre_hook(watch.layer))
            for name, module in _adapted(layer, target_modules):
                if "expert" not in name:  # one expert may well get none of a few tokens
                    watch.idle[id(module)] = name
                handles.append(module.register_forward_pre_hook(_named(watch, name)))
        handles.append(anatomy.decoder(lm).register_forward_hook(watch.decoder))
        handles.append(anatomy.output_head(lm).register_forward_pre_hook(watch.head))
        with torch.random.fork_rng(cuda), torch.no_grad():
            lm.train()
            trained = _forward(lm, ids_1T, use_cache=False)
            if trained is None:
                watch.idle.clear()
            lm.eval()
            first_1T, second_1T = ids_1T.split(_PIECES, dim=1)
            read = _forward(lm, first_1T, use_cache=True)
            cache = getattr(read, "past_key_values", None)
            if cache is not None:
                watch.starts = first_1T.shape[1]
                _forward(lm, second_1T, use_cache=True, past_key_values=cache)
            return trained is not None or read is not None
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
        for holder, attributes, buffers in plain:  # dynamic RoPE remembers the longest text
            holder.__dict__.update(attributes)
            holder._buffers.update(buffers)


def _forward(lm: Any, ids_1T: Tensor, **inputs: Any) -> Any:
    """The model's output; None where the text does not run through it."""
    try:
        return lm(input_ids=ids_1T, **inputs)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a modelling file raises; the gate runs it again
        logger.debug("position flow: %s on %d tokens: %s", type(lm).__name__, ids_1T.numel(), error)
        return None


def _named(watch: _Watch, name: str) -> Any:
    return lambda module, args: watch.linear(name, module, args)


def _adapted(layer: nn.Module, target_modules: Any) -> list[tuple[str, nn.Module]]:
    """The linear layers of a decoder layer that are adapted, with their names in it."""
    ends = list(target_modules) if isinstance(target_modules, list | set | tuple) else None
    linears = [
        (name.removesuffix(".base_layer"), module)  # of another adapter
        for name, module in layer.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    ]
    return [
        (name, module)
        for name, module in linears
        if not anatomy.is_cross_attention(name)
        and (ends is None or any(name == end or name.endswith(f".{end}") for end in ends))
    ]
