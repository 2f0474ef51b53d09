"""Faster kernels for what an adapter leaves frozen; the numbers change by rounding only.

Fine-tuning with a frozen base spends its time in linear layers whose weights need no gradient, and
its memory in tensors that autograd keeps for gradients nobody asks for. Three exchanges, none of
which knows an architecture:

* frozen linear layers (``nn.Linear``, transformers' ``Conv1D``) multiply through oneDNN on a CPU
  (plain fp32 products reach less of some CPUs) and save nothing but a reference
  to their weight;
* a LoRA layer (peft's ``lora.Linear``) on such a base is one autograd function,
  ``y = W x + b + B (s * A x)``: x is saved once, in the precision of the product, the update is
  added in place, and no tensor of the output's size is built besides the output;
* the tanh GELU that transformers writes as eight elementwise operations ("gelu_new",
  "gelu_fast") is torch's own kernel for the same function.

`use_frozen_kernels` changes the class of a layer to a subclass with the same parameters, so
state-dict keys, `isinstance`, saving, merging and unloading do not notice; `restore` undoes it. A
layer decides at each call: whatever the kernels do not cover (a weight that trains, an adapter
variant they do not know, dropout, several active adapters, hooks on the parts that would be passed
over) takes the original forward.

Every kernel computes a row of its output from the same row of its input, so a causal model stays
causal to the last bit.

Dimension letters: N tokens (all leading dimensions), I input features, O output features, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.activations import FastGELUActivation, NewGELUActivation
from transformers.pytorch_utils import Conv1D

from hylorada.kernels import norms, rotary
from hylorada.kernels.constants import number
from hylorada.kernels.linear import fast_linear, product_dtype, rows, without_autocast
from hylorada.kernels.switch import are_left_out, left_out


def _cast(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias.to(dtype)


def _unflattened(y_NO: Tensor, x: Tensor) -> Tensor:
    """[N, O] in the shape of x, and not as a view: some models change it in place (Llama 4)."""
    return torch.ops.aten._unsafe_view(y_NO, [*x.shape[:-1], y_NO.shape[1]])


class _FrozenProduct(torch.autograd.Function):
    """``y = W x + b`` with a frozen W; saves a reference to W."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(weight_OI)
        ctx.x_dtype, ctx.x_shape = x.dtype, x.shape
        ctx.bias_dtype = None if bias_O is None else bias_O.dtype
        with without_autocast(x):
            x_NI = rows(x, dtype)
            y_NO = fast_linear(x_NI, weight_OI.to(dtype), _cast(bias_O, dtype))
        return _unflattened(y_NO, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (weight_OI,) = ctx.saved_tensors
        g_NO = g.reshape(-1, g.shape[-1])
        dx = dbias = None
        with without_autocast(g):
            if ctx.needs_input_grad[0]:
                dx_NI = fast_linear(g_NO, weight_OI.to(g.dtype).t())
                dx = dx_NI.to(ctx.x_dtype).view(ctx.x_shape)
            if ctx.needs_input_grad[2]:
                dbias = g_NO.sum(0, dtype=torch.promote_types(g.dtype, ctx.bias_dtype))
                dbias = dbias.to(ctx.bias_dtype)
        return dx, None, dbias, None


class _LowRankProduct(torch.autograd.Function):
    """``y = W x + b + factor * B (scale * A x)`` with a frozen W (LoRA, arXiv:2106.09685, eq. 3).

    ``scale`` has one value per token (shape broadcastable to [..., 1]), the same for each of the R
    activations of a token ([..., R]: then the sum over R of its gradient is left to whoever shares
    it out, and done once for all layers), or is None. The factor goes into B once, rather than into
    the activations of every pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        a_RI: Tensor,
        b_OR: Tensor,
        scale: Tensor | None,
        factor: float,
        dtype: torch.dtype,
    ) -> Tensor:
        with without_autocast(x):
            x_NI = rows(x, dtype)
            y_NO = fast_linear(x_NI, weight_OI.to(dtype), _cast(bias_O, dtype))
            used_a_RI = a_RI.to(dtype)
            used_b_OR = _product(b_OR, factor, dtype)
            u_NR = v_NR = fast_linear(x_NI, used_a_RI)
            if scale is not None:
                v_NR = _product(u_NR, _per_token(scale, x.shape), dtype)
            y_NO.addmm_(v_NR, used_b_OR.t())
        needs = ctx.needs_input_grad
        ctx.save_for_backward(
            weight_OI,
            used_a_RI,
            used_b_OR,
            x_NI if needs[3] else None,
            v_NR if needs[4] else None,
            scale,
            u_NR if needs[5] else None,
        )
        ctx.factor, ctx.x_dtype, ctx.x_shape = factor, x.dtype, x.shape
        ctx.a_dtype, ctx.b_dtype = a_RI.dtype, b_OR.dtype
        ctx.bias_dtype = None if bias_O is None else bias_O.dtype
        return _unflattened(y_NO, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        weight_OI, used_a_RI, used_b_OR, x_NI, v_NR, scale, u_NR = ctx.saved_tensors
        needs = ctx.needs_input_grad
        dtype = g.dtype
        g_NO = g.reshape(-1, g.shape[-1])
        dx = dbias = da_RI = db_OR = dscale = None
        with without_autocast(g):
            du_NR = dv_NR = fast_linear(g_NO, used_b_OR.t())
            if needs[5]:
                ds_NR = _product(dv_NR, u_NR, torch.promote_types(dtype, scale.dtype))
                dscale = ds_NR.view(*ctx.x_shape[:-1], -1).sum_to_size(scale.shape)
            if scale is not None:
                du_NR = _product(dv_NR, _per_token(scale, ctx.x_shape), dtype)
            if needs[4]:  # in this order (R rows, then transposed) several times faster
                db_RO = torch.mm(v_NR.t(), g_NO)
                db_OR = _product(db_RO.t(), ctx.factor, ctx.b_dtype)
            if needs[3]:
                da_RI = torch.mm(du_NR.t(), x_NI).to(ctx.a_dtype)
            if needs[2]:
                dbias = g_NO.sum(0, dtype=torch.promote_types(dtype, ctx.bias_dtype))
                dbias = dbias.to(ctx.bias_dtype)
            if needs[0]:
                dx_NI = fast_linear(g_NO, weight_OI.to(dtype).t())
                dx_NI.addmm_(du_NR, used_a_RI)
                dx = dx_NI.to(ctx.x_dtype).view(ctx.x_shape)
        return dx, None, dbias, da_RI, db_OR, dscale, None, None


def _product(x_NR: Tensor, factor: Tensor | float, dtype: torch.dtype) -> Tensor:
    """Their elementwise product, rounded once to dtype and laid out row by row."""
    exact = torch.promote_types(x_NR.dtype, torch.float32)
    if torch.compiler.is_compiling():
        return (x_NR.to(exact) * factor).to(dtype)
    if not isinstance(factor, Tensor):  # with a plain number, torch would round to x's dtype first
        factor = number(factor, exact, x_NR.device)
    return torch.mul(x_NR, factor, out=x_NR.new_empty(x_NR.shape, dtype=dtype))


def _per_token(scale: Tensor, x_shape: torch.Size) -> Tensor:
    """[..., 1 or R], broadcastable over tokens -> [N, 1 or R]."""
    width = scale.shape[-1]
    return scale.expand(*x_shape[:-1], width).reshape(-1, width)


def _covered(layer: nn.Linear | Conv1D, x: Tensor) -> bool:
    """Whether the frozen product may stand in for this layer's own forward on this input."""
    weight = layer.weight
    return (
        not weight.requires_grad
        and weight.is_floating_point()
        and x.is_floating_point()
        and (x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type))
    )


