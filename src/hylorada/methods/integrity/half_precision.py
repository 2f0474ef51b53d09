"""Whether two sets of kernels round alike, where half precision throws single tokens off.

In a deep model rounding alone moves the state of a token far now and then, by more than any limit
that would still see a wrong kernel; which token is chance. The model's own kernels are asked beside
the same in float32, and what chance decides is left out of the comparison.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hylorada.architecture import anatomy

AS_MUCH = 2.0
"""Times what the model's own kernels round: two roundings, and chance."""
_ANY_STATE = 2.0  # norms: the distance of two states of like norm is no larger


def states_round_alike(off_T: Tensor, own_off_T: Tensor) -> bool:
    """Whether states are no further from exact ones than the model's own kernels bring them.

    The further three quarters of both are compared in order: which token rounding throws off is
    chance, how many and how far is not. Of the furthest it is: in SmolLM2 the furthest of 4,096
    tokens is 23 times as far off as the forty-first, so that often one of two like samples has a
    token more than twice as far off as any of the other. So some tokens, nine of 4,096, may have
    any distance that a state can have, and the order of the others may move by as many: simulated,
    fewer than one in a hundred like pairs is then called unlike.

    Args:
        off_T: distances [T] of each token's state from the exact one, by the norm of that.
        own_off_T: of those of the model's own kernels.
    """
    tokens = len(off_T)
    free, far = max(1, min(5 + tokens // 1000, tokens // 50)), tokens - tokens // 4
    off_T, own_off_T = off_T.sort(descending=True).values, own_off_T.sort(descending=True).values
    alike = bool((off_T[free:far] <= AS_MUCH * own_off_T[: far - free]).all())
    return alike and bool((off_T <= _ANY_STATE).all())


def gradients_round_alike(offs: Sequence[float], own_offs: Sequence[float]) -> bool:
    """Whether gradients of short texts are no further from exact ones than the model's own.

    One token that is thrown off makes most of the distance of a long text's gradient. Most short
    texts have none, so the median of several tells what the kernels do.

    Args:
        offs: distance of each text's gradient from the exact one, by the norm of that.
        own_offs: of those by the model's own kernels.
    """
    finite = all(off < float("inf") for off in offs)
    return finite and median(offs) <= AS_MUCH * median(own_offs)


def has_exact_weights(model: nn.Module) -> bool:
    """Whether the weights can be had in float32 or finer: neither in 4 bits nor in shares."""
    shared = any(isinstance(p, DTensor) for p in model.parameters())
    return not shared and not anatomy.quantised_products(anatomy.causal_lm(model))


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Weights that are stored in half precision are float32 for a while, and then those again.

    Args:
        model: of `has_exact_weights`; without gradients.
    """
    kept = [
        (tensor, tensor.data)
        for tensor in (*model.parameters(), *model.buffers())
        if tensor.is_floating_point() and tensor.dtype.itemsize == 2
    ]
    try:
        for tensor, stored in kept:
            tensor.data = stored.float()
        yield
    finally:
        for tensor, stored in kept:
            tensor.data = stored
