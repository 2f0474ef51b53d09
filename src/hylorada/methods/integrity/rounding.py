"""Telling a leak from rounding where the shape of a product depends on the text.

A mixture of experts gathers the tokens of each expert into one matrix. Other tokens later in the
text change how many rows that matrix has and where a row lies in it, kernels then add in another
order, and a past logit moves by rounding (1e-7) although nothing read the future.

So when logits move, the same is computed once more with every matrix product, and every activation
function, one row at a time: no row's arithmetic then depends on any other row. What still moves has
read the future; what stands still to the last bit has not. A leak of any size is told apart, since
nothing is rounded otherwise between the two texts. A model whose shapes do not depend on the text
has no such excuse: there a change is refused as it stands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_ops: Any = torch.ops
_aten = _ops.aten


class Shapes(TorchDispatchMode):
    """Inside it, note is taken of products whose shapes may depend on values.

    Attributes:
        rows: of each product, in order.
        routed: whether an operator ran whose output, or whose split into groups, depends on values.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []
        self.routed = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """The operator, as it is."""
        rule = _RULES.get(func)
        if rule in (_product, _added_product):
            self.rows.append(len(args[0 if rule is _product else 1]))
        self.routed = self.routed or rule is _grouped or func in _BY_VALUE
        return func(*args, **(kwargs or {}))


class RowByRow(TorchDispatchMode):
    """Inside it, products and activations are computed one row at a time."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """One operator: as it is, or row by row."""
        rule = _RULES.get(func)
        kwargs = kwargs or {}
        if rule is None:
            return func(*args, **kwargs)
        return rule(func, args, kwargs)


def _product(func: Any, args: tuple[Any, ...], kwargs: Any) -> Tensor:
    """``f(x, w, ...)`` with rows of x in front: mm, oneDNN's linear."""
    x_NI = args[0]
    if len(x_NI) < 2 or x_NI.dim() != 2:
        return func(*args, **kwargs)
    if "out" in kwargs:
        for i in range(len(x_NI)):
            func(x_NI[i : i + 1], *args[1:], out=kwargs["out"][i : i + 1])
        return kwargs["out"]
    return torch.cat([func(x_NI[i : i + 1], *args[1:], **kwargs) for i in range(len(x_NI))])


def _added_product(func: Any, args: tuple[Any, ...], kwargs: Any) -> Tensor:
    """``f(c, x, w)``, c + x w: c has a row for each of x, or one for all; also in place."""
    c, x_NI, *rest = args

    def row(tensor: Tensor, i: int) -> Tensor:
        return tensor[i : i + 1] if tensor.dim() == 2 and len(tensor) == len(x_NI) else tensor

    rows = range(len(x_NI))
    if func is _aten.addmm_.default:
        for i in rows:
            func(c[i : i + 1], x_NI[i : i + 1], *rest, **kwargs)
        return c
    if "out" in kwargs:
        out = kwargs.pop("out")
        for i in rows:
            func(row(c, i), x_NI[i : i + 1], *rest, **kwargs, out=out[i : i + 1])
        return out
    if not len(x_NI):
        return func(*args, **kwargs)
    return torch.cat([func(row(c, i), x_NI[i : i + 1], *rest, **kwargs) for i in rows])


def _grouped(func: Any, args: tuple[Any, ...], kwargs: Any) -> Tensor:
    """``f(x, w, ends)``: rows sorted by expert [S, I], weights [E, I, O], where each one ends."""
    x_SI, w_EIO = args[:2]
    offsets = args[2] if len(args) > 2 else kwargs.get("offs")
    other_form = any(kwargs.get(name) is not None for name in ("bias", "out_dtype"))
    if x_SI.dim() != 2 or w_EIO.dim() != 3 or offsets is None or other_form:
        return func(*args, **kwargs)
    ends = offsets.tolist()
    out_SO = x_SI.new_zeros(len(x_SI), w_EIO.shape[2])
    start = 0
    for expert, end in enumerate(ends):
        for i in range(start, end):
            out_SO[i : i + 1] = torch.mm(x_SI[i : i + 1], w_EIO[expert])
        start = end
    return out_SO


def _elementwise(func: Any, args: tuple[Any, ...], kwargs: Any) -> Tensor:
    """Kernels treat what is left over at the end of a tensor by other instructions."""
    x_NI = args[0]
    if x_NI.dim() != 2 or len(x_NI) < 2:
        return func(*args, **kwargs)
    return torch.stack([func(row.contiguous(), *args[1:], **kwargs) for row in x_NI])


_BY_VALUE = {_aten.nonzero.default, _aten.nonzero_numpy.default, _aten.masked_select.default}
_RULES: dict[Any, Callable[..., Tensor]] = {
    _aten.mm.default: _product,
    _aten.mm.out: _product,
    _aten.addmm.default: _added_product,
    _aten.addmm.out: _added_product,
    _aten.addmm_.default: _added_product,
    **dict.fromkeys(
        [
            getattr(_aten, name).default
            for name in ("silu", "gelu", "sigmoid", "tanh", "exp", "softplus", "elu", "mish")
        ],
        _elementwise,
    ),
}


def _rules_of_this_torch() -> None:
    """Operators that not every build of torch, or version of transformers, has."""
    for space, name, rule in (
        ("aten", "_grouped_mm", _grouped),
        ("transformers", "grouped_mm_fallback", _grouped),
        ("mkldnn", "_linear_pointwise", _product),
    ):
        operator = getattr(getattr(_ops, space), name, None)
        if operator is not None:
            _RULES[operator.default] = rule


_rules_of_this_torch()


@dataclass(frozen=True)
class Movement:
    """By how much logits moved that should not have.

    Attributes:
        leak: what is left when rounding is taken away; 0 if all of it was rounding.
        rounding: the largest change that was rounding.
        routed: whether the shapes of products follow the text.
    """

    leak: float
    rounding: float = 0.0
    routed: bool = False


def movement(before: Callable[[], Tensor], after: Callable[[], Tensor]) -> Movement:
    """The largest difference of two computations that should be equal bit for bit.

    Args:
        before: computes what must not move.
        after: computes it again, after a change elsewhere.
    """
    change = _difference(before(), after())
    if change == 0.0 or change == float("inf"):
        return Movement(change)
    with Shapes() as first:
        before()
    with Shapes() as second:
        after()
    if not (first.routed or second.routed or first.rows != second.rows):
        return Movement(change)
    with RowByRow():
        exact = _difference(before(), after())
    return Movement(0.0, change, True) if exact == 0.0 else Movement(exact, routed=True)


def _difference(a: Tensor, b: Tensor) -> float:
    """The largest difference; infinite if either is not finite."""
    value = float((a - b).abs().max()) if a.numel() else 0.0
    return value if value == value else float("inf")
