"""Which part of a model it is: the innermost module whose inputs agree and whose output does not.

Two computations that should agree in some places (the past, another row) are run with every module
watched. What a module was given and what it gave back there is kept as a fingerprint of the bits,
so that this works at any size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from hylorada.methods.integrity.rounding import RowByRow
from hylorada.methods.landmarks import Landmark
from hylorada.methods.position_bias import PositionBias

_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}

Places = tuple[slice, slice]  # rows and tokens of a batch [B, T]

_Call = tuple[tuple[int, ...], tuple[int, ...]]  # fingerprints of what went in and what came out


def culprit(
    model: nn.Module,
    before: Callable[[], Any],
    after: Callable[[], Any],
    shape: tuple[int, int],
    places: Places,
    between: Callable[[], Any] = lambda: None,
    routed: bool = False,
) -> str:
    """The name of the part by which two computations come apart, for a sentence.

    Args:
        model: run by both.
        before: the first computation.
        after: the second; it should agree with the first in ``places``.
        shape: B and T of the batch that both run.
        places: where they should agree.
        between: run between the two, unwatched.
        routed: the shapes of products may follow the text; rounding is then kept out.
    """
    with RowByRow() if routed else nullcontext(), _watched(model, shape, places) as first:
        before()
    between()
    with RowByRow() if routed else nullcontext(), _watched(model, shape, places) as second:
        after()
    names = {id(module): name for name, module in model.named_modules()}
    for (module, (given, gave)), (other, (given_again, gave_again)) in zip(
        first, second, strict=False
    ):
        if module is not other:  # another path through the model from here on
            break
        if given == given_again and gave != gave_again and gave:
            return _called(module, names[id(module)])
    return "the model"


def _called(module: nn.Module, name: str) -> str:
    if isinstance(module, Landmark):
        return "landmark"
    if isinstance(module, PositionBias):
        return "position_bias"
    return f"{name.removeprefix('base_model.model.')} ({type(module).__name__})"


@contextmanager
def _watched(
    model: nn.Module, shape: tuple[int, int], places: Places
) -> Iterator[list[tuple[nn.Module, _Call]]]:
    """Each call of each module, in the order in which they end: the innermost first."""
    calls: list[tuple[nn.Module, _Call]] = []

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = tuple(_fingerprints((args, kwargs), shape, places, whole=True))
        calls.append((module, (given, tuple(_fingerprints(output, shape, places, whole=False)))))

    # An adapted layer takes another way if its parts have hooks.
    parts = {
        id(part)
        for layer in model.modules()
        if isinstance(layer, BaseTunerLayer)
        for part in layer.modules()  # type: ignore[attr-defined]
        if part is not layer
    }
    handles = [
        module.register_forward_hook(note, with_kwargs=True)
        for module in model.modules()
        if id(module) not in parts
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _fingerprints(value: Any, shape: tuple[int, int], places: Places, whole: bool) -> Iterator[int]:
    """Of all tensors in a nested value, where they should agree.

    A tensor that is not laid out by rows and tokens is taken as a ``whole``, or left out.
    """
    if isinstance(value, Tensor):
        part = _part(value, shape, places)
        if part is not None or whole:
            yield _fingerprint(value if part is None else part)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _fingerprints(item, shape, places, whole)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _fingerprints(item, shape, places, whole)


def _part(tensor: Tensor, shape: tuple[int, int], places: Places) -> Tensor | None:
    rows, tokens = places
    batch, length = shape
    if tensor.dim() >= 2 and tensor.shape[1] == length and tensor.shape[0] in (1, batch):
        return tensor[rows if tensor.shape[0] == batch else slice(None), tokens]
    if tensor.dim() >= 2 and tensor.shape[0] == batch * length:
        return tensor.unflatten(0, (batch, length))[rows, tokens]
    return None


def _fingerprint(tensor: Tensor) -> int:
    """The same for the same bits: a sum over all elements, each with a weight of its own."""
    bits = tensor.detach().contiguous().reshape(-1)
    if bits.is_complex():
        bits = torch.view_as_real(bits).reshape(-1)
    if bits.is_floating_point():
        bits = bits.view(_INTEGERS[bits.element_size()])
    weights = torch.arange(1, bits.numel() + 1, device=bits.device) * 0x9E3779B1 + 1
    return hash((tuple(tensor.shape), int((bits.long() * (weights | 1)).sum())))
