"""One run, from its settings to its record: the steps of docs/ARCHITECTURE.md, in order, as code.

`run` refuses what cannot be (`earlier_attempt`, `preflight`), reads the text, loads the base,
attaches the adapter, has the gate prove that it acts and reads no future token, measures the base,
trains (`training.loop`), measures the trained model and writes result.json, however it ended.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from hylorada import config as configs
from hylorada.config import RunConfig
from hylorada.data.blocks import Blocks
from hylorada.data.overlap import shared_documents
from hylorada.data.token_corpus import tokenizer_sha256
from hylorada.evaluation.measurements import perplexity
from hylorada.kernels.compiled import compiled_layers
from hylorada.kernels.frozen_weights import make_fast
from hylorada.kernels.switch import left_out
from hylorada.loading.adapter import save_adapter
from hylorada.loading.backbone import Backbone, load_backbone, parameter_count
from hylorada.loading.inputs import Inputs
from hylorada.methods.experts import reached_experts
from hylorada.methods.integrity import Check
from hylorada.methods.integrity.adapters import count_by_component
from hylorada.process.disk import exclusive, replace_file
from hylorada.process.fault_points import fault_point
from hylorada.process.phases import timed
from hylorada.process.progress import Reporter
from hylorada.process.ranks import Ranks, joined
from hylorada.process.redaction import remember
from hylorada.process.seeding import repeatable, seed_everything
from hylorada.process.session import session
from hylorada.process.signals import Stop
from hylorada.process.terminal import lasting_terminal
from hylorada.records import manifest
from hylorada.records.model_card import write_card
from hylorada.records.outcome import exit_code, recorded
from hylorada.records.provenance import add_texts, provenance
from hylorada.records.result import JsonLines, blank_result, finished_record, to_json
from hylorada.runner.attachment import attach
from hylorada.runner.base_model import base_metrics
from hylorada.runner.earlier_attempt import (
    already_done,
    check_hardware,
    check_start,
    identity,
    set_earlier_attempt_aside,
)
from hylorada.runner.gate import prove
from hylorada.runner.launch import start_processes, starts_processes
from hylorada.runner.measure import make_meter
from hylorada.runner.preflight import Preflight
from hylorada.runner.preparation import Part
from hylorada.runner.processes import (
    as_rank,
    check_processes,
    failure_recorded,
    newest_checkpoint,
    of_processes,
    own_directory,
    refuse_draws,
)
from hylorada.runner.sharding import loss_of_parts, sent_in_parts, share_base_out
from hylorada.runner.summary import print_summary
from hylorada.runner.texts import Texts, read_texts
from hylorada.runner.training_record import ending_fields, training_fields
from hylorada.settings import check_settings, fingerprint
from hylorada.tracking.final_numbers import mirror
from hylorada.tracking.tracker import Tracker, start_tracker
from hylorada.training.checkpoint import Checkpoint
from hylorada.training.counters import Counters
from hylorada.training.group_rates import rates_by_name
from hylorada.training.loop import Training
from hylorada.training.loss import LossModel
from hylorada.training.recomputation import as_configured
from hylorada.training.segment_schedule import scheduled_segments

logger = logging.getLogger(__name__)

Record = dict[str, Any]


@lasting_terminal()
def run(config: RunConfig, run_dir: Path | str | None = None, *, held: bool = False) -> Record:
    """Run, continue, or skip what the config describes.

    Args:
        config: the run's settings.
        run_dir: its directory; default: the one named by the config's content.
        held: whether the caller has made sure that no other process runs there (`disk.exclusive`).

    Returns:
        The record, as in result.json. A run that is done already is not repeated.

    Raises:
        HyloradaError: see `errors`; the record says so too, unless the directory itself cannot be
            used.
    """
    check_settings(config)
    remember(configs.to_dict(config))
    directory = Path(run_dir or fingerprint.run_dir(config))
    if starts_processes(config):
        if not _done(config, directory):
            with (
                nullcontext() if held else exclusive(directory),
                failure_recorded(config, directory),
            ):
                start_processes(config, directory, "train")
        return finished_record(directory)
    with joined(config.device) as ranks, own_directory(ranks, directory) as own:
        done = ranks.decided(lambda: _done(config, directory))
        if done is not None:
            return done
        held = held or not ranks.is_first
        with session(own, held=held, ranks=ranks) as (stop, log), ExitStack() as after:
            record = blank_result(config)
            if config.resume == "never":
                ranks.decided(lambda: set_earlier_attempt_aside(directory))
            with ranks.telling(), recorded(own, record, log):
                check_processes(config, ranks)
                ranks.decided(lambda: check_start(config, directory))
                _Run(config, own, record, stop, after, ranks).execute()
        if ranks.is_first:
            print_summary(record, directory)
    return record


def _done(config: RunConfig, directory: Path) -> Record | None:
    """The record of a run that is done, which the user is told; None if it must run."""
    done = already_done(config, directory)
    if done is not None:
        Reporter().say(f"already done: {directory / 'result.json'} (resume=never runs it again)")
    return done


class _Run:
    """One process's part in a run; each step fills its part of the record.

    Attributes:
        config: the run's settings.
        directory: where this process writes.
        record: filled in place.
        stop: whether a signal has come.
        after: closed once the record is written: what might hang then costs no result.
        ranks: the processes of the run.
    """

    def __init__(
        self,
        config: RunConfig,
        directory: Path,
        record: Record,
        stop: Stop,
        after: ExitStack,
        ranks: Ranks,
    ) -> None:
        self.config, self.directory, self.record, self.stop = config, directory, record, stop
        self.after, self.ranks = after, ranks

    def execute(self) -> None:
        """The steps in order, from the newest checkpoint to the last number of the record."""
        config, record = self.config, self.record
        seed_everything(config.seed)
        with ExitStack() as stack:
            self._set_up(stack)
            checkpoint = newest_checkpoint(config, self.directory, self.ranks)
            phases = record["seconds"] = {}
            with timed(phases, "preflight"):
                opened = Preflight().check(config)
            with self.reporter.working("text"), timed(phases, "text"):
                texts = read_texts(config, opened, self.stop)
                texts.check_budget(config.train)
            self._describe_texts(texts)
            with timed(phases, "load"):
                backbone = load_backbone(
                    config.model, self.device, config.train.precision, opened, config.shard_base
                )
            self._describe_inputs(backbone, texts, checkpoint)
            model = self._attach(backbone)
            with self.reporter.working("integrity gate"), timed(phases, "gate"):
                saving_check = share_base_out(config, model, backbone, self.device, self.ranks)
                self._gate(model, backbone, saving_check)
            with timed(phases, "base"):
                record["base"] = base_metrics(config, self.meter, backbone, texts.prepared, model)
            tracker = start_tracker(as_rank(config, self.ranks), self.directory, record["name"])
            self.after.push(lambda _kind, error, _trace: tracker.finish(exit_code(error)))
            if texts.blocks is None:
                tracker.replay(self.directory, {"metrics_bytes": 0})
                record["training"] = training_fields(config, Counters(), self.meter)
                metrics = record["base"]["extended"]
            else:
                make_fast(model, self.meter.autocast)
                refuse_draws(model, self.meter.autocast, self.ranks)
                with timed(phases, "training"):
                    self._train(model, texts, checkpoint, tracker)
                    if self.ranks.is_first:
                        save_adapter(model, self.directory)
                fault_point("before_evaluation")
                with timed(phases, "evaluation"):
                    metrics = self.meter.measure_all(
                        model,
                        texts.prepared,
                        config.method.name,
                        partial=self.directory / ".evaluation.partial",
                    )
            self._finish(metrics, tracker)

    def _set_up(self, stack: ExitStack) -> None:
        """Progress, kernels and device, until the stack is closed; `provenance` of the record."""
        config = self.config
        self.reporter = stack.enter_context(Reporter())
        stack.enter_context(left_out(not config.train.frozen_kernels))
        self.meter = make_meter(config, self.stop, self.reporter, self.ranks)
        self.device = self.meter.device
        stack.enter_context(repeatable(self.device, config.train.deterministic))
        self.record["provenance"] = provenance(self.device) | of_processes(self.ranks)

    def _describe_texts(self, texts: Texts) -> None:
        """Which texts were read, for the record; a warning where the same are trained on."""
        split = self.config.eval.perplexity.split
        blocks, corpus = texts.blocks, texts.prepared.corpus
        add_texts(self.record["provenance"], split, corpus, blocks)
        if not isinstance(blocks, Blocks) or split == "train":
            return
        shared = shared_documents(blocks.corpus, corpus)
        self.record["provenance"]["documents_in_both"] = len(shared)
        if shared:
            logger.warning(
                "%d of %d documents of the %s split are trained on as well (%s): its perplexity is "
                "not that of unseen text",
                len(shared), len(corpus.documents), split, ", ".join(shared[:3]),
            )  # fmt: skip

    def _describe_inputs(
        self, backbone: Backbone, texts: Texts, checkpoint: Checkpoint | None
    ) -> None:
        """The base, its precision and all that was read, for the record and for checkpoints."""
        config, origin = self.config, self.record["provenance"]
        self.meter.weigh(backbone.dtype)
        here = {"device": self.device.type, "precision": self.meter.precision}
        self.hardware = check_hardware(checkpoint.state if checkpoint else None, here, config)
        if len(self.hardware) > 1:
            origin["hardware_in_order"] = self.hardware
        origin |= backbone.identity | {
            "precision": self.meter.precision,
            "tokenizer_sha256": tokenizer_sha256(texts.prepared.tokenizer),
        }
        self.inputs = Inputs().describe(config, texts.sha256())
        origin["inputs"] = self.inputs

    def _attach(self, backbone: Backbone) -> Any:
        """Extend the range and attach the adapter; counts the parameters, by group."""
        config, model = self.config, backbone.model
        length = config.length.max_length
        model, reached, left_out = attach(config, model)
        self.record["position_range"] = reached.to_dict()
        if reached.reason:
            left_out["position_range"] = reached.reason
        self.record["left_out"] = left_out
        for component, reason in left_out.items():
            logger.info("left out: %s, because %s", component, reason)
        if config.method.trains:
            rates_by_name(model, config.train.lr_scale)  # where only a whole model tells
        by_group = count_by_component(model)
        self.record["parameters"] = {
            "total": parameter_count(model),
            "trainable": sum(by_group.values()),
            "by_group": by_group,
        }
        if config.method.placebo:
            inert = [group for group in ("position_bias", "landmark") if group in by_group]
            self.record["parameters"]["placebo"] = inert
            logger.info("a control: the output of %s is multiplied by 0", " and ".join(inert))
        groups = ", ".join(f"{group} {count:,}" for group, count in by_group.items())
        logger.info(
            "%s at %d tokens on %s: %s", config.method.name, length, config.model.name,
            f"trains {groups}" if groups else "nothing trains",
        )  # fmt: skip
        experts = reached_experts(model)
        if experts is not None:
            self.record["parameters"]["experts"] = experts.to_dict()
            logger.info("%s", experts.note)
        return model

    def _gate(self, model: Any, backbone: Backbone, saving_check: Check | None) -> None:
        """Refuse a model in which a component does not act, or reads the future."""
        if not self.config.integrity.enabled:
            return
        report = prove(
            model, backbone.tokenizer, self.config, self.meter.autocast, self.stop, self.ranks,
            saving_check,
        )  # fmt: skip
        self.record["integrity"] = report.to_dict()
        replace_file(self.directory / "integrity.json", to_json(report.to_dict()))
        report.raise_if_failed()
        for warning in report.warnings:
            logger.warning("integrity: %s", warning)
        ran = [name for name, check in report.checks.items() if not check.skipped]
        logger.info("integrity: passed %s", ", ".join(ran))

    def _train(
        self, model: Any, texts: Texts, checkpoint: Checkpoint | None, tracker: Tracker
    ) -> None:
        """Train, from the checkpoint if there is one; however it ends, the record says so."""
        assert texts.blocks is not None
        config, loss_model = self.config, LossModel(model, self.config.train.loss_chunk)
        training = Training(
            model=model,
            loss_model=loss_model,
            blocks=texts.blocks,
            settings=config.train,
            seed=config.seed,
            device=self.device,
            autocast=self.meter.autocast,
            run_dir=self.directory,
            stop=self.stop,
            reporter=self.reporter,
            identity=identity(config, self.inputs, self.hardware),
            on_metrics=tracker.log,
            ranks=self.ranks,
        )
        if texts.validation is not None:
            part = Part(perplexity.MEASUREMENT, texts.validation, {})
            training.evaluate = lambda step: self._validate(model, part, step)
        if checkpoint is None:
            for lines in (training.metrics, training.timing):
                lines.truncate(0)
        tracker.replay(self.directory, {} if checkpoint is None else checkpoint.state)
        seed_everything(config.seed)
        sent: dict[str, Any] = {}
        try:
            s2, length = config.method.s2_attn, config.length.max_length
            with (
                compiled_layers(model, config.train.compile == "layers") as compiled,
                as_configured(model, config.train, self.meter.autocast),
                scheduled_segments(model, s2, length, config.seed) as training.prepare,
                loss_of_parts(loss_model, config, self.ranks) as training.loss_model,
            ):
                training.run(checkpoint)
                sent = sent_in_parts(training.loss_model, self.ranks)
            compiled.say()
        finally:
            fields = training_fields(config, training.counters, self.meter)
            self.record["training"] = fields | ending_fields(config, training) | sent

    def _validate(self, model: Any, part: Part, step: int) -> dict[str, float]:
        """What is measured between two steps, for a line of metrics.jsonl."""
        results = self.meter.measure(model, part, f"validation, step {step}")
        return {"validation/ppl": results["eval/ppl"]["value"]}

    def _finish(self, metrics: Record, tracker: Tracker) -> None:
        """The final numbers: into the record, metrics.jsonl and the tracker."""
        self.record["metrics"] = metrics
        if not self.ranks.is_first:
            return
        step = self.record["training"]["steps"]
        line = {"step": step, **{name: metric["value"] for name, metric in metrics.items()}}
        lines = JsonLines(self.directory / "metrics.jsonl")
        if not self.config.method.trains:
            lines.truncate(0)  # of an earlier attempt
        lines.append(line)
        tracker.log(line)
        mirror(self.record, tracker)
        write_card(self.directory, self.record)
        self.record["files"] = manifest.describe(self.directory)
        fault_point("before_record")
