"""RMS normalisation in few operations, for the layers that are proven to compute just that.

    y = (offset + w) * x / sqrt(mean(x^2) + eps)

(Zhang & Sennrich, arXiv:1910.07467; offset is 0, or 1 in Gemma.) The models of transformers write
it as eight operations, fourteen more in the backward pass, and autograd keeps four tensors of the
input's size. On a GPU torch has one kernel for each pass, where input and weight are of one
precision; elsewhere a function of our own has five and seven and keeps the input alone.

Which layers compute this is not read from their names: `fused` runs the layer itself.

Dimension letters: D features, N all other dimensions.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hylorada.kernels.constants import number
from hylorada.kernels.linear import without_autocast

_PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)
_EPSILONS = ("variance_epsilon", "eps", "epsilon")


class _RMSNorm(torch.autograd.Function):
    """``w * x / sqrt(mean(x^2) + eps)`` in float32; saves x and one number for each token."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        length_N1 = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        eps_1 = number(eps, torch.float32, x.device)
        scale_N1 = torch.addcmul(eps_1, length_N1, length_N1, value=1 / x.shape[-1]).rsqrt_()
        ctx.save_for_backward(x, weight_D, scale_N1)
        return (x * scale_N1).mul_(weight_D).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_D, scale_N1 = ctx.saved_tensors
        dx = dweight_D = None
        with without_autocast(g):
            g = g.to(torch.float32)
            gx = g * x
            if ctx.needs_input_grad[0]:
                along_N1 = (gx @ weight_D.to(torch.float32)).unsqueeze(-1) * scale_N1.square()
                dx = (g * weight_D).addcmul_(x, along_N1, value=-1 / x.shape[-1])
                dx = dx.mul_(scale_N1).to(x.dtype)
            if ctx.needs_input_grad[1]:
                dweight_D = gx.reshape(-1, x.shape[-1]).t() @ scale_N1.reshape(-1)
                dweight_D = dweight_D.to(weight_D.dtype)
        return dx, dweight_D, None, None


def _normed(x: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    with without_autocast(x):
        if x.is_cuda and x.dtype == weight_D.dtype == dtype:
            return F.rms_norm(x, weight_D.shape, weight_D, eps)
        return _RMSNorm.apply(x, weight_D, eps, dtype)


def fused(layer: nn.Module) -> type[nn.Module] | None:
    """The class that computes what this layer does in few operations; None: it does another thing.

    The layer is run, forward and backward, on three rows: of ordinary size, so small that eps
    matters, and large.
    """
    weight = layer._parameters.get("weight")
    eps = _epsilon(layer)
    alone = set(layer._parameters) == {"weight"} and not (layer._modules or layer._buffers)
    if weight is None or eps is None or not alone or weight.dim() != 1 or weight.is_meta:
        return None
    if weight.dtype not in _PRECISIONS:
        return None
    x, g = torch.randn(2, 3, len(weight), generator=torch.Generator().manual_seed(0))
    x = (x * torch.tensor([[1.0], [eps**0.5], [100.0]])).to(weight.device).requires_grad_()
    g = g.to(weight.device)
    kind: Any = type(layer)
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # torch's, of a norm that it cannot fuse
            torch.inference_mode(False),
            torch.enable_grad(),
            without_autocast(x),
        ):
            want = kind.forward(layer, x)
            (slope,) = torch.autograd.grad(want, x, g.to(want.dtype))
            half = kind.forward(layer, x.detach().to(torch.bfloat16)).dtype
            for offset in (0.0, 1.0):
                got = _normed(x, _used(weight.detach(), offset), eps, want.dtype)
                (ours,) = torch.autograd.grad(got, x, g.to(got.dtype))
                if _close(got, want) and _close(ours, slope):
                    return _class_of(kind, offset, half == torch.bfloat16)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        pass  # it takes something else than [rows, features]
    return None


def _used(weight_D: Tensor, offset: float) -> Tensor:
    """What multiplies; with an offset in float32, as Gemma's bf16 weights lie about zero."""
    return weight_D.to(torch.float32) + offset if offset else weight_D


def _epsilon(layer: nn.Module) -> float | None:
    found = (getattr(layer, name, None) for name in _EPSILONS)
    return next((eps for eps in found if isinstance(eps, float) and eps > 0), None)


def _close(a: Tensor, b: Tensor) -> bool:
    """Up to rounding, row by row."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    tolerance = 64 * torch.finfo(a.dtype).eps
    error_N, size_N = (a - b).float().norm(dim=-1), b.float().norm(dim=-1)
    return bool((error_N <= tolerance * size_N).all())


@functools.cache
def _class_of(kind: Any, offset: float, keeps_precision: bool) -> type[nn.Module]:
    """A subclass of ``kind``, by its name; it returns the precision that ``kind`` returns."""

    class Fused(kind):
        original = kind

        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            weight = self.weight
            if args or kwargs or x.dtype not in _PRECISIONS or torch.compiler.is_compiling():
                return super().forward(x, *args, **kwargs)
            dtype = x.dtype if keeps_precision else torch.promote_types(x.dtype, weight.dtype)
            eps: Any = _epsilon(self)
            return _normed(x, _used(weight, offset), eps, dtype)

    Fused.__name__, Fused.__qualname__ = kind.__name__, kind.__qualname__
    Fused.__module__, Fused.__doc__ = kind.__module__, kind.__doc__
    return Fused
