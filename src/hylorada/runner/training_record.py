"""The part of a record that is about training, however far that came."""

from __future__ import annotations

from typing import Any

from hylorada.config import RunConfig
from hylorada.records.provenance import PeakMemory
from hylorada.runner.measure import Meter
from hylorada.settings.retrieval_task import steps_on_examples
from hylorada.training.counters import Counters
from hylorada.training.loop import Training


def training_fields(config: RunConfig, counters: Counters, meter: Meter) -> dict[str, Any]:
    """The fields of `training` in a record that every run has.

    Args:
        config: the run's settings.
        counters: of the training; all zero where there was none.
        meter: knows device and precision.
    """
    speed = counters.tokens / counters.seconds if counters.seconds else None
    memory = PeakMemory(meter.device)
    reserved = memory.reserved() if counters.step else None
    size, configured = counters.micro_batch_size, config.train.micro_batch_size
    return {
        "steps": counters.step,
        "skipped_steps": counters.skipped,
        "tokens": counters.tokens,
        "seconds": counters.seconds,
        "tokens_per_second": speed,
        "final_loss": counters.last_loss,
        "peak_memory_bytes": counters.peak_memory_bytes or None,
        "peak_memory_of": memory.counts,
        **({"peak_memory_reserved_bytes": reserved} if reserved else {}),
        **({"micro_batch_size": size} if counters.step and size != configured else {}),
        "precision": meter.precision,
        "device": meter.device.type,
    }


def ending_fields(config: RunConfig, training: Training) -> dict[str, Any]:
    """The fields of `training` in a record that only some settings lead to.

    Args:
        config: the run's settings.
        training: after its end, whatever ended it.
    """
    fields: dict[str, Any] = {}
    if config.train.mix:
        fields["retrieval_steps"] = steps_on_examples(training.counters.step, config.train.mix)
    if config.train.max_seconds or config.train.patience:
        fields["ended_by"] = training.ended_by
    return fields | training.best.fields()
