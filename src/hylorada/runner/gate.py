"""The integrity gate in a run: the short probe, then the model as it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from hylorada.config import RunConfig
from hylorada.kernels.compiled import CompiledLayers, compiled_layers
from hylorada.kernels.frozen_layers import own_kernels, restore, use_frozen_kernels
from hylorada.kernels.switch import are_left_out
from hylorada.methods.integrity import Check, IntegrityReport, check_integrity
from hylorada.methods.integrity.as_trained import Conditions, check_in_place
from hylorada.process.ranks import ALONE, Ranks
from hylorada.process.signals import Stop
from hylorada.runner.sharding import prove_parts
from hylorada.training.loss import LossModel
from hylorada.training.recomputation import as_configured

KERNELS = "frozen layers through oneDNN or as one function with LoRA, chunked loss"


def prove(
    model: Any,
    tokenizer: Any,
    config: RunConfig,
    autocast: Any,
    stop: Stop,
    ranks: Ranks = ALONE,
    saved: Check | None = None,
) -> IntegrityReport:
    """Check a model that a run is about to train, or to measure.

    A model that trains is checked twice: as it is, on a short text; and, where that passed, with
    its kernels exchanged, at the length and in the precision in which it trains.

    Args:
        model: as it was attached; left as it was found.
        tokenizer: of the base.
        config: of the run.
        autocast: what training computes in under autocast; None: without it.
        stop: a signal ends it between the two checks.
        ranks: the processes of the run, which all do the same; those that share each sequence make
            one check more, and use the length of a part instead of the run's.
        saved: the result of `check_saving`, where the base has been shared out since.

    Raises:
        Interrupted: a signal came.
    """
    gate, length = config.integrity, config.length.max_length
    packed = config.dataset.packing == "reset" and config.train.task != "retrieval"
    report = check_integrity(
        model,
        tokenizer,
        length,
        allow_leak=gate.allow_leak,
        packed=config.dataset.packing == "reset",
        probe_length=gate.probe_length,
        seed=config.seed,
        autocast=autocast,
        saved=saved,
    )
    stop.check()  # only here: whatever is raised inside the gate counts as a failed check
    if not (report.ok and config.method.trains):
        return report
    kernels = "the model's own, chunked loss" if are_left_out() else KERNELS
    use_frozen_kernels(model)  # weights that training casts once are cast here, to the same bits
    try:
        loss_model = LossModel(model, config.train.loss_chunk)
        compiles = config.train.compile == "layers"
        kernels += ", layers compiled" if compiles else ""
        with (
            compiled_layers(model, compiles) as compiled,
            as_configured(model, config.train, autocast),
        ):
            own = partial(_as_written, model, compiled)
            conditions = Conditions(loss_model, own, kernels, autocast, packed)
            check_in_place(
                report, model, tokenizer, conditions, length=length // config.sequence_ranks,
                allow_leak=gate.allow_leak, seed=config.seed,
            )  # fmt: skip
            prove_parts(report, loss_model, tokenizer, config, autocast, ranks, packed)
    finally:
        restore(model)
    stop.check()
    return report


@contextmanager
def _as_written(model: Any, compiled: CompiledLayers) -> Iterator[None]:
    """Inside the block, run the model's own kernels, and its layers without torch.compile."""
    with own_kernels(model), compiled.resting():
        yield
