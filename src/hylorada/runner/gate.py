"""The integrity gate in a run: the short probe, then the model as it trains."""

from __future__ import annotations

from functools import partial
from typing import Any

from hylorada.architecture import anatomy
from hylorada.config import RunConfig
from hylorada.kernels.frozen_layers import own_kernels, restore, use_frozen_kernels
from hylorada.kernels.switch import are_left_out
from hylorada.methods.integrity import IntegrityReport, check_integrity
from hylorada.methods.integrity.as_trained import Conditions, check_in_place
from hylorada.process.signals import Stop
from hylorada.training.loop import checkpointing_as, gradient_checkpointing
from hylorada.training.loss import LossModel

KERNELS = "frozen layers through oneDNN or as one function with LoRA, chunked loss"


def prove(
    model: Any, tokenizer: Any, config: RunConfig, autocast: Any, stop: Stop
) -> IntegrityReport:
    """Check a model that a run is about to train, or to measure.

    A model that trains is checked twice: as it is, on a short text; and, where that passed, with
    its kernels exchanged, at the length and in the precision in which it trains.

    Args:
        model: as it was attached; left as it was found.
        tokenizer: of the base.
        config: of the run.
        autocast: what training computes in under autocast; None: without it.
        stop: a signal ends it between the two.

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
    )
    stop.check()  # the gate takes whatever is raised inside it for a failed check
    if not (report.ok and config.method.trains):
        return report
    kernels = "the model's own, chunked loss" if are_left_out() else KERNELS
    use_frozen_kernels(model)  # weights that training casts once are cast here, to the same bits
    try:
        loss_model = LossModel(model, config.train.loss_chunk)
        own = partial(own_kernels, model)
        conditions = Conditions(loss_model, own, kernels, autocast, packed)
        lm = anatomy.causal_lm(model)
        with gradient_checkpointing(lm, **checkpointing_as(config.train)):
            check_in_place(
                report, model, tokenizer, conditions, allow_leak=gate.allow_leak, seed=config.seed
            )
    finally:
        restore(model)
    stop.check()
    return report
