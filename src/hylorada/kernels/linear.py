"""The fastest ``x W^T + b`` of this machine, outside autograd.

Plain fp32 matrix products reach less of some CPUs (MKL on AMD) than oneDNN's, but torch sends only
bf16 there by itself. Measured on three (`benchmarks/products.py`): oneDNN takes a third of MKL's
time on one, 0.45 on Zen 5, 0.7 to 0.95 on Zen 4; on none is it slower.
"""

from __future__ import annotations

import threading
import weakref
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _find_onednn_linear() -> Any:
    """oneDNN's linear layer on plain tensors, or None where this torch has none (arm, macOS).

    It is the operator that torch.compile emits for CPU linear layers; private, hence this check.
    """
    if not torch.backends.mkldnn.is_available():
        return None
    try:
        operator = torch.ops.mkldnn._linear_pointwise.default
        x = torch.ones(2, 3)
        if torch.equal(operator(x, x, None, "none", [], ""), torch.full((2, 2), 3.0)):
            return operator
    except (AttributeError, RuntimeError):
        pass
    return None


_ONEDNN_LINEAR = _find_onednn_linear()


def onednn_serves(device: torch.device) -> bool:
    """Whether fp32 products on this device go through oneDNN; not in a compiled layer."""
    switched_on = bool(torch.backends.mkldnn.enabled) and not torch.compiler.is_compiling()
    return _ONEDNN_LINEAR is not None and device.type == "cpu" and switched_on


def fast_linear(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """``x W^T + b`` for matrices, without a graph.

    Only fp32 on a CPU needs help: F.linear already sends bf16 to oneDNN, and a GPU to cuBLAS.
    The weight may be a transposed view. Anything else with strides is copied first: oneDNN would
    compute it a thousand times slower, without a word.

    Returns:
        a new tensor [N, O].
    """
    if x_NI.dtype == torch.float32 and x_NI.numel() and onednn_serves(x_NI.device):
        if not weight_OI.t().is_contiguous():
            weight_OI = weight_OI.contiguous()
        return _ONEDNN_LINEAR(x_NI.contiguous(), weight_OI, bias_O, "none", [], "")
    return F.linear(x_NI, weight_OI, bias_O)


def product_dtype(x: Tensor) -> torch.dtype:
    """The precision a linear layer works in here and now: autocast's if it is on, else x's."""
    if x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def without_autocast(x: Tensor) -> AbstractContextManager:
    """For functions that cast by hand: autocast must not cast again inside them."""
    return torch.autocast(x.device.type, enabled=False)


class _LastCast(threading.local):
    """The rows that were cast last in this thread, for as long as they live uncast."""

    source: Any = None  # a weak reference
    version = -1
    cast_NI: Tensor | None = None

    def forget(self, source: Any) -> None:
        if self.source is source:
            self.source = self.cast_NI = None


_last = _LastCast()


def rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[..., I] -> [N, I] in this precision.

    Layers that read one input one after the other (queries, keys and values) are given one and the
    same copy of it, so that it is made and kept for the backward pass once.
    """
    x_NI = x.reshape(-1, x.shape[-1])
    if x.dtype == dtype or x.is_inference() or torch.compiler.is_compiling():
        return x_NI.to(dtype)
    kept = _last.cast_NI
    known = _last.source is not None and _last.source() is x and _last.version == x._version
    if known and kept is not None and kept.dtype == dtype and kept.shape == x_NI.shape:
        return kept
    cast_NI = x_NI.to(dtype)
    _last.source = weakref.ref(x, _last.forget)
    _last.version, _last.cast_NI = x._version, cast_NI
    return cast_NI
