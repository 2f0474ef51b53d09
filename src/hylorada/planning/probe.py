"""A few seconds of a run, done for real and thrown away: what its parts take on this machine.

Text is read, the base loaded, the adapter attached; then one pass of each measurement, and two to
six micro-batches forward, back and through the optimiser, at a learning rate of 0, in a folder that
is removed. Of sequences that processes share, they are as long as one's part. The gate is not
asked: its time follows from that of passes (`_Probe.gate`).
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console

from hylorada.architecture import anatomy
from hylorada.config import RunConfig
from hylorada.evaluation.measurements import perplexity
from hylorada.evaluation.portion import Cost
from hylorada.kernels.compiled import compiled_layers
from hylorada.kernels.frozen_weights import make_fast
from hylorada.kernels.switch import left_out
from hylorada.loading.backbone import Backbone, Blueprint, load_backbone
from hylorada.loading.base_below_adapter import BaseBelow
from hylorada.methods.integrity.adapters import count_by_component
from hylorada.methods.integrity.as_trained import GRADIENT_LENGTH
from hylorada.methods.integrity.half_precision import has_exact_weights, in_float32
from hylorada.methods.integrity.probe import DEFAULT_LENGTH
from hylorada.planning.estimate import Rates
from hylorada.planning.shared import FirstParts
from hylorada.planning.text import Text
from hylorada.process.progress import Reporter
from hylorada.process.seeding import deterministic, repeatable, seed_everything
from hylorada.process.signals import Stop
from hylorada.runner.attachment import attach
from hylorada.runner.base_model import load_again, questions_to_base
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
# rows twice and one more; twice forward and back at GRADIENT_LENGTH, three passes each. In half
# precision two more of the run's own length are in float32, which a shallow model is spared.
_SHORT_PASSES, _WINDOWS, _GRADIENT_PASSES, _EXACT_WINDOWS = 55, 5, 6, 2
# Compiled for the gate alone, of each layer: of both rows, of few tokens. Those with gradients are
# compiled by the probe, and torch keeps what it has compiled.
_GRAPHS = 2


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
    rates = _timed(config, opened, text, cost)
    _give_back()
    rates.known_from = f"a probe of {time.perf_counter() - started:.0f} s"
    return rates


def _give_back() -> None:
    """Memory of a probe to the system: the next one needs it, or it would count as that one's."""
    gc.collect()  # models refer to themselves
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # glibc has it, others need not
        ctypes.CDLL(None).malloc_trim(0)


def _timed(config: RunConfig, opened: Blueprint, text: Text, cost: Cost) -> Rates:
    with contextlib.ExitStack() as stack:
        stack.enter_context(deterministic())
        stack.enter_context(left_out(not config.train.frozen_kernels))
        threads = torch.get_num_threads()
        stack.callback(torch.set_num_threads, threads)
        seed_everything(config.seed)
        meter = make_meter(config, Stop(), Reporter(Console(quiet=True)))
        stack.enter_context(repeatable(meter.device, config.train.deterministic))
        found = _Probe(config, meter, text, cost)
        found.rates.start = text.seconds + _seconds(partial(found.load, opened))
        found.own_passes()
        found.base()
        if text.blocks is not None:
            parts = config.sequence_ranks
            found.train(FirstParts(text.blocks, parts) if parts > 1 else text.blocks)
        found.evaluate()
        found.gate()
        return found.rates


