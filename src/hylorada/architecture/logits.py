"""From final hidden states to logits, as the model itself does it.

Loss and scores are computed from hidden states a few hundred tokens at a time, so what a model does
around its output head must be known. Names in a config do not tell it (`logit_scale`,
`logits_scaling`, `lm_head_multiplier`, `logits_soft_cap`, ...), so it is measured, once for each
model, on a few tokens: what enters the head is compared with the backbone's hidden states; and what
comes out of the head is replaced by powers of two, to see what the model makes of them, over the
whole range in which a logit may ever lie. What is found is

    logits = cap * tanh(scale * head(input_scale * h) / cap),   of the first `size` tokens

and anything else is refused. At last the logits so computed are compared with the model's own.

Dimension letters: T tokens, D hidden size, V rows of the head, G values in the grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hylorada.architecture import anatomy
from hylorada.errors import ConfigError, HyloradaError, in_one_line

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""By how much two ways to the same logits may differ, relative to the largest logit."""

_TOKENS = 8
_EXPONENTS = range(-10, 16)  # from 0.001, where no cap bends anything, to 32768, where any does
_EXACT = 1e-5  # relative, in float32: how well the model's function must be met on the grid


@dataclass(frozen=True)
class LogitFunction:
    """What a model does before and after its output head.

    Attributes:
        input_scale: factor on the hidden states (MiniCPM 3).
        scale: factor on the head's output (Cohere, Granite, Falcon-H1).
        cap: the logits stay within it, by tanh (Gemma 2, RecurrentGemma); None: no cap.
        size: logits; the head may have more rows, for padding; None: all rows.
    """

    input_scale: float = 1.0
    scale: float = 1.0
    cap: float | None = None
    size: int | None = None

    @property
    def bends(self) -> bool:
        """Whether a logit is anything but the head's output."""
        return self.scale != 1.0 or self.cap is not None

    def after_head(self, raw_NV: Tensor) -> Tensor:
        """The logits of the head's output; in float32 at least where they differ from it."""
        if self.size is not None:
            raw_NV = raw_NV[..., : self.size]
        if not self.bends:
            return raw_NV
        raw_NV = raw_NV.to(torch.promote_types(raw_NV.dtype, torch.float32)) * self.scale
        return raw_NV if self.cap is None else torch.tanh(raw_NV / self.cap) * self.cap

    def slope(self, logits_NV: Tensor) -> Tensor | float:
        """d logit / d head's output, where the logits are ``logits_NV``."""
        if self.cap is None:
            return self.scale
        return (1 - (logits_NV / self.cap) ** 2) * self.scale


@dataclass(frozen=True)
class OutputHead:
    """A model's way from final hidden states to logits.

    Attributes:
        module: the linear layer, with whatever an adapter has put around it.
        function: what the model does before and after it.
    """

    module: Any
    function: LogitFunction

    def __call__(self, hidden_ND: Tensor) -> Tensor:
        """Final hidden states [..., D] to logits [..., V]."""
        if self.function.input_scale != 1.0:
            hidden_ND = hidden_ND * self.function.input_scale
        return self.function.after_head(self.module(hidden_ND))

    @property
    def matrix(self) -> tuple[Tensor, Tensor | None]:
        """Weight [V, D] and bias [V] of the rows that make a logit."""
        weight, bias = self.module.weight, getattr(self.module, "bias", None)
        size = self.function.size
        if size is not None:
            weight, bias = weight[:size], None if bias is None else bias[:size]
        return weight, bias


_known: WeakKeyDictionary[nn.Module, LogitFunction] = WeakKeyDictionary()


def output_head(model: nn.Module) -> OutputHead:
    """The way to the logits of a model, or of the model in a PeftModel.

    The first call for a model runs it on a few tokens and leaves it as it was.

    Raises:
        ConfigError: the model has no output head, or its logits are another function of it.
    """
    lm = anatomy.causal_lm(model)
    if lm not in _known:
        _known[lm] = _measure(lm)
    return OutputHead(anatomy.output_head(lm), _known[lm])


def disagreement(model: nn.Module, ids_BT: Tensor, **inputs: Any) -> float:
    """How far the logits that are scored are from those of the model's own forward pass.

    Of a PeftModel, the forward pass is the wrapper's.

    Args:
        model: in the mode and under the autocast that are asked about.
        ids_BT: token ids.
        **inputs: what else both are given.

    Returns:
        The largest difference, relative to the largest logit; to be held against `TOLERANCE`.
    """
    inputs = {"input_ids": ids_BT, "use_cache": False, **inputs}
    with torch.no_grad():
        own = model(**inputs).logits
        scored = output_head(model)(anatomy.backbone(model)(**inputs).last_hidden_state)
    return _relative(scored, own)


def _relative(a: Tensor, b: Tensor) -> float:
    """The largest difference of two tensors by the largest value of the second."""
    if a.shape != b.shape:
        return float("inf")
    # What is not finite in both agrees: that weights are broken is for the evaluation to say.
    a, b = (x.double().nan_to_num(0.0, 0.0, 0.0) for x in (a, b))
    largest = b.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return float((a - b).abs().max() / largest)


