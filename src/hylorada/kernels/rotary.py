"""Rotary embedding in three operations a tensor, for the models that write it with ten and more.

    y = x * cos + rotate_half(x) * sin,    rotate_half((x1, x2)) = (-x2, x1)

(Su et al., arXiv:2104.09864, with the halves of a head as pairs.) Models of transformers spell this
out in a function `apply_rotary_pos_emb` of their module, which their attention layers call. A layer
whose module's function is proven to compute just this gets the same code with this one name bound
to a function of our own: nothing else of the module, and no other model, is touched. Under autocast
the result has the precision of the products that read it, which would cast it to the same numbers.

Dimension letters: B batch, H heads, T tokens, D width of a head.
"""

from __future__ import annotations

import functools
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hylorada.kernels.linear import product_dtype, without_autocast

_NAME = "apply_rotary_pos_emb"


class _Rotation(torch.autograd.Function):
    """``x cos + rotate_half(x) sin``; saves the tables alone, which all layers share."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.x_dtype = x.dtype
        half = x.shape[-1] // 2
        x1, x2 = x[..., :half], x[..., half:]
        return _combined(x, cos, (x2, sin[..., :half], -1), (x1, sin[..., half:], 1), dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        half = g.shape[-1] // 2
        g1, g2 = g[..., :half], g[..., half:]
        dx = _combined(g, cos, (g2, sin[..., half:], 1), (g1, sin[..., :half], -1), ctx.x_dtype)
        return dx, None, None, None


def _combined(x: Tensor, cos: Tensor, first: Any, second: Any, dtype: torch.dtype) -> Tensor:
    """``x cos`` plus, in each half, the product of two tensors times a sign; rounded once."""
    half = x.shape[-1] // 2
    with without_autocast(x):
        sum_ = x * cos
        out = sum_ if sum_.dtype == dtype else torch.empty_like(sum_, dtype=dtype)
        for part, (a, b, sign) in ((slice(half), first), (slice(half, None), second)):
            torch.addcmul(sum_[..., part], a, b, value=sign, out=out[..., part])
    return out


def _rotate(original: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kw: Any):
    """As ``original``, wherever it was proven to be this."""
    plain = (
        args or kw or cos.requires_grad or q.dim() != 4 or k.dim() != 4 or cos.dim() != 3
        or cos.shape != sin.shape or q.shape[-1] != cos.shape[-1] or q.shape[-1] % 2
        or k.shape[-1] != cos.shape[-1] or torch.compiler.is_compiling()
    )  # fmt: skip
    if plain:
        return original(q, k, cos, sin, *args, **kw)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    under_autocast = torch.is_autocast_enabled(q.device.type)
    return tuple(
        _Rotation.apply(
            x,
            cos,
            sin,
            product_dtype(x) if under_autocast else torch.promote_types(x.dtype, cos.dtype),
        )
        for x in (q, k)
    )


def fused(layer: nn.Module) -> type[nn.Module] | None:
    """The class of this layer with a rotary embedding in few operations; None: it has another."""
    kind: Any = type(layer)
    forward = kind.forward
    if not isinstance(forward, FunctionType) or forward.__closure__ is not None:
        return None
    original = forward.__globals__.get(_NAME) if _NAME in forward.__code__.co_names else None
    device = next((p.device for p in layer.parameters()), torch.device("meta"))
    if not isinstance(original, FunctionType) or device.type == "meta":
        return None
    return _class_of(kind, original) if _is_rotation(original, device) else None


@functools.cache
def _class_of(kind: Any, original: Any) -> type[nn.Module]:
    forward = kind.forward
    names = {**forward.__globals__, _NAME: functools.partial(_rotate, original)}
    del names["__name__"]  # by which torch.compile would look names up in the module itself
    ours = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__)
    ours.__kwdefaults__ = forward.__kwdefaults__
    ours.__doc__, ours.__annotations__ = forward.__doc__, forward.__annotations__
    body = {"forward": ours, "original": kind, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), {**body, "__module__": kind.__module__})


@functools.cache
def _is_rotation(function: Any, device: torch.device) -> bool:
    """Whether it is `_Rotation` there, on random tables whose halves differ, forward and backward.

    In float64, and in bf16 by float32 tables as under autocast: no device need compute that.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)

    q, k = random(2, 3, 5, 6).requires_grad_(), random(2, 1, 5, 6).requires_grad_()
    cos, sin, g = random(2, 5, 6), random(2, 5, 6), random(2, 4, 5, 6)
    results = []
    try:
        with torch.inference_mode(False), torch.enable_grad():
            for rotate in (function, functools.partial(_rotate, function)):
                turned = rotate(q, k, cos, sin)
                slopes = torch.autograd.grad(torch.cat(turned, 1), (q, k), g)
                results.append([*turned, *slopes])
            half = q.detach().to(torch.bfloat16).requires_grad_()
            wide = (table.float().unsqueeze(1) for table in (cos, sin))
            rounded = _Rotation.apply(half, *wide, torch.bfloat16)
            torch.autograd.grad(rounded, half, torch.ones_like(rounded))
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False  # it takes something else
    same = all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(*results, strict=True))
    return same and torch.allclose(rounded.double(), results[0][0], rtol=0.05, atol=0.1)
