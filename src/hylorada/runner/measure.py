"""Measuring a model for the record: every measurement that is asked for, in turn.

Each says its progress, ends at a signal between two batches or prompts, and continues from there
when it is started again.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from hylorada.config import RunConfig
from hylorada.errors import DivergedError, HyloradaError, OutOfMemoryError
from hylorada.evaluation.attempt import Attempt
from hylorada.evaluation.measurement import Metrics
from hylorada.evaluation.resumable import Partial
from hylorada.kernels.switch import are_left_out
from hylorada.process.beside import available_cores
from hylorada.process.device import choose_autocast, choose_device
from hylorada.process.progress import Reporter
from hylorada.process.ranks import ALONE, Ranks
from hylorada.process.signals import Stop
from hylorada.records.outcome import is_out_of_memory
from hylorada.records.provenance import name_of
from hylorada.records.result import finite
from hylorada.runner.preparation import Part, Prepared

logger = logging.getLogger(__name__)

_CHUNK = 512  # tokens with logits at a time, where train.loss_chunk leaves it to the device
PRECISIONS = {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}  # as records say it


@dataclass
class Meter:
    """What every measurement of a run shares.

    Attributes:
        device: of the models.
        autocast: what to compute in under autocast; None: without it.
        chunk: tokens whose logits exist at one time.
        stop: a signal ends a measurement at the next batch or prompt.
        reporter: shows progress.
        clock: seconds; it says when to keep what was measured so far.
        weights: the precision of the frozen weights.
        ranks: the processes that share each measurement; the first one keeps what is not done.
    """

    device: torch.device
    autocast: torch.dtype | None
    chunk: int
    stop: Stop
    reporter: Reporter
    clock: Callable[[], float] = time.monotonic
    weights: torch.dtype = torch.float32
    ranks: Ranks = ALONE

    def weigh(self, weights: torch.dtype) -> None:
        """Note the precision of the weights; bfloat16 weights always run under bf16 autocast."""
        self.weights = weights
        if weights == torch.bfloat16:
            self.autocast = weights

    @property
    def precision(self) -> str:
        """As a record says it."""
        return PRECISIONS[self.autocast]

    @property
    def conditions(self) -> dict[str, Any]:
        """What every number depends on, whatever is measured: numbers of two are never mixed."""
        return {
            "precision": self.precision,
            "weights": name_of(self.weights),
            "device": self.device.type,
            "versions": [torch.__version__, transformers.__version__],
            **({"kernels": "the model's own"} if are_left_out() else {}),
        }

    def measure(
        self, model: nn.Module, part: Part, title: str, *, partial: Path | None = None
    ) -> Metrics:
        """The numbers of one measurement, as they stand in a record.

        Args:
            model: the model; its training flags are put back.
            part: the measurement, and what it asks.
            title: what is measured, for the progress bar.
            partial: where an interrupted measurement is kept, to be continued by the next call.

        Raises:
            Interrupted: a signal came; what was measured is in ``partial``.
            OutOfMemoryError: it does not fit.
            DivergedError: the model's numbers are not finite; its largest weights are named.
        """
        kept = self._partial(partial, {part.measurement.name: part.identity})
        attempt = Attempt(kept, self.reporter, title, self.autocast, self.chunk, self.ranks)
        with self.stop.deferred(), _explained(model, title, part.measurement.title):
            metrics = part.measurement.measure(model, part.asked, attempt)
        kept.remove()
        # A number beyond the range of a float is null here as it is in the record.
        return {name: finite(metric) for name, metric in metrics.items()}

    def measure_all(
        self, model: nn.Module, prepared: Prepared, title: str, *, partial: Path | None = None
    ) -> Metrics:
        """The numbers of every measurement that was prepared.

        Args:
            model: the model; its training flags are put back.
            prepared: what is measured.
            title: what is measured, for the progress bar.
            partial: where an interrupted measurement is kept, to be continued by the next call;
                finished parts lie beside it until all are.

        Raises:
            Interrupted: a signal came.
        """
        identities = {part.measurement.name: part.identity for part in prepared.parts}
        kept = self._partial(
            partial and partial.with_name(f"{partial.name}.parts"),
            {"settings": asdict(prepared.settings), "window": prepared.window, **identities},
        )
        finished: dict[str, Metrics] = kept.done or {}
        metrics: Metrics = {}
        for part in prepared.parts:
            name = part.measurement.name
            if name not in finished:
                path = partial and partial.with_name(f"{partial.name}-{name}")
                finished[name] = self.measure(model, part, title, partial=path)
                if len(prepared.parts) > 1:
                    kept.keep(finished)
            metrics |= finished[name]
        kept.remove()
        return metrics

    def _partial(self, path: Path | None, identity: dict[str, Any]) -> Partial:
        """What an interrupted measurement of the same thing left, under the same conditions."""
        path = path if self.ranks.is_first else None
        kept = Partial(path, {**self.conditions, **identity}, self.stop, self.clock)
        kept.done = self.ranks.decided(lambda: kept.done)
        return kept


@contextlib.contextmanager
def _explained(model: nn.Module, title: str, what: str) -> Iterator[None]:
    """What a measurement raises, in terms of the model and not of training."""
    try:
        yield
    except HyloradaError as error:
        if not isinstance(error, DivergedError):
            raise
        raise DivergedError(f"{error}; {_largest_weights(model)}") from error
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"out of memory measuring {title} ({what}); what was trained is saved. Try a smaller "
            "train.loss_chunk (tokens with logits at a time), train.precision=bf16 where the "
            "device has it, or a shorter length"
        ) from error


@torch.no_grad()
def _largest_weights(model: nn.Module) -> str:
    """Which parameter is not finite, or else has the largest number, in words."""
    largest = {
        name: float(parameter.abs().max())
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and parameter.numel()
    }
    bad = [name for name, value in largest.items() if not math.isfinite(value)]
    if bad:
        return f"{bad[0]} holds numbers that are not finite ({len(bad)} such tensors)"
    name = max(largest, key=largest.__getitem__)
    return f"the largest of the model's weights is {largest[name]:.3g}, in {name}"


def make_meter(config: RunConfig, stop: Stop, reporter: Reporter, ranks: Ranks = ALONE) -> Meter:
    """A meter on the device and in the precision of the settings; also sets their threads.

    Where they are left open, the processes of a run on one machine share its cores.

    Raises:
        ConfigError: the hardware has no such device or precision.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    elif ranks.world > 1:
        torch.set_num_threads(max(1, available_cores() // ranks.place.local_world))
    device = choose_device(config.device)
    autocast = choose_autocast(config.train.precision, device)
    if device.type == "cuda" and config.train.precision == "auto" and autocast is None:
        logger.info(
            "this GPU has no bf16 arithmetic, so it computes in float32; train.precision=fp16 is "
            "faster and takes less memory"
        )
    chunk = config.train.loss_chunk or _CHUNK
    return Meter(device, autocast, chunk, stop, reporter, ranks=ranks)
