"""One switch for the kernels of this room, and the first thing to try when a number looks wrong.

Inside `left_out` no layer's kernel is exchanged (`frozen_layers`) and no frozen weight is cast
(`frozen_weights`). What is exchanged already stays so; see `frozen_layers.restore`. The chunked
loss is no kernel of a frozen layer and stays.

The switch belongs to the thread of control that turned it (a `ContextVar`), so that a model that
another thread makes fast at the same time is not touched. No kernel asks for it when it is called.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_left_out: ContextVar[bool] = ContextVar("kernels_left_out", default=False)


def are_left_out() -> bool:
    """Whether own kernels rest here and now."""
    return _left_out.get()


@contextmanager
def left_out(rest: bool = True) -> Iterator[None]:
    """Own kernels rest inside the block.

    Args:
        rest: False changes nothing, so that a block inside another one cannot wake them.
    """
    token = _left_out.set(rest or _left_out.get())
    try:
        yield
    finally:
        _left_out.reset(token)
