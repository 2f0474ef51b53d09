"""Rows of which is known that each holds one document, so that the device need not be asked.

Given no mask, transformers looks at the position ids of every forward pass for documents packed
into one row, and asks the device whether it has found any: the host waits until the work of the
pass before is done. Where nobody gave position ids, transformers has just made them itself, one
document a row. It has no way to be told, so its function is replaced by one that asks
`is_one_document_a_row`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import masking_utils

_known: ContextVar[bool] = ContextVar("rows_hold_one_document", default=False)
_NAME = "find_packed_sequence_indices"
_original: Any = getattr(masking_utils, _NAME, None)


@contextmanager
def one_document_a_row(known: bool = True) -> Iterator[None]:
    """Inside, in this thread of control, no model looks for documents packed into a row.

    Args:
        known: False changes nothing.
    """
    token = _known.set(known or _known.get())
    try:
        yield
    finally:
        _known.reset(token)


def is_one_document_a_row() -> bool:
    """Whether this is known here and now."""
    return not torch.compiler.is_compiling() and _known.get()


def _find(position_ids: torch.Tensor) -> torch.Tensor | None:
    """Which document of its row each token is in; None where each row holds one."""
    return None if is_one_document_a_row() else _original(position_ids)


if _original is not None:  # otherwise that version asks in another place, and the host waits
    setattr(masking_utils, _NAME, _find)
