"""The training loop, by hand.

One step: sum the loss of its micro-batches divided by the step's scored tokens, look whether loss
and gradients are finite, clip, move. Everything a step does follows from (weights, moments,
generators, step number): a run that continues from a checkpoint does the same as one never stopped.

A step is launched and then settled (`launched`). The device itself decides whether the weights
move; on a GPU the host reads what came of a step while the next one runs, so that neither waits for
the other. Whatever looks at a step from outside (a checkpoint, an evaluation, the end) settles it
first.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hylorada.architecture.labels import IGNORE
from hylorada.config import TrainConfig
from hylorada.errors import DivergedError, Interrupted
from hylorada.process.fault_points import fault_point
from hylorada.process.progress import Reporter
from hylorada.process.redaction import redacted
from hylorada.process.seeding import random_state, restore_random_state
from hylorada.process.signals import Stop
from hylorada.records.manifest import beginning_sha256
from hylorada.records.provenance import PeakMemory
from hylorada.records.result import JsonLines
from hylorada.training.checkpoint import Checkpoint, Named, restore, save_checkpoint
from hylorada.training.group_rates import rates_by_name
from hylorada.training.launched import Launched, Outcome, launch_reading
from hylorada.training.loss_scale import LossScale, searching
from hylorada.training.optim import (
    learning_rate,
    make_optimizer,
    set_learning_rate,
    step_if_finite,
)
from hylorada.training.plan import make_plan

logger = logging.getLogger(__name__)


class BlockSource(Protocol):
    """Training sequences of one length; `data.blocks.Blocks` is one."""

    length: int

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> dict[str, Tensor]: ...


@dataclass
class Counters:
    """What a run has done; part of every checkpoint."""

    step: int = 0
    tokens: int = 0  # scored, in steps that moved the weights
    seconds: float = 0.0  # in training steps, over all attempts
    skipped: int = 0  # steps with a non-finite loss or gradient
    skipped_in_row: int = 0
    last_loss: float | None = None  # nats per token
    peak_memory_bytes: int = 0
    evaluation_due: bool = False


@dataclass
class Training:
    """All that a run's training needs; `run` is the loop.

    Attributes:
        model: the adapted model; what requires a gradient trains.
        loss_model: (input_ids, labels, position_ids) -> (summed NLL, scored tokens).
        blocks: training sequences.
        settings: of the optimiser and its budget.
        seed: of the data order.
        device: of the model.
        autocast: what to compute in under autocast; None: without it. In fp16 the loss is scaled.
        run_dir: for `checkpoints/`, `metrics.jsonl`, `timing.jsonl`.
        stop: set by signals.
        reporter: shows progress.
        identity: of the run, kept in each checkpoint.
        on_metrics: mirrors each line of metrics.jsonl with that of timing.jsonl (a tracker).
        evaluate: called with a step when ``eval_every`` says so; its values become a line.
        clock: in seconds; what a step takes is read from it.
    """

    model: nn.Module
    loss_model: Callable[..., tuple[Tensor, Tensor]]
    blocks: BlockSource
    settings: TrainConfig
    seed: int
    device: torch.device
    autocast: torch.dtype | None
    run_dir: Path
    stop: Stop
    reporter: Reporter
    identity: dict[str, Any] = field(default_factory=dict)
    on_metrics: Callable[[dict[str, Any], dict[str, Any] | None], None] = lambda line, timing: None
    evaluate: Callable[[int], dict[str, Any]] | None = None
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        self.trainables: Named = trainable(self.model)
        self.optimizer = make_optimizer(
            self.trainables, self.settings, rates_by_name(self.model, self.settings.lr_scale)
        )
        self.plan = make_plan(len(self.blocks), self.blocks.length, self.settings)
        self.counters = Counters()
        self.metrics = JsonLines(self.run_dir / "metrics.jsonl")
        self.timing = JsonLines(self.run_dir / "timing.jsonl")
        self.memory = PeakMemory(self.device)
        self.scale = LossScale(self.device) if self.autocast == torch.float16 else None
        self.late = self.device.type != "cpu"  # a CPU's numbers are there at once
        self._launched: Launched | None = None
        self._settled = 0.0  # when the numbers of a step were last read

    def run(self, checkpoint: Checkpoint | None = None) -> Counters:
        """Train to the end of the plan or of `max_seconds`, from a checkpoint if there is one.

        Raises:
            DivergedError: too many non-finite steps in a row; nothing is saved.
            Interrupted: a signal came; a checkpoint is saved.
            DiskError: see `save_checkpoint`.
        """
        counters, settings = self.counters, self.settings
        if checkpoint is not None:
            self._resume(checkpoint)
        self.model.train()
        self.memory.start()
        self._report_begin()
        with self.stop.deferred():
            while True:
                if counters.evaluation_due:
                    self._evaluate()
                if counters.step >= self.plan.steps:
                    return counters
                if self.time_is_over:
                    self._settle()
                    self._save()  # where only reading the last step told; otherwise it is there
                    logger.info(
                        "train.max_seconds is over after %d of %d steps (%.1f s)",
                        counters.step, self.plan.steps, counters.seconds,
                    )  # fmt: skip
                    return counters
                counters.step += 1
                self._step(counters.step)
                last = counters.step == self.plan.steps or self.time_is_over
                every = settings.eval_every
                counters.evaluation_due = bool(every) and counters.step % every == 0 and not last
                every = settings.save_every
                if last or self.stop.requested or (every and counters.step % every == 0):
                    self._settle()
                    self._save()
                fault_point("after_step", counters.step)
                self.stop.check()

    @property
    def ended_by(self) -> str | None:
        """Which budget came to its end: "steps", those of the plan, or "seconds"; None: neither."""
        if self.counters.step >= self.plan.steps:
            return "steps"
        return "seconds" if self.time_is_over else None

    @property
    def time_is_over(self) -> bool:
        """Whether the steps whose numbers were read took `max_seconds`, over all attempts."""
        limit = self.settings.max_seconds
        return bool(limit) and self.counters.seconds >= limit

    def _step(self, step: int) -> None:
        """One optimizer step; on a GPU the numbers of the step before are read while it runs."""
        launched = self._launch(step)
        self._settle()
        self._launched = launched
        if not self.late:
            self._settle()

    def _launch(self, step: int) -> Launched:
        """Tell the device all that the step does. Nothing that it computes is read here."""
        settings = self.settings
        started = self.clock()
        micro_batches = list(self._micro_batches(self.plan.of_step(step, self.seed)))
        tokens = sum(int((batch["labels"][:, 1:] != IGNORE).sum()) for batch in micro_batches)
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch in micro_batches:
            with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
                sum_nll, _ = self.loss_model(**self._moved(batch))
            # Divided by the tokens of the whole step: every token weighs the same, whatever its
            # micro-batch.
            mean = sum_nll / tokens
            (mean if self.scale is None else self.scale.applied(mean)).backward()
            loss += sum_nll.detach()
        fault_point("mid_step", step)

        loss /= tokens
        named = [(name, p.grad) for name, p in self.trainables if p.grad is not None]
        gradients = [gradient for _, gradient in named]
        if self.scale is not None:
            self.scale.take_off(gradients)
        norm = torch.nn.utils.get_total_norm(gradients)
        factor = None if self.scale is None else self.scale.factor
        launched = launch_reading(step, tokens, started, loss, norm, named, factor)
        launched.rate = learning_rate(step, self.plan.steps, settings)
        if settings.max_grad_norm:
            parameters = [p for _, p in self.trainables]
            torch.nn.utils.clip_grads_with_norm_(parameters, settings.max_grad_norm, norm)
        set_learning_rate(self.optimizer, launched.rate)
        step_if_finite(self.optimizer, loss, norm)
        if self.scale is not None:
            self.scale.update(loss, norm)
        self.optimizer.zero_grad(set_to_none=True)
        return launched

    def _settle(self) -> None:
        """Read what came of the step that was launched last, if that is not done, and count it.

        Raises:
            DivergedError: it is the last of too many that moved no weights.
        """
        if self._launched is None:
            return
        launched, self._launched = self._launched, None
        settings, counters, step = self.settings, self.counters, launched.step
        read = launched.read()
        if read.is_finite:
            counters.tokens += launched.tokens
            counters.skipped_in_row, counters.last_loss = 0, read.loss
            line: dict[str, Any] = {
                "step": step,
                "train/loss": read.loss,
                "train/lr": launched.rate,
                "train/grad_norm": read.norm,
                "train/tokens": counters.tokens,
            }
        else:
            line = {"step": step, "train/skipped": self._skip(step, read)}
        now = self.clock()
        seconds = now - max(launched.started, self._settled)
        self._settled = now
        counters.seconds += seconds
        last = step == self.plan.steps or self.time_is_over
        if step % settings.log_every == 0 or last or counters.skipped_in_row:
            counters.peak_memory_bytes = max(counters.peak_memory_bytes, self.memory.peak())
            timing = {
                "step": step,
                "seconds": seconds,
                "tokens": launched.tokens,
                "peak_memory_bytes": counters.peak_memory_bytes,
            }
            self.timing.append(timing)
            self._log(line, timing)
        detail = f"loss {read.loss:.4f}  {launched.tokens / seconds:,.0f} tokens/s"
        self.reporter.update(step, detail)
        if counters.skipped_in_row >= settings.max_nonfinite_steps:
            counters.step = step  # one more may have been launched, which is nothing's beginning
            raise DivergedError(
                f"training: {counters.skipped_in_row} steps in a row with a non-finite loss or "
                f"gradient, the last at step {step} ({line['train/skipped']}); lower train.lr "
                f"(now {settings.lr:g}) or look at the data"
            )

    def _micro_batches(self, indices: list[int]) -> Iterator[dict[str, Tensor]]:
        size = self.settings.micro_batch_size
        for start in range(0, len(indices), size):
            rows = [self.blocks[i] for i in indices[start : start + size]]
            yield {key: torch.stack([row[key] for row in rows]) for key in rows[0]}

    def _moved(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """On the device, but for the labels: the loss reads them here, and waits for nothing."""
        if self.device.type == "cuda":  # from pinned memory a copy does not wait for its turn
            batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
        return {
            name: tensor if name == "labels" else tensor.to(self.device, non_blocking=True)
            for name, tensor in batch.items()
        }

    def _skip(self, step: int, read: Outcome) -> str:
        """Count a step whose numbers did not reach the weights; say where they come from."""
        self.counters.skipped += 1
        searched = "" if read.loss_scale is None else searching(read.loss, read.loss_scale)
        if searched:
            logger.info("step %d: %s", step, searched)
            return searched
        self.counters.skipped_in_row += 1
        logger.warning("step %d skipped: %s", step, read.why)
        return read.why

    def _evaluate(self) -> None:
        """Measure between two steps; a signal during it saves a state that measures again."""
        assert self.evaluate is not None
        self._settle()
        try:
            line = {"step": self.counters.step, **self.evaluate(self.counters.step)}
        except Interrupted:
            self._save()
            raise
        self._log(line)
        self.counters.evaluation_due = False
        self._report_begin()

    def _log(self, line: dict[str, Any], timing: dict[str, Any] | None = None) -> None:
        self.metrics.append(line)
        self.on_metrics(line, timing)

    def _report_begin(self) -> None:
        self.reporter.begin("train", self.plan.steps, self.counters.step)

    def _save(self) -> None:
        if not all(bool(torch.isfinite(p).all()) for _, p in self.trainables):
            logger.warning("step %d: weights are not finite, no checkpoint", self.counters.step)
            return
        written = self.metrics.sync()
        state = {
            **asdict(self.counters),
            "metrics_bytes": written,
            "metrics_sha256": beginning_sha256(self.metrics.path, written),
            "timing_bytes": self.timing.sync(),
            "random": random_state(self.device),
            "identity": redacted(self.identity),
            **({} if self.scale is None else {"loss_scale": self.scale.state()}),
        }
        directory = self.run_dir / "checkpoints"
        keep = self.settings.keep_checkpoints
        save_checkpoint(directory, state, self.trainables, self.optimizer, keep)

    def _resume(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        restore(checkpoint, self.trainables, self.optimizer)
        restore_random_state(state["random"], self.device)
        self.metrics.truncate(state["metrics_bytes"])
        self.timing.truncate(state["timing_bytes"])
        for name in asdict(self.counters):
            setattr(self.counters, name, state[name])
        if self.scale is not None and "loss_scale" in state:
            self.scale.restore(state["loss_scale"])
        made_on = (state["identity"].get("hardware") or [{"device": self.device.type}])[-1]
        if made_on["device"] != self.device.type:
            self.counters.peak_memory_bytes = 0  # of another kind of memory


def trainable(model: nn.Module) -> Named:
    """The parameters that train, with their full names."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def checkpointing_as(settings: TrainConfig) -> dict[str, Any]:
    """What the settings say of `gradient_checkpointing`."""
    return {
        "enabled": settings.gradient_checkpointing,
        "every": settings.gradient_checkpointing_every,
        "offload": settings.gradient_checkpointing_offload,
    }


@contextlib.contextmanager
def gradient_checkpointing(
    model: Any, enabled: bool, every: int = 1, offload: bool = False
) -> Iterator[None]:
    """Recompute layers' activations in the backward pass instead of keeping them.

    Non-reentrant, which is exact and needs no gradient on the inputs; the hook for it that
    transformers installs is taken off again.

    Args:
        model: of transformers.
        enabled: whether to do it at all.
        every: decoder layers, of which the first is recomputed and the others keep theirs.
        offload: what layers are recomputed from is held in the host's memory.
    """
    if enabled:
        # transformers renamed it on the way to 6.
        name = "activation_checkpointing_enable"
        switch_on = getattr(model, name, None) or model.gradient_checkpointing_enable
        switch_on({"use_reentrant": False}, every_n_layers=every, offload=offload)
        model.disable_input_require_grads()
    try:
        yield
    finally:
        if enabled:
            name = "activation_checkpointing_disable"
            (getattr(model, name, None) or model.gradient_checkpointing_disable)()