class FrozenLinear(nn.Linear):
    """``nn.Linear`` that leaves out the gradient of a frozen weight, through oneDNN on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        if not _covered(self, input):
            return super().forward(input)
        return _FrozenProduct.apply(input, self.weight, self.bias, product_dtype(input))


class FrozenConv1D(Conv1D):
    """transformers' ``Conv1D`` (a linear layer with a transposed weight), as `FrozenLinear`."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., nx] -> [..., nf]."""
        if not _covered(self, x):
            return super().forward(x)
        return _FrozenProduct.apply(x, self.weight.t(), self.bias, product_dtype(x))


class _Plain:
    """What a LoRA layer without a variant does to its rank-r activations."""

    @staticmethod
    def scale_of(x: Tensor) -> None:
        return None


_PLAIN = _Plain()


class FrozenLoraLinear(LoraLinear):
    """peft's LoRA layer on a `FrozenLinear` or `FrozenConv1D`, as one autograd function.

    An adapter variant takes part if all it does is to scale each token's rank-r activation and it
    says by how much: ``scale_of(x)``, [..., 1 or R]. Any other one (DoRA, ...) keeps its forward.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        adapter = self._one_plain_adapter(x) if not args and not kwargs else None
        if adapter is None:
            return super().forward(x, *args, **kwargs)
        base = self.base_layer
        variant: Any = self.lora_variant.get(adapter, _PLAIN)
        return _LowRankProduct.apply(
            x,
            base.weight.t() if isinstance(base, Conv1D) else base.weight,
            base.bias,
            self.lora_A[adapter].weight,
            self.lora_B[adapter].weight,
            variant.scale_of(x),
            self.scaling[adapter],
            product_dtype(x),
        )

    def _one_plain_adapter(self, x: Tensor) -> str | None:
        """The name of the adapter that the fused product computes, None if it cannot."""
        if self.disable_adapters or self.merged:
            return None
        active = [name for name in self.active_adapters if name in self.lora_A]
        if len(active) != 1:
            return None
        name = active[0]
        dropout = self.lora_dropout[name]
        parts = (self.base_layer, self.lora_A[name], self.lora_B[name], dropout)
        if (
            not isinstance(self.base_layer, (FrozenLinear, FrozenConv1D))
            or not _covered(self.base_layer, x)
            or self.lora_bias[name]
            or (self.training and getattr(dropout, "p", 0.0) > 0)
            or any(_has_hooks(part) for part in parts)
            or not hasattr(self.lora_variant.get(name, _PLAIN), "scale_of")
        ):
            return None
        return name


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


class OneKernelNewGELU(NewGELUActivation):
    """``gelu_new`` by torch's kernel: one saved tensor instead of six, several times faster."""

    def forward(self, input: Tensor) -> Tensor:
        """Elementwise."""
        return F.gelu(input, approximate="tanh")


