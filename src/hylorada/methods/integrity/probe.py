"""A short sequence run through the model under test, and the model put back as it was found.

Legend: T tokens, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from hylorada.architecture import anatomy
from hylorada.config.python_arguments import shown, whole_number
from hylorada.errors import ConfigError
from hylorada.methods.integrity.adapters import adapter_kind, own_groups
from hylorada.methods.landmarks import LandmarkCacheLayer
from hylorada.methods.s2_attention import attention_configs

SMALL_GROUP = 8  # tokens in an S2 group while probing
DEFAULT_LENGTH = 3 * SMALL_GROUP + 37  # longer than the group, no multiple of it, odd
# Standard deviation of the noise by component. Elsewhere it depends on the tensor: a tenth of its
# spread, so that a trained model stays in its range; _CONSTANT for one that is zeros or ones.
_NOISE = {"position_bias": 0.5, "landmark": 0.3}
_CONSTANT = 0.02


class Probe:
    """The model, a random text, and what the checks ask of them.

    Attributes:
        model: as given: a PeftModel or a bare model.
        lm: the transformers model in it.
        adapter: the active adapter's config; None for a bare model.
        kind: its PEFT type in lower case ("lora", "ia3"); this method's is "lora"; empty for a
            bare model.
        groups: trainable parameters by component; empty for a bare model.
        ids_1T: the text.
    """

    def __init__(self, model: nn.Module, vocabulary: int, length: int, seed: int) -> None:
        self.model: Any = model
        self.lm = anatomy.causal_lm(model)
        self.adapter = _active_adapter(model)
        self.kind = adapter_kind(self.adapter)
        self.groups = own_groups(model, self.kind) if self.adapter is not None else {}
        self.device = self.lm.get_input_embeddings().weight.device
        self.vocabulary = vocabulary
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed)
        ids_1T = torch.randint(0, vocabulary, (1, length), generator=self.generator)
        if invocation := getattr(self.adapter, "alora_invocation_tokens", None):
            ids_1T[0, : len(invocation)] = torch.tensor(invocation)  # without them it rests
        self.ids_1T = ids_1T.to(self.device)
        configs = attention_configs(self.lm)
        self.s2_configs = [c for c in configs if hasattr(c, "s2_group_size")]

    @property
    def inert(self) -> list[str]:
        """The components whose output the method multiplies by 0."""
        if not getattr(self.adapter, "placebo", False):
            return []
        return [group for group in ("position_bias", "landmark") if group in self.groups]

    @property
    def length(self) -> int:
        """Tokens of the text."""
        return self.ids_1T.shape[1]

    def described(self) -> dict[str, Any]:
        """What is probed, for the report."""
        return {
            "tokens": self.length,
            "rows": 2,
            "s2_group_size": self.group_size if self.s2_configs else None,
            "precision": str(self.dtype).removeprefix("torch."),
            "kernels": "the model's own",
        }

    @property
    def dtype(self) -> torch.dtype:
        """Of the model's weights; or the coarser one that its 4-bit layers compute in."""
        computed = anatomy.quantised_products(self.lm)
        own: torch.dtype = self.lm.get_input_embeddings().weight.dtype
        return max({own, *computed}, key=lambda dtype: torch.finfo(dtype).eps)

    @property
    def group_size(self) -> int:
        """Tokens in an S2 group while probing: even, several to a text."""
        return max(2, min(SMALL_GROUP, self.length // 5 // 2 * 2))

    @contextmanager
    def s2_groups(self, size: int) -> Iterator[None]:
        """Other S2 groups for a while: short ones cut even a short probe into several segments."""
        with self.s2_settings("s2_group_size", size):
            yield

    @contextmanager
    def s2_settings(self, name: str, value: int) -> Iterator[None]:
        """Another value of one setting of S2 for a while."""
        kept = [getattr(config, name) for config in self.s2_configs]
        try:
            for config in self.s2_configs:
                setattr(config, name, value)
            yield
        finally:
            for config, own in zip(self.s2_configs, kept, strict=True):
                setattr(config, name, own)

    @contextmanager
    def attention_kept(self) -> Iterator[None]:
        """Put the attention implementation back: enabling an adapter also sets S2, which would
        repair a model that has lost it.
        """
        kept = [(c, c._attn_implementation) for c in attention_configs(self.lm)]
        try:
            yield
        finally:
            for config, implementation in kept:
                config._attn_implementation = implementation

    def logits(
        self,
        ids_BT: Tensor | None = None,
        training: bool = False,
        positions_BT: Tensor | None = None,
        row: int = 0,
        draw: int = 0,
    ) -> Tensor:
        """Logits of one row, [T, V], in float32; dropout the same at every call.

        Args:
            ids_BT: token ids; default: the text.
            training: in training mode.
            positions_BT: passed on.
            row: which row.
            draw: another number draws other dropout.
        """
        self.model.train(training)
        torch.manual_seed(self.seed + draw)
        with torch.no_grad():
            output = self.model(
                input_ids=self.ids_1T if ids_BT is None else ids_BT,
                position_ids=positions_BT,
                use_cache=False,
            )
        return output.logits[row].float()

    def pieces(self, ids_1T: Tensor, pieces: int = 5) -> Tensor:
        """The same, [T, V], computed piece by piece (5 or 2) with a KV cache."""
        n = ids_1T.shape[1]
        self.model.eval()
        torch.manual_seed(self.seed)
        cache: Any = None
        parts: list[Tensor] = []
        ends = [n // 2, n // 2 + 5, n - 2, n - 1, n] if pieces == 5 else [n // 2, n]
        with torch.no_grad():
            while sum(map(len, parts)) < n:
                start = sum(map(len, parts))
                end = next(end for end in ends if end > start)
                if cache is not None and not keeps_keys_and_values(cache):
                    end = start + 1  # a recurrent state goes on token by token, as in generation
                output = self.model(
                    input_ids=ids_1T[:, start:end], past_key_values=cache, use_cache=True
                )
                cache = output.past_key_values
                parts.append(output.logits[0].float())
        return torch.cat(parts)

    @functools.cached_property
    def cache(self) -> Any:
        """What the model keeps of a few tokens to go on from; None if it keeps nothing."""
        self.model.eval()
        with torch.no_grad():
            output = self.model(input_ids=self.ids_1T[:, :2], use_cache=True)
        return getattr(output, "past_key_values", None)

    @property
    def decodes(self) -> bool:
        """Whether the model keeps a cache."""
        return self.cache is not None

    def another_text(self) -> Tensor:
        """Random tokens, as many as the text has, [1, T]."""
        shape = (1, self.length)
        return torch.randint(0, self.vocabulary, shape, generator=self.generator).to(self.device)

    def perturb(self, groups: list[str]) -> None:
        """Add noise to all trainable parameters of some components."""
        with torch.no_grad():
            for group in groups:
                for _, parameter in self.groups[group]:
                    noise = torch.randn(parameter.shape, generator=self.generator)
                    scale = _NOISE.get(group)
                    if scale is None:
                        spread = parameter.std().item() if parameter.numel() > 1 else 0.0
                        scale = 0.1 * spread or _CONSTANT
                    parameter.add_(noise.to(parameter.device, parameter.dtype), alpha=scale)

    @contextmanager
    def perturbed(self, groups: list[str]) -> Iterator[None]:
        """`perturb`, undone exactly."""
        members = [p for group in groups for _, p in self.groups[group]]
        kept = [p.detach().clone() for p in members]
        try:
            self.perturb(groups)
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(members, kept, strict=True):
                    parameter.copy_(value)

    def other_tokens(self, start: int, length: int) -> Tensor:
        """The first ``length`` tokens with every token from ``start`` on changed."""
        ids_1T = self.ids_1T[:, :length].clone()
        shift = torch.randint(1, self.vocabulary, (1, length - start), generator=self.generator)
        ids_1T[:, start:] = (ids_1T[:, start:] + shift.to(self.device)) % self.vocabulary
        return ids_1T


def keeps_keys_and_values(cache: Any) -> bool:
    """Whether a cache holds nothing else, so that any number of tokens may follow at once."""
    known = (DynamicLayer, DynamicSlidingWindowLayer, LandmarkCacheLayer)
    return type(cache) is DynamicCache and all(isinstance(layer, known) for layer in cache.layers)


def vocabulary_size(model: nn.Module, tokenizer_or_size: Any) -> int:
    """Number of token ids to draw from.

    Raises:
        ConfigError: the tokenizer knows tokens that the model has no embedding for, or is none.
    """
    rows = anatomy.causal_lm(model).get_input_embeddings().weight.shape[0]
    size = tokenizer_or_size
    if hasattr(size, "__len__") and callable(size):
        size = len(size)  # a tokenizer
    elif not hasattr(size, "__index__"):
        raise ConfigError(
            f"tokenizer: {shown(size)} is none; use a tokenizer of transformers, as from "
            "AutoTokenizer.from_pretrained(...), or its number of tokens"
        )
    size = whole_number("tokenizer: its number of tokens", size, 2)
    if size > rows:
        raise ConfigError(
            f"model: the tokenizer has {size} tokens, the model embeds {rows}; "
            "use the tokenizer that belongs to the model"
        )
    return size


@contextmanager
def as_found(model: nn.Module) -> Iterator[None]:
    """Put back afterwards: parameters, gradients, buffers, modes, random state, positions."""
    adapted = _active_adapter(model) is not None
    parameters = [
        (p, p.grad, p.detach().clone() if adapted and p.requires_grad else None)
        for p in model.parameters()
    ]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    # Dynamic RoPE keeps the longest length seen; the adapter the positions of the last batch.
    plain = [(m, dict(m.__dict__)) for _, m in anatomy.rotary_modules(model)]
    positions = getattr(getattr(model, "base_model", None), "positions", None)
    if positions is not None:
        plain.append((positions, dict(positions.__dict__)))
    modes = [(module, module.training) for module in model.modules()]
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(list(devices)):
            for parameter, _, _ in parameters:
                parameter.grad = None
            yield
    finally:
        for holder, attributes in plain:
            holder.__dict__.clear()
            holder.__dict__.update(attributes)
        with torch.no_grad():
            for parameter, gradient, value in parameters:
                parameter.grad = gradient
                if value is not None:
                    parameter.copy_(value)
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
        for module, mode in modes:
            module.training = mode


def _active_adapter(model: Any) -> Any:
    """The config of the active PEFT adapter, if there is one."""
    configs = getattr(model, "peft_config", None)
    names = getattr(model, "active_adapters", None)
    if not isinstance(configs, dict) or not isinstance(names, list) or not names:
        return None
    return configs.get(names[0])
