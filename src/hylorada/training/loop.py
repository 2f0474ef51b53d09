"""The training loop, by hand: the order of steps, evaluations and checkpoints.

What one step computes is in `step`. Everything that it does follows from (weights, moments, random
generators, step number): a run that continues from a checkpoint does the same as one that never
stopped.

A step is launched (`_launch`) and later settled (`_settle`): its outcome is read, counted and
written to metrics.jsonl. On a GPU a step is settled while the next one runs, so that neither device
nor host waits for the other. Whatever needs the outcome of the last step (a checkpoint, an
evaluation, the end) settles it first.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

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
from hylorada.training.launched import Launched, Outcome
from hylorada.training.loss_scale import searching
from hylorada.training.optim import learning_rate
from hylorada.training.plan import BlockSource, make_plan
from hylorada.training.step import Loss, OptimizerStep
from hylorada.training.weights import not_finite, refuse_apart, trainable

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
        run_dir: where `checkpoints/`, `metrics.jsonl` and `timing.jsonl` are written.
        stop: set by a signal; the loop ends after the step under way.
        reporter: shows progress.
        identity: of the run, kept in each checkpoint.
        on_metrics: called with each line of metrics.jsonl and that of timing.jsonl (a tracker).
        evaluate: called with a step when ``eval_every`` says so; its values become a line.
        prepare: called with (step, steps in the plan) before each step; what it does must follow
            from these two alone.
        clock: in seconds; how long a step takes is read from it.
        ranks: the processes that share the micro-batches of each step; the first one writes.
    """

    model: nn.Module
    loss_model: Loss
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
        self.optimizer_step = OptimizerStep(
            self.model, self.trainables, self.settings, self.device, self.autocast, self.ranks
        )
        self.plan = make_plan(len(self.blocks), self.blocks.length, self.settings)
        self.counters = Counters(micro_batch_size=self.settings.micro_batch_size)
        self.metrics = JsonLines(self.run_dir / "metrics.jsonl")
        self.timing = JsonLines(self.run_dir / "timing.jsonl")
        self.best = BestSoFar(self.settings)
        self.memory = PeakMemory(self.device)
        # A step is settled while the next one runs; on a CPU at once, where nothing runs ahead.
        self.settles_late = self.device.type != "cpu"
        self._launched: Launched | None = None
        self._settled_at = 0.0  # when the last step was settled

    def run(self, checkpoint: Checkpoint | None = None) -> Counters:
        """Train to the end of the plan, of `max_seconds` or of `patience`.

        With `keep_best` the model then has the best weights; checkpoints have those of their step.

        Args:
            checkpoint: to continue from; None: start at the first step.

        Raises:
            DivergedError: too many steps in a row that moved no weights, or a spike of the loss
                under `loss_spike=stop`; nothing is saved.
            Interrupted: a signal came; a checkpoint is saved.
            DiskError: see `save_checkpoint`.
        """
        if checkpoint is not None:
            self._resume(checkpoint)
        self.model.train()
        self.memory.start()
        self._report_begin()
        with self.stop.deferred():
            self._run_steps()
            self._refuse_blown_up()
            if self.best.misses(self.counters.step):
                self._evaluate()
        self.best.put_back(self.trainables)
        return self.counters

    def _run_steps(self) -> None:
        """Steps, evaluations and checkpoints until the plan, the time or the patience is over."""
        counters, settings = self.counters, self.settings
        while True:
            if counters.evaluation_due:
                self._evaluate()
            if counters.step >= self.plan.steps:
                return
            if self.time_is_over or self.best.is_over:
                self._settle()
                self._save()  # no checkpoint yet, where settling this step ended the time
                logger.info(
                    "train.%s is over after %d of %d steps (%.1f s)",
                    "max_seconds" if self.time_is_over else "patience",
                    counters.step, self.plan.steps, counters.seconds,
                )  # fmt: skip
                return
            counters.step += 1
            self._step(counters.step)
            last = counters.step == self.plan.steps or self.time_is_over
            counters.evaluation_due = not last and _is_due(counters.step, settings.eval_every)
            if last or self.stop.requested or _is_due(counters.step, settings.save_every):
                self._settle()
                self._save()
            fault_point("after_step", counters.step)
            self.stop.check()

    @property
    def ended_by(self) -> str | None:
        """What ended it: "steps" (of the plan), "seconds" or "patience"; None: it has not ended."""
        if self.counters.step >= self.plan.steps:
            return "steps"
        return "seconds" if self.time_is_over else "patience" if self.best.is_over else None

    @property
    def time_is_over(self) -> bool:
        """Whether the settled steps of all attempts took `max_seconds`."""
        limit = self.settings.max_seconds
        return bool(limit) and self.counters.seconds >= limit

    def _step(self, step: int) -> None:
        """One optimizer step; on a GPU the step before it is settled while it runs."""
        launched = self._launch(step)
        self._settle()
        self._launched = launched
        if not self.settles_late:
            self._settle()

    def _launch(self, step: int) -> Launched:
        """Have the device do all of a step; nothing that it computes is read here."""
        started = self.clock()
        self.prepare(step, self.plan.steps)
        launched = self.optimizer_step.launch(
            step,
            [self.blocks[i] for i in self.plan.of_step(step, self.seed)],
            self.loss_model,
            rate=learning_rate(step, self.plan.steps, self.settings),
            micro_batch_size=self.counters.micro_batch_size,
            started=started,
        )
        self.counters.micro_batch_size = launched.micro_batch_size
        return launched

    def _settle(self) -> None:
        """Read the outcome of the step launched last, unless that is done; count and log it.

        Raises:
            DivergedError: it is a spike under `loss_spike=stop`, or the last of too many steps that
                moved no weights.
        """
        if self._launched is None:
            return
        launched, self._launched = self._launched, None
        settings, counters, step = self.settings, self.counters, launched.step
        outcome = launched.read()
        line = {"step": step, **self._count(launched, outcome)}
        seconds = self._count_seconds(launched)
        last = step == self.plan.steps or self.time_is_over
        if step % settings.log_every == 0 or last or counters.skipped_in_row:
            self._log(line, self._append_timing(launched, seconds))
        if outcome.spike and settings.loss_spike == "stop":
            counters.step = step
            raise DivergedError(
                f"training: step {step} is a {outcome.spike}, and train.loss_spike=stop; the "
                "weights are those of the step before it. Look at the data, lower train.lr (now "
                f"{settings.lr:g}), or set train.loss_spike=skip"
            )
        detail = f"loss {outcome.loss:.4f}  {launched.tokens / seconds:,.0f} tokens/s"
        self.reporter.update(step, detail)
        if counters.skipped_in_row >= settings.max_nonfinite_steps:
            counters.step = step  # one more may have been launched; it must not count
            raise DivergedError(
                f"training: {counters.skipped_in_row} steps in a row that moved no weights, the "
                f"last at step {step} ({line['train/skipped']}); lower train.lr (now "
                f"{settings.lr:g}) or look at the data"
            )

    def _count(self, launched: Launched, outcome: Outcome) -> dict[str, Any]:
        """Count a step; what its line of metrics.jsonl says of it."""
        counters, step = self.counters, launched.step
        only_warned = bool(outcome.spike) and self.settings.loss_spike == "warn"
        if only_warned:
            logger.warning("step %d: %s", step, outcome.spike)
        if outcome.not_finite or (outcome.spike and not only_warned):
            return {"train/skipped": self._count_skipped(step, outcome)}
        counters.tokens += launched.tokens
        counters.skipped_in_row, counters.last_loss = 0, outcome.loss
        return {
            self.plan.loss_name(step): outcome.loss,
            "train/lr": launched.rate,
            "train/grad_norm": outcome.norm,
            "train/tokens": counters.tokens,
        }

    def _count_skipped(self, step: int, outcome: Outcome) -> str:
        """Count a step that moved no weights; the reason."""
        self.counters.skipped += 1
        scale = None if outcome.spike else outcome.loss_scale
        searched = "" if scale is None else searching(outcome.loss, scale)
        if searched:  # for the loss scale of fp16: no sign of divergence
            logger.info("step %d: %s", step, searched)
            return searched
        self.counters.skipped_in_row += 1
        reason = outcome.spike or outcome.not_finite
        logger.warning("step %d skipped: %s", step, reason)
        return reason

    def _count_seconds(self, launched: Launched) -> float:
        """What a step took: since it was launched, or since the one before it was settled."""
        now = self.clock()
        seconds = now - max(launched.started, self._settled_at)
        self._settled_at = now
        self.counters.seconds += seconds
        if self.settings.max_seconds:  # all processes must see the same end
            self.counters.seconds = self.ranks.most(self.counters.seconds)
        return seconds

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

    def _append_timing(self, launched: Launched, seconds: float) -> dict[str, Any]:
        """The line of timing.jsonl that belongs to a line of metrics.jsonl."""
        counters = self.counters
        counters.peak_memory_bytes = max(counters.peak_memory_bytes, self.memory.peak())
        timing = {
            "step": launched.step,
            "seconds": seconds,
            "tokens": launched.tokens,
            "peak_memory_bytes": counters.peak_memory_bytes,
        }
        self.timing.append(timing)
        return timing

    def _report_begin(self) -> None:
        self.reporter.begin("train", self.plan.steps, self.counters.step)

    def _save(self) -> None:
        """Write the checkpoint of the last step, unless its weights are not finite."""
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
            **self.optimizer_step.state(),
            **self.best.state,
        }
        save_checkpoint(
            self.run_dir / "checkpoints", state, self.trainables, self.optimizer_step.optimizer,
            self.settings.keep_checkpoints, self.best.weights,
        )  # fmt: skip

    def _refuse_blown_up(self) -> None:
        """Refuse to measure or save weights that the last step has made non-finite."""
        if bad := not_finite(self.trainables):
            raise DivergedError(
                f"training: after step {self.counters.step}, its last, the weights have blown up "
                f"({bad}); lower train.lr (now {self.settings.lr:g})"
            )

    def _resume(self, checkpoint: Checkpoint) -> None:
        """Put everything back as it was when the checkpoint was written, files included."""
        state = checkpoint.state
        restore(checkpoint, self.trainables, self.optimizer_step.optimizer)
        self.best.restore(checkpoint)
        restore_random_state(state["random"], self.device)
        if self.ranks.is_first:
            self.metrics.truncate(state["metrics_bytes"])
            self.timing.truncate(state["timing_bytes"])
        for name, value in asdict(self.counters).items():
            setattr(self.counters, name, state.get(name, value))
        self.optimizer_step.restore(state)
        made_on = (state["identity"].get("hardware") or [{"device": self.device.type}])[-1]
        if made_on["device"] != self.device.type:
            self.counters.peak_memory_bytes = 0  # of another kind of memory


def _is_due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens after this one."""
    return every > 0 and step % every == 0
