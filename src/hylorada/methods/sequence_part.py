"""One process's part of sequences that are split over several, and what crosses between the parts.

Of R processes, the one with index r has tokens [r N/R, (r + 1) N/R) of each sequence of N. Every
process is given the whole row of token ids and positions and cuts its own part out of it, so what
follows from these alone (positions, documents, labels) needs no exchange. What does:

    halo      the last tokens of keys and values of the left neighbour, for the shifted segment that
              lies across the boundary (`with_halo`); their gradient goes back to it
    gather    keys and values of everybody, for full attention (`SequencePart.gathered`)
    carry     what the first document of a part has summed up in the parts before it, for running
              means (`SequencePart.carried`)

Each is one autograd function with its exact gradient. Activation checkpointing runs the first two
again, on all processes alike. The bytes that a process sends are counted.

Halo exchange is known from sliding windows and stencils; here it carries S2-Attn, of which each
boundary is crossed by one segment, and that in half of the layers (or half of the heads) only.

Legend: B sequences, N tokens of all of a sequence, T tokens of a part, R processes, K key-value
heads, D width of a head, C any number of values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

CROSSING = ("halo", "keys and values", "carry")
"""What crosses between the parts; bytes of its gradients are counted as "halo gradient"."""
# Named anew by torch 2.13, which warns of the former names.
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_running: ContextVar[SequencePart | None] = ContextVar("sequence_part", default=None)


@dataclass(frozen=True, eq=False)
class SequencePart:
    """The part of this process, of the rows of one micro-batch.

    Attributes:
        group: the processes that share the sequences; None: this one alone.
        index: of this process in the group, r.
        count: processes in it, R.
        length: tokens of a whole sequence, N; a multiple of R.
        documents_BN: which document each token of the whole rows is in, ascending; None: each row
            holds one.
        sent: bytes sent by this process, by what it was.
        taken: numbers of the attention layers that have worked on it.
    """

    group: Any
    index: int
    count: int
    length: int
    documents_BN: Tensor | None = None
    sent: Counter[str] = field(default_factory=Counter)
    taken: set[int] = field(default_factory=set)

    @property
    def tokens(self) -> int:
        """Of this part, T."""
        return self.length // self.count

    @property
    def start(self) -> int:
        """The place of its first token in the whole sequence."""
        return self.index * self.tokens

    def own(self, x_BN: Tensor) -> Tensor:
        """This part of whole rows, [B, T]."""
        return x_BN[:, self.start : self.start + self.tokens]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, in this thread of control, models run on this part."""
        token = _running.set(self)
        try:
            yield
        finally:
            _running.reset(token)

    def passed(self, message: Tensor, step: int, what: str) -> Tensor | None:
        """Send to the neighbour ``step`` further; what the one ``step`` before has sent, if any.

        Args:
            message: the same shape and dtype in every part.
            step: 1 or -1.
            what: the name under which the bytes are counted.
        """
        to, source = self.index + step, self.index - step
        operations, received = [], None
        if 0 <= to < self.count:
            message = message.contiguous()
            operations.append(dist.P2POp(dist.isend, message, group=self.group, group_peer=to))
            self.sent[what] += message.nbytes
        if 0 <= source < self.count:
            received = torch.empty_like(message, memory_format=torch.contiguous_format)
            operations.append(dist.P2POp(dist.irecv, received, group=self.group, group_peer=source))
        if operations:
            for work in dist.batch_isend_irecv(operations):
                work.wait()
        return received

    def gathered(self, x: Tensor, what: str) -> Tensor:
        """The tensor of every part, [R, *x.shape]; gradients come back summed over all parts."""
        return x[None] if self.count == 1 else _Gathered.apply(x, self, what)

    def carried(self, tail_BC: Tensor) -> Tensor:
        """What the first document of this part has summed up in the parts before it, [B, C].

        Args:
            tail_BC: the sum over the last document of this part, as far as it lies in it.
        """
        tail_RBC = self.gathered(tail_BC, "carry")
        before = torch.arange(self.count, device=tail_BC.device) < self.index
        joined_RB = before[:, None].expand(-1, len(tail_BC))
        if self.documents_BN is not None:
            last_BR = self.documents_BN[:, self.tokens - 1 :: self.tokens]
            first_B1 = self.documents_BN[:, self.start, None]
            joined_RB = joined_RB & (last_BR == first_B1).t()
        return (tail_RBC * joined_RB[..., None]).sum(0)


