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

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hylorada.architecture.labels import IGNORE
from hylorada.config import TrainConfig
from hylorada.errors import DivergedError, Interrupted
from hylorada.process.fault_points import fault_point
from hylorada.process.progress import Reporter
from hylorada.process.ranks import ALONE, Ranks
from hylorada.process.redaction import redacted
from hylorada.process.seeding import random_state, restore_random_state
from hylorada.process.signals import Stop
from hylorada.records.manifest import beginning_sha256
from hylorada.records.provenance import PeakMemory
from hylorada.records.result import JsonLines
from hylorada.training.best import BestSoFar
from hylorada.training.checkpoint import Checkpoint, Named, restore, save_checkpoint
from hylorada.training.counters import Counters
from hylorada.training.exact_sum import ExactSum
from hylorada.training.group_rates import rates_by_name
from hylorada.training.launched import Launched, Outcome, launch_reading
from hylorada.training.loss_scale import LossScale, searching
from hylorada.training.micro_batches import in_parts_that_fit, moved, own_part
from hylorada.training.optim import (
    learning_rate,
    make_optimizer,
    set_learning_rate,
    step_if,
)
from hylorada.training.plan import BlockSource, make_plan
from hylorada.training.spikes import LossSpikes
from hylorada.training.weights import not_finite, refuse_apart