class OneKernelFastGELU(FastGELUActivation):
    """``gelu_fast``, the same function with its constants multiplied out, by torch's kernel."""

    def forward(self, input: Tensor) -> Tensor:
        """Elementwise."""
        return F.gelu(input, approximate="tanh")


_FAST: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: FrozenLinear,
    Conv1D: FrozenConv1D,
    LoraLinear: FrozenLoraLinear,
    NewGELUActivation: OneKernelNewGELU,
    FastGELUActivation: OneKernelFastGELU,
}
_ORIGINAL = {fast: original for original, fast in _FAST.items()}


def _faster(module: nn.Module) -> type[nn.Module] | None:
    """The faster class for a module, None if there is none, or if it has it already."""
    kind = type(module)  # exactly this class: a subclass has its own forward
    if _original(module) is not None:
        return None
    return _FAST.get(kind) or norms.fused(module) or rotary.fused(module)


def _original(module: nn.Module) -> type[nn.Module] | None:
    """The class that an exchanged module had, None if it is not exchanged."""
    kind = type(module)
    return _ORIGINAL.get(kind) or kind.__dict__.get("original")


def use_frozen_kernels(model: nn.Module) -> int:
    """Exchange the kernels of every layer that has a faster one, in place.

    Call it after adapters are attached: a LoRA layer added later keeps peft's forward (its base
    layer is fast all the same). Parameters, buffers, hooks and names stay as they are.

    Returns:
        how many layers were exchanged; 0 if all of them already were, or if kernels rest
        (`switch.left_out`).
    """
    return 0 if are_left_out() else _exchange(model, _faster)


def restore(model: nn.Module) -> int:
    """Undo `use_frozen_kernels`.

    Returns:
        how many layers were exchanged back.
    """
    return _exchange(model, _original)


@contextmanager
def own_kernels(model: nn.Module) -> Iterator[None]:
    """The model's own kernels inside, peft's and torch's."""
    exchanged = restore(model)
    try:
        with left_out():
            yield
    finally:
        if exchanged:
            use_frozen_kernels(model)


def _exchange(model: nn.Module, other: Callable[[nn.Module], type[nn.Module] | None]) -> int:
    count = 0
    for module in model.modules():
        kind = other(module)
        if kind is not None:
            module.__class__ = kind
            count += 1
    return count