def running_part() -> SequencePart | None:
    """The part that the model runs on here and now; None: whole sequences."""
    return None if torch.compiler.is_compiling() else _running.get()


def documents_of(position_ids_BN: Tensor) -> Tensor | None:
    """Numbers of the documents packed into rows, [B, N]; None if each row holds one.

    As transformers tells them apart: a step of the positions other than +1 starts a new one.
    """
    starts_BN = position_ids_BN.diff(dim=1, prepend=position_ids_BN[:, :1] - 1) != 1
    return starts_BN.cumsum(1) if bool(starts_BN.any()) else None


def with_halo(
    key_BKTD: Tensor, value_BKTD: Tensor, halo: int, part: SequencePart
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys and values of the segment across the left boundary, and those of the tokens after it.

    Args:
        key_BKTD: keys of this part.
        value_BKTD: values.
        halo: tokens on either side of a boundary that share a segment.
        part: which part.

    Returns:
        Keys and values [B, K, 2 * halo, D] of the segment, whose first half is the left
        neighbour's (in the first part: its second half alone); and [B, K, T - halo, D] of the rest.
    """
    return _Halo.apply(key_BKTD, value_BKTD, halo, part)


class _Halo(torch.autograd.Function):
    """Both keys and values in one message, and their gradients in another one back.

    It is part of the graph in every process, also where nothing is received: what it sent comes
    back as a gradient there.
    """

    @staticmethod
    def forward(
        ctx: Any, key_BKTD: Tensor, value_BKTD: Tensor, halo: int, part: SequencePart
    ) -> tuple[Tensor, ...]:
        ctx.halo, ctx.part = halo, part
        both = (key_BKTD, value_BKTD)
        received = part.passed(_joined([x[:, :, -halo:] for x in both]), 1, "halo")
        first = [x[:, :, :halo] for x in both]
        if received is not None:
            pairs = zip(_parted(received, first), first, strict=True)
            first = [torch.cat(pair, 2) for pair in pairs]
        return *first, *(x[:, :, halo:] for x in both)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        halo, part = ctx.halo, ctx.part
        first, rest = gradients[:2], gradients[2:]
        message = _joined([g[:, :, :halo] for g in first])
        received = part.passed(message, -1, "halo gradient")
        own = [torch.cat([f[:, :, -halo:], r], 2) for f, r in zip(first, rest, strict=True)]
        if received is not None:
            lasts = [g[:, :, -halo:] for g in own]
            for last, more in zip(lasts, _parted(received, lasts), strict=True):
                last += more
        return *own, None, None


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, part: SequencePart, what: str) -> Tensor:
        ctx.part, ctx.what = part, what
        x = x.contiguous()
        everybody = x.new_empty(part.count, *x.shape)
        _all_gather(everybody.view(-1), x.view(-1), group=part.group)
        part.sent[what] += (part.count - 1) * x.nbytes
        return everybody

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        part = ctx.part
        gradient = gradient.contiguous()
        own = gradient.new_empty(gradient.shape[1:])
        _reduce_scatter(own.view(-1), gradient.view(-1), group=part.group)
        part.sent[f"{ctx.what} gradient"] += (part.count - 1) * own.nbytes
        return own, None, None


def _joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat([x.reshape(-1) for x in tensors])


def _parted(message: Tensor, like: list[Tensor]) -> list[Tensor]:
    parts = message.split([x.numel() for x in like])
    return [part.view(x.shape) for part, x in zip(parts, like, strict=True)]