logger = logging.getLogger(__name__)


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
        stop, reporter: the one is set by signals, the other shows progress.
        identity: of the run, kept in each checkpoint.
        on_metrics: mirrors each line of metrics.jsonl with that of timing.jsonl (a tracker).
        evaluate: called with a step when ``eval_every`` says so; its values become a line.
        prepare: called with (step, steps in the plan) before each step; follows from them alone.
        clock: in seconds; what a step takes is read from it.
        ranks: the processes that share the micro-batches of each step; the first one writes.
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
    prepare: Callable[[int, int], None] = lambda step, steps: None
    clock: Callable[[], float] = time.perf_counter
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        self.trainables: Named = trainable(self.model)
        self.optimizer = make_optimizer(
            self.trainables, self.settings, rates_by_name(self.model, self.settings.lr_scale)
        )
        self.sums = ExactSum([p for _, p in self.trainables], self.ranks)
        self.plan = make_plan(len(self.blocks), self.blocks.length, self.settings)
        self.counters = Counters(micro_batch_size=self.settings.micro_batch_size)
        self.metrics = JsonLines(self.run_dir / "metrics.jsonl")
        self.timing = JsonLines(self.run_dir / "timing.jsonl")
        self.best = BestSoFar(self.settings)
        self.memory = PeakMemory(self.device)
        self.scale = LossScale(self.device) if self.autocast == torch.float16 else None
        self.spikes = (
            None
            if self.settings.loss_spike == "none"
            else LossSpikes(self.settings.loss_spike_deviations, self.device)
        )
        self.late = self.device.type != "cpu"  # a CPU's numbers are there at once
        self._launched: Launched | None = None
        self._settled = 0.0  # when the numbers of a step were last read

    def run(self, checkpoint: Checkpoint | None = None) -> Counters:
        """Train to the end of the plan, of `max_seconds` or of `patience`; maybe from a checkpoint.

        With `keep_best` the model then has the best weights; checkpoints have those of their step.

        Raises:
            DivergedError: too many steps in a row that moved no weights, or a spike of the loss
                under `loss_spike=stop`; nothing is saved.
            Interrupted: a signal came; a checkpoint is saved.
            DiskError: see `save_checkpoint`.
        """
        counters = self.counters
        if checkpoint is not None:
            self._resume(checkpoint)
        self.model.train()
        self.memory.start()
        self._report_begin()
        with self.stop.deferred():
            self._steps()
            self._refuse_blown_up()
            if self.best.misses(counters.step):
                self._evaluate()
        self.best.put_back(self.trainables)
        return counters

    def _steps(self) -> None:
        """Steps, evaluations and checkpoints until something comes to its end."""
        counters, settings = self.counters, self.settings
        while True:
            if counters.evaluation_due:
                self._evaluate()
            if counters.step >= self.plan.steps:
                return
            if self.time_is_over or self.best.is_over:
                self._settle()
                self._save()  # where only reading the last step told; otherwise it is there
                logger.info(
                    "train.%s is over after %d of %d steps (%.1f s)",
                    "max_seconds" if self.time_is_over else "patience",
                    counters.step, self.plan.steps, counters.seconds,
                )  # fmt: skip
                return
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
        """What came to its end: "steps", those of the plan, "seconds" or "patience"; or nothing."""
        if self.counters.step >= self.plan.steps:
            return "steps"
        return "seconds" if self.time_is_over else "patience" if self.best.is_over else None

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
        self.prepare(step, self.plan.steps)
        rows = [self.blocks[i] for i in self.plan.of_step(step, self.seed)]
        tokens = sum(int((row["labels"][..., 1:] != IGNORE).sum()) for row in rows)
        with self.sums, self.ranks.taking_part():
            loss, size = in_parts_that_fit(
                own_part(rows, settings.micro_batch_size, self.ranks),
                self.counters.micro_batch_size,
                lambda batch: self._backward(batch, tokens),
                self.sums.forget,
                self.device,
                self.ranks.independent,
            )
            fault_point("mid_step", step)
            loss, self.counters.micro_batch_size = self.sums.give(loss, size)

        loss /= tokens
        named = [(name, p.grad) for name, p in self.trainables if p.grad is not None]
        gradients = [gradient for _, gradient in named]
        if self.scale is not None:
            self.scale.take_off(gradients)
        norm = torch.nn.utils.get_total_norm(gradients)
        moves = torch.isfinite(loss) & torch.isfinite(norm)
        asides = {} if self.scale is None else {"loss_scale": self.scale.factor}
        if self.spikes is not None:
            asides["spike_limit"] = limit = self.spikes.limit()
            if settings.loss_spike != "warn":
                moves = moves & ~(loss > limit)
            self.spikes.add(loss, moves)
        launched = launch_reading(step, tokens, started, loss, norm, named, asides)
        launched.rate = learning_rate(step, self.plan.steps, settings)
        if settings.max_grad_norm:
            parameters = [p for _, p in self.trainables]
            torch.nn.utils.clip_grads_with_norm_(parameters, settings.max_grad_norm, norm)
        set_learning_rate(self.optimizer, launched.rate)
        step_if(self.optimizer, moves)
        if self.scale is not None:
            self.scale.update(loss, norm)
        self.optimizer.zero_grad(set_to_none=True)
        return launched

    def _backward(self, batch: dict[str, Tensor], tokens: int) -> Tensor:
        """Add the gradients of a micro-batch; its summed loss."""
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            sum_nll, _ = self.loss_model(**moved(batch, self.device))
        # Divided by the tokens of the whole step: every token weighs the same, whatever its
        # micro-batch.
        mean = sum_nll / tokens
        (mean if self.scale is None else self.scale.applied(mean)).backward()
        return sum_nll.detach()

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
        spike = read.spike and settings.loss_spike != "warn"
        if read.spike and not spike:
            logger.warning("step %d: %s", step, read.spike)
        if not read.why and not spike:
            counters.tokens += launched.tokens
            counters.skipped_in_row, counters.last_loss = 0, read.loss
            line: dict[str, Any] = {
                "step": step,
                self.plan.loss_name(step): read.loss,
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
        if settings.max_seconds:
            counters.seconds = self.ranks.most(counters.seconds)
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
        if spike and settings.loss_spike == "stop":
            counters.step = step
            raise DivergedError(
                f"training: step {step} is a {read.spike}, and train.loss_spike=stop; the weights "
                "are those of the step before it. Look at the data, lower train.lr (now "
                f"{settings.lr:g}), or set train.loss_spike=skip"
            )
        detail = f"loss {read.loss:.4f}  {launched.tokens / seconds:,.0f} tokens/s"
        self.reporter.update(step, detail)
        if counters.skipped_in_row >= settings.max_nonfinite_steps:
            counters.step = step  # one more may have been launched, which is nothing's beginning
            raise DivergedError(
                f"training: {counters.skipped_in_row} steps in a row that moved no weights, the "
                f"last at step {step} ({line['train/skipped']}); lower train.lr (now "
                f"{settings.lr:g}) or look at the data"
            )

    def _skip(self, step: int, read: Outcome) -> str:
        """Count a step whose numbers did not reach the weights; say where they come from."""
        self.counters.skipped += 1
        scale = None if read.spike else read.loss_scale
        searched = "" if scale is None else searching(read.loss, scale)
        if searched:
            logger.info("step %d: %s", step, searched)
            return searched
        self.counters.skipped_in_row += 1
        why = read.spike or read.why
        logger.warning("step %d skipped: %s", step, why)
        return why

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
        self.best.judge(self.counters.step, line.get("validation/ppl"), self.trainables)
        self.counters.evaluation_due = False
        self._report_begin()

    def _log(self, line: dict[str, Any], timing: dict[str, Any] | None = None) -> None:
        self.metrics.append(line)
        self.on_metrics(line, timing)

    def _report_begin(self) -> None:
        self.reporter.begin("train", self.plan.steps, self.counters.step)

    def _save(self) -> None:
        if bad := not_finite(self.trainables):
            logger.warning("step %d: %s; no checkpoint", self.counters.step, bad)
            return
        refuse_apart(self.trainables, self.ranks)
        if not self.ranks.is_first:
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
            **({} if self.spikes is None else {"losses": self.spikes.state()}),
            **self.best.state,
        }
        directory = self.run_dir / "checkpoints"
        keep = self.settings.keep_checkpoints
        best = self.best.weights
        save_checkpoint(directory, state, self.trainables, self.optimizer, keep, best)

    def _refuse_blown_up(self) -> None:
        """Refuse to measure or save what the last step has made of the weights."""
        if bad := not_finite(self.trainables):
            raise DivergedError(
                f"training: after step {self.counters.step}, its last, the weights have blown up "
                f"({bad}); lower train.lr (now {self.settings.lr:g})"
            )

    def _resume(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        restore(checkpoint, self.trainables, self.optimizer)
        self.best.restore(checkpoint)
        restore_random_state(state["random"], self.device)
        if self.ranks.is_first:
            self.metrics.truncate(state["metrics_bytes"])
            self.timing.truncate(state["timing_bytes"])
        for name, value in asdict(self.counters).items():
            setattr(self.counters, name, state.get(name, value))
        if self.spikes is not None and "losses" in state:
            self.spikes.restore(state["losses"])
        if self.scale is not None and "loss_scale" in state:
            self.scale.restore(state["loss_scale"])
        made_on = (state["identity"].get("hardware") or [{"device": self.device.type}])[-1]
        if made_on["device"] != self.device.type:
            self.counters.peak_memory_bytes = 0  # of another kind of memory


def trainable(model: nn.Module) -> Named:
    """The parameters that train, with their full names."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]
