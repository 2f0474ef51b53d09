"""One measurement of one model under way: its progress, and where an earlier attempt ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hylorada.evaluation.resumable import Partial
from hylorada.process.progress import Reporter

if TYPE_CHECKING:  # a measurement speaks of itself without torch
    from hylorada.process.ranks import Ranks


class Attempt:
    """What a measurement is given beside the model and its questions.

    Attributes:
        done: what an earlier, interrupted attempt at the same had found, as it was handed to
            `boundary`; None if there was none.
        autocast_dtype: the type to run under autocast with; None: as the weights are.
        chunk: tokens whose logits exist at one time.
        ranks: the processes that share the work (`Ranks.in_order`); each has all results. A
            measurement that does not ask them does all of its work on each process.
    """

    def __init__(
        self,
        kept: Partial,
        reporter: Reporter,
        title: str,
        autocast_dtype: Any,
        chunk: int,
        ranks: Ranks,
    ) -> None:
        """See `runner.measure.Meter`, which makes it."""
        self._kept, self._reporter, self._title = kept, reporter, title
        self.done: Any = kept.done
        self.autocast_dtype, self.chunk, self.ranks = autocast_dtype, chunk, ranks

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """Show a progress bar.

        Args:
            what: is measured, in a word or two.
            total: steps that it will take.
            done: those that an earlier attempt took.
        """
        self._reporter.begin(f"{self._title}, {what}", total, done)

    def boundary(self, done: int, said: str, state: Callable[[], Any]) -> None:
        """Call between two batches, prompts or documents; here a signal ends the measurement.

        Args:
            done: steps taken so far.
            said: beside the bar.
            state: makes what has been found so far, as plain values: `done` of the next attempt.

        Raises:
            Interrupted: a signal came; the state is kept.
        """
        self._reporter.update(done, said)
        self._kept.boundary(state)