class _Probe:
    """The steps of a probe, in the order of a run."""

    def __init__(self, config: RunConfig, meter: Meter, text: Text, cost: Cost) -> None:
        self.config, self.meter, self.text, self.cost = config, meter, text, cost
        self.rates = Rates("")
        self.per_cost = self.per_exact = 0.0  # seconds of a pass for each unit of its cost
        self.short = self.compiling = 0.0  # seconds of a pass of the short text, of one graph
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

    def own_passes(self) -> None:
        """The gate's passes by the model's own kernels, before others are in their place."""
        config = self.config
        if not config.integrity.enabled:
            return
        short = config.integrity.probe_length or min(DEFAULT_LENGTH, config.length.max_length)
        self.short = _repeated(lambda: self._pass(self.model, short))
        precision = self.meter.autocast or self.backbone.dtype
        exact = has_exact_weights(self.model) and not config.shard_base
        if config.method.trains and precision.itemsize == 2 and exact:
            tokens = min(self._part, GRADIENT_LENGTH)
            with in_float32(self.model):
                took = _repeated(lambda: self._pass(anatomy.backbone(self.model), tokens))
            self.per_exact = took / self.cost(tokens, 1)

    def base(self) -> None:
        """What is measured of the base, unless it was."""
        config = self.config
        below = BaseBelow(
            self.model, self.backbone, config.length.max_length, config.method.position_range,
            lambda: load_again(config, self.meter),
        )  # fmt: skip
        questions = questions_to_base(config, self.meter, self.backbone, self.text.prepared)
        asked = [q for q in questions if not q.is_answered(config.output_root)]
        self.rates.base_measured = not asked
        for question in asked:
            with below.extended() if question.extended else below.as_loaded() as model:
                self.rates.base += self._measured(model, question.part)
        below.release()

    def train(self, blocks: BlockSource) -> None:
        """A few micro-batches."""
        config = self.config
        make_fast(self.model, self.meter.autocast)
        compiles = config.train.compile == "layers"
        once = dataclasses.replace(
            config.train, max_steps=2 if compiles else MICRO_BATCHES, epochs=0.0, max_tokens=0,
            max_seconds=0.0 if compiles else _SECONDS, gradient_accumulation_steps=1, eval_every=0,
            save_every=0, log_every=1, keep_best=False, patience=0, lr=0.0,
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
                compiled_layers(self.model, compiles),
                as_configured(self.model, once, self.meter.autocast),
                scheduled_segments(self.model, s2, length, config.seed) as training.prepare,
            ):
                training.run()
        # The first one touches memory that the others find, and compiles.
        micro_batch = median(took[1:] or took)
        self.compiling = max(0.0, took[0] - micro_batch) if compiles else 0.0
        self.rates.step = micro_batch * config.train.gradient_accumulation_steps
        self.rates.memory = training.counters.peak_memory_bytes

    def evaluate(self) -> None:
        """A pass of each measurement, and of the validation between the steps."""
        for part in self.text.prepared.parts if self.config.method.trains else []:
            if seconds := self._measured(self.model, part):
                self.rates.evaluation[part.measurement.title] = seconds
        if self.text.validation is not None:
            part = Part(perplexity.MEASUREMENT, self.text.validation, {})
            self.rates.validation = self._measured(self.model, part)

    def gate(self) -> None:
        """The gate's passes, by the time that a pass takes."""
        config, part = self.config, self._part
        if not config.integrity.enabled:
            return
        self.rates.gate = _SHORT_PASSES * self.short
        if not config.method.trains:
            return
        if not self.per_cost:  # nothing was measured that says what a pass takes
            device, dtype = self.meter.device.type, self.meter.autocast
            with torch.autocast(device, dtype, enabled=dtype is not None):
                took = _repeated(lambda: self._pass(anatomy.backbone(self.model), part))
            self.per_cost = took / self.cost(part, 1)
        passes = _WINDOWS * self.cost(part) + _GRADIENT_PASSES * self.cost(
            min(part, GRADIENT_LENGTH)
        )
        self.rates.gate += passes * self.per_cost + _GRAPHS * self.compiling
        self.rates.gate += _EXACT_WINDOWS * self.cost(part) * self.per_exact

    @property
    def _part(self) -> int:
        """Tokens of a sequence that one process has."""
        return self.config.length.max_length // self.config.sequence_ranks

    @torch.no_grad()
    def _pass(self, model: Any, tokens: int) -> None:
        words = anatomy.causal_lm(self.model).get_input_embeddings().weight.shape[0]
        ids_1T = torch.randint(0, words, (1, tokens), device=self.meter.device)
        model(input_ids=ids_1T, use_cache=False)

    def _measured(self, model: Any, part: Part) -> float:
        """Seconds of all that a measurement asks; 0 where no part of it stands for the whole."""
        portion = part.measurement.portion(part.asked, self.cost)
        if portion is None:
            if part.measurement.title not in self.rates.left_out:
                self.rates.left_out.append(part.measurement.title)
            return 0.0
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