@torch.no_grad()
def _measure(lm: Any) -> LogitFunction:
    kind = type(lm).__name__
    flags = [(module, module.training) for module in lm.modules()]
    ids_1T = _tokens(lm)
    lm.eval()
    try:
        with (
            torch.random.fork_rng([ids_1T.device] if ids_1T.is_cuda else []),
            torch.autocast(ids_1T.device.type, enabled=False),
        ):
            return _found(lm, ids_1T)
    except (HyloradaError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = in_one_line(error)
        raise ConfigError(
            f"model: {kind} cannot be run on {ids_1T.shape[1]} token ids alone "
            f"({type(error).__name__}: {reason}); use a causal language model of text"
        ) from error
    finally:
        for module, training in flags:
            module.training = training


def _tokens(lm: Any) -> Tensor:
    """A few ids from the middle of the vocabulary, away from special tokens, [1, T]."""
    embedding = lm.get_input_embeddings().weight
    count = min(_TOKENS, getattr(lm.config, "max_position_embeddings", None) or _TOKENS)
    start = torch.arange(count, device=embedding.device) * 7 + embedding.shape[0] // 2
    return (start % embedding.shape[0])[None]


def _found(lm: Any, ids_1T: Tensor) -> LogitFunction:
    kind, head = type(lm).__name__, anatomy.output_head(lm)
    hidden_TD = anatomy.backbone(lm)(input_ids=ids_1T, use_cache=False).last_hidden_state[0]
    seen: dict[str, Tensor] = {}

    def watch(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen["input"], seen["output"] = args[0].reshape(-1, args[0].shape[-1]), output

    logits_TV = _logits(lm, head, ids_1T, watch)
    if not seen:
        raise ConfigError(
            f"model: {kind} does not call its output head ({type(head).__name__}) to compute its "
            "logits; such models are not supported"
        )
    tolerance = TOLERANCE[hidden_TD.dtype]
    input_scale = _factor(hidden_TD, seen["input"], tolerance)
    if input_scale is None:
        raise ConfigError(
            f"model: the input of the output head of {kind} is not its backbone's hidden states "
            f"(they differ by {_relative(seen['input'], hidden_TD):.3g} of the largest, and not "
            "by a factor); such models are not supported"
        )
    weight, bias = getattr(head, "weight", None), getattr(head, "bias", None)
    if isinstance(weight, Tensor) and not hasattr(head, "base_layer"):
        product_TV = F.linear(seen["input"], weight, bias)
        error = _relative(product_TV, seen["output"].reshape(-1, seen["output"].shape[-1]))
        if not error <= tolerance:
            raise ConfigError(
                f"model: the output head of {kind} ({type(head).__name__}) is not a linear layer "
                f"(off by {error:.3g} of the largest logit); such models are not supported"
            )
    function = _after_head(lm, head, ids_1T, input_scale)
    ours_TV = OutputHead(head, function)(hidden_TD)
    error = _relative(ours_TV, logits_TV)
    if not error <= TOLERANCE[logits_TV.dtype]:
        raise ConfigError(
            f"model: the logits of {kind} are not its output head applied to its hidden states "
            f"(off by {error:.3g} of the largest logit); such models are not supported"
        )
    return function


def _logits(lm: Any, head: nn.Module, ids_1T: Tensor, hook: Callable[..., Any]) -> Tensor:
    """The model's own logits, [T, V], with a hook on its head."""
    handle = head.register_forward_hook(hook)
    try:
        return lm(input_ids=ids_1T, use_cache=False).logits[0]
    finally:
        handle.remove()


def _factor(hidden: Tensor, other: Tensor, tolerance: float) -> float | None:
    """The number that one tensor is of another; None if there is none."""
    if hidden.shape != other.shape:
        return None
    if hidden.equal(other) or not hidden.isfinite().all():
        return 1.0
    h, o = hidden.double(), other.double()
    factor = float((h * o).sum() / (h * h).sum().clamp(min=1e-300))
    if not _relative(h * factor, o) <= tolerance:
        return None
    return 1.0 if abs(factor - 1) <= tolerance / 10 else factor


def _after_head(lm: Any, head: nn.Module, ids_1T: Tensor, input_scale: float) -> LogitFunction:
    """What the model makes of the head's output."""
    powers = torch.tensor([2.0**e for e in _EXPONENTS], device=ids_1T.device)
    grid_G = torch.cat([powers, -powers, powers.new_zeros(1)])
    given: Tensor = grid_G

    def replace(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        nonlocal given
        places = torch.arange(output.numel(), device=output.device) % len(grid_G)
        given = grid_G[places].reshape(output.shape)
        return given.clone()  # some models work in place

    logits_TV = _logits(lm, head, ids_1T, replace).float()
    size = logits_TV.shape[-1] if logits_TV.shape[-1] < given.shape[-1] else None
    raw_TV = given[0, :, :size]

    def at(value: float) -> float:
        values = logits_TV[raw_TV == value]
        return float(values[0]) if len(values) else float("nan")

    low, high, higher = (2.0**e for e in (_EXPONENTS[0], _EXPONENTS[-2], _EXPONENTS[-1]))
    scale, cap = at(low) / low, None
    if abs(at(higher) - at(high)) <= _EXACT * abs(at(higher)):
        cap = at(higher)
    function = LogitFunction(input_scale, scale, cap, size)
    ours_TV = LogitFunction(1.0, scale, cap).after_head(raw_TV)
    error_TV = (ours_TV - logits_TV).abs() / (_EXACT * logits_TV.abs()).clamp(min=1e-30)
    if not bool((error_TV <= 1).all()):  # also where something is not finite
        worst = int(error_TV.nan_to_num(float("inf"), float("inf")).argmax())
        raw, logit = float(raw_TV.flatten()[worst]), float(logits_TV.flatten()[worst])
        raise ConfigError(
            f"model: {type(lm).__name__} changes its logits after the output head, neither by a "
            f"factor nor by a soft cap ({raw:g} becomes {logit:g}); such models are not supported"
        )
    return function
