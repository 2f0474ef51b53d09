"""A few seconds of a run, done for real and thrown away: what its parts take on this machine.

Text is read, the base loaded, the adapter attached; then one pass of each measurement, and two to
six micro-batches forward, back and through the optimiser, in a folder that is removed. Of sequences
that processes share, they are as long as one's part. The gate is not asked: its time follows from
that of a pass (`_gate`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console

from hylorada.config import RunConfig
from hylorada.evaluation.measurements import perplexity
from hylorada.evaluation.portion import Cost
from hylorada.kernels.frozen_weights import make_fast
from hylorada.kernels.switch import left_out
from hylorada.loading.backbone import Backbone, Blueprint, load_backbone
from hylorada.loading.base_below_adapter import BaseBelow
from hylorada.methods.integrity.adapters import count_by_component
from hylorada.methods.integrity.as_trained import GRADIENT_LENGTH
from hylorada.methods.integrity.probe import DEFAULT_LENGTH
from hylorada.planning.estimate import Rates
from hylorada.planning.shared import FirstParts
from hylorada.planning.text import Text
from hylorada.process.progress import Reporter
from hylorada.process.seeding import deterministic, repeatable, seed_everything
from hylorada.process.signals import Stop
from hylorada.runner.attachment import attach
from hylorada.runner.base_model import questions_to_base
from hylorada.runner.measure import Meter, make_meter
from hylorada.runner.preparation import Part
from hylorada.training.loop import BlockSource, Training
from hylorada.training.loss import LossModel
from hylorada.training.recomputation import as_configured
from hylorada.training.segment_schedule import scheduled_segments

MICRO_BATCHES = 6  # at most; of slow ones fewer, but one in any case
_SECONDS = 4.0  # after which no further micro-batch is begun
_WORTH_REPEATING = 2.0  # seconds: below, the first pass is for warming up
# Of the gate (counted on LoRA and HyLoRADA): passes of the short text; of the run's own length, two
# rows twice and one more; twice forward and back at GRADIENT_LENGTH, three passes each.
_SHORT_PASSES, _WINDOWS, _GRADIENT_PASSES = 55, 5, 6


def probe(config: RunConfig, opened: Blueprint, text: Text, cost: Cost) -> Rates:
    """What the parts of a run take on this machine.

    Args:
        config: the run's settings, checked.
        opened: its base.
        text: what it reads.
        cost: of a forward pass of the base.

    Raises:
        HyloradaError: what would end the run itself.
    """
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        stack.enter_context(deterministic())
        stack.enter_context(left_out(not config.train.frozen_kernels))
        threads = torch.get_num_threads()
        stack.callback(torch.set_num_threads, threads)
        seed_everything(config.seed)
        meter = make_meter(config, Stop(), Reporter(Console(quiet=True)))
        stack.enter_context(repeatable(meter.device, config.train.deterministic))
        found = _Probe(config, meter, text, cost)
        rates = found.rates
        rates.start = text.seconds + _seconds(lambda: found.load(opened))
        found.base()
        if text.blocks is not None:
            parts = config.sequence_ranks
            found.train(FirstParts(text.blocks, parts) if parts > 1 else text.blocks)
        found.evaluate()
        found.gate()
    gc.collect()
    rates.known_from = f"a probe of {time.perf_counter() - started:.0f} s"
    return rates


class _Probe:
    """The steps of a probe, in the order of a run."""

    def __init__(self, config: RunConfig, meter: Meter, text: Text, cost: Cost) -> None:
        self.config, self.meter, self.text, self.cost = config, meter, text, cost
        self.rates = Rates("")
        self.per_cost = 0.0  # seconds of a pass for each unit of its cost
        self.backbone: Backbone
        self.model: Any

    def load(self, opened: Blueprint) -> None:
        """The base, and the adapter on it."""
        config, device = self.config, self.meter.device
        self.backbone = load_backbone(config.model, device, config.train.precision, opened)
        self.meter.weigh(self.backbone.dtype)
        self.rates.itemsize = self.backbone.dtype.itemsize
        self.model, _, _ = attach(config, self.backbone.model)
        self.rates.trained = count_by_component(self.model) if config.method.trains else {}

    def base(self) -> None:
        """What is measured of the base, unless it was."""
        config = self.config
        below = BaseBelow(
            self.model, self.backbone, config.length.max_length, config.method.position_range,
            lambda: load_backbone(config.model, self.meter.device, config.train.precision),
        )  # fmt: skip
        questions = questions_to_base(config, self.meter, self.backbone, self.text.prepared)
        self.rates.base_measured = all(q.is_answered(config.output_root) for q in questions)
        for question in questions:
            with below.extended() if question.extended else below.as_loaded() as model:
                self.rates.base += self._measured(model, question.part) or 0.0
        below.release()

    def train(self, blocks: BlockSource) -> None:
        """A few micro-batches."""
        config = self.config
        make_fast(self.model, self.meter.autocast)
        once = dataclasses.replace(
            config.train, max_steps=MICRO_BATCHES, epochs=0.0, max_tokens=0, max_seconds=_SECONDS,
            gradient_accumulation_steps=1, eval_every=0, save_every=0, log_every=1,
            keep_best=False, patience=0,
        )  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="hylorada-plan-") as folder:
            training = Training(
                model=self.model,
                loss_model=LossModel(self.model, once.loss_chunk),
                blocks=blocks,
                settings=once,
                seed=config.seed,
                device=self.meter.device,
                autocast=self.meter.autocast,
                run_dir=Path(folder),
                stop=self.meter.stop,
                reporter=self.meter.reporter,
            )
            took: list[float] = []
            training.on_metrics = lambda _, timing: took.append((timing or {})["seconds"])
            s2, length = config.method.s2_attn, config.length.max_length
            with (
                as_configured(self.model, once, self.meter.autocast),
                scheduled_segments(self.model, s2, length, config.seed) as training.prepare,
            ):
                training.run()
        # The first one touches memory that the others find.
        micro_batch = median(took[1:] or took)
        self.rates.step = micro_batch * config.train.gradient_accumulation_steps
        self.rates.memory = training.counters.peak_memory_bytes

    def evaluate(self) -> None:
        """A pass of each measurement, and of the validation between the steps."""
        for part in self.text.prepared.parts if self.config.method.trains else []:
            seconds = self._measured(self.model, part)
            if seconds is None:
                self.rates.left_out.append(part.measurement.title)
            else:
                self.rates.evaluation[part.measurement.title] = seconds
        if self.text.validation is not None:
            part = Part(perplexity.MEASUREMENT, self.text.validation, {})
            self.rates.validation = self._measured(self.model, part) or 0.0

    def gate(self) -> None:
        """The gate's passes, by the time that a pass takes."""
        if not self.config.integrity.enabled:
            return
        length = self.config.length.max_length
        short = min(self.config.integrity.probe_length or DEFAULT_LENGTH, length)
        device, autocast = self.meter.device, self.meter.autocast
        ids = torch.randint(0, 100, (1, short), device=device)
        with torch.no_grad(), torch.autocast(device.type, autocast, enabled=autocast is not None):
            once = _repeated(lambda: self.model(input_ids=ids, use_cache=False))
        passes = 0.0
        if self.config.method.trains:
            gradient = min(length, GRADIENT_LENGTH)
            passes = _WINDOWS * self.cost(length) + _GRADIENT_PASSES * self.cost(gradient)
        self.rates.gate = _SHORT_PASSES * once + passes * self.per_cost

    def _measured(self, model: Any, part: Part) -> float | None:
        """Seconds of all that a measurement asks; None where no part of it stands for the whole."""
        portion = part.measurement.portion(part.asked, self.cost)
        if portion is None:
            return None
        small = Part(part.measurement, portion.asked, {})
        took = _repeated(lambda: self.meter.measure(model, small, ""))
        if part.measurement is perplexity.MEASUREMENT or not self.per_cost:
            self.per_cost = took / sum(self.cost(tokens) for tokens in portion.passes)
        return took / portion.share


def _repeated(call: Callable[[], Any]) -> float:
    """Seconds of the call; of a short one the second time, warmed up."""
    took = _seconds(call)
    return _seconds(call) if took < _WORTH_REPEATING else took


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - started
