"""A small part of what a measurement asks, by which `dry_run=true` tells what all of it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Cost(Protocol):
    """What a forward pass costs, in any unit."""

    def __call__(self, tokens: int, scored: int | None = None) -> float:
        """Of one sequence.

        Args:
            tokens: that are read.
            scored: tokens whose logits are made; None: all.
        """


@dataclass(frozen=True)
class Portion:
    """See `evaluation.measurement.Measurement.portion`.

    Attributes:
        asked: as of `Measurement.prepare`, to be measured in its place.
        passes: tokens of each of its forward passes.
        share: of the work of the whole, above 0, at most 1.
    """

    asked: Any
    passes: Sequence[int]
    share: float

    @property
    def tokens(self) -> int:
        """Tokens that the whole runs through the model."""
        return round(sum(self.passes) / self.share)
