"""One run, from a typed config to a record: the sentence of data flow, as code.

`run` refuses what cannot be (`earlier_attempt`, `preflight`), reads the text, loads the backbone,
`adapt` attaches what the config enables, `check_integrity` proves that it acts and does not leak,
the base is measured, `Training` trains on packed blocks while metrics.jsonl grows, the evaluation
measures, and result.json says how it ended, however it ended.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from hylorada import config as configs
from hylorada.architecture import anatomy
from hylorada.config import RunConfig
from hylorada.data.blocks import Blocks
from hylorada.data.overlap import shared_documents
from hylorada.data.token_corpus import TokenCorpus, load_token_corpus, tokenizer_sha256
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
from hylorada.runner.parts import loss_of_parts, sent_in_parts, share_base_out
from hylorada.runner.preflight import Preflight
from hylorada.runner.preparation import Part, Prepared, prepare
from hylorada.runner.processes import (
    as_rank,
    check_processes,
    ended_told,
    newest_checkpoint,
    of_processes,
    own_directory,
    refuse_draws,
)
from hylorada.runner.summary import print_summary
from hylorada.runner.training_record import told_of_end, told_of_training
from hylorada.runner.training_text import training_blocks
from hylorada.settings import check_settings, fingerprint
from hylorada.tracking.final_numbers import mirror
from hylorada.tracking.tracker import Tracker, start_tracker
from hylorada.training.checkpoint import Checkpoint
from hylorada.training.counters import Counters
from hylorada.training.group_rates import rates_by_name
from hylorada.training.loop import Training
from hylorada.training.loss import LossModel
from hylorada.training.plan import BlockSource
from hylorada.training.recomputation import as_configured
from hylorada.training.retrieval_blocks import RetrievalBlocks
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
            with nullcontext() if held else exclusive(directory), ended_told(config, directory):
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
    """The record of a run that is done, which is said."""
    done = already_done(config, directory)
    if done is not None:
        Reporter().say(f"already done: {directory / 'result.json'} (resume=never runs it again)")
    return done


class _Run:
    """The steps of one run, in order; each fills its part of the record.

    `after` is left when the record is written: what may hang then costs no result.
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
        """All of it."""
        config, record = self.config, self.record
        seed_everything(config.seed)
        with ExitStack() as stack:
            self.reporter = stack.enter_context(Reporter())
            stack.enter_context(left_out(not config.train.frozen_kernels))
            self.meter = make_meter(config, self.stop, self.reporter, self.ranks)
            self.device = self.meter.device
            stack.enter_context(repeatable(self.device, config.train.deterministic))
            record["provenance"] = provenance(self.device) | of_processes(self.ranks)
            checkpoint = newest_checkpoint(config, self.directory, self.ranks)
            phases = record["seconds"] = {}
            with timed(phases, "preflight"):
                opened = Preflight().check(config)
            tokenizer = opened.tokenizer
            with self.reporter.working("text"), timed(phases, "text"):
                prepared = prepare(config, opened, self.stop)
                trained_length = anatomy.trained_length(opened.config)
                blocks = self._blocks(tokenizer, trained_length) if config.method.trains else None
                validation = self._validation(tokenizer)
            add_texts(record["provenance"], config.eval.perplexity.split, prepared.corpus, blocks)
            self._tell_shared(prepared, blocks)
            with timed(phases, "load"):
                backbone = load_backbone(
                    config.model, self.device, config.train.precision, opened, config.shard_base
                )
            self.meter.weigh(backbone.dtype)
            here = {"device": self.device.type, "precision": self.meter.precision}
            self.hardware = check_hardware(checkpoint.state if checkpoint else None, here, config)
            if len(self.hardware) > 1:
                record["provenance"]["hardware_in_order"] = self.hardware
            record["provenance"] |= backbone.identity | {
                "precision": self.meter.precision,
                "tokenizer_sha256": tokenizer_sha256(tokenizer),
            }
            self.inputs = Inputs().describe(config, self._texts(prepared, blocks, validation))
            record["provenance"]["inputs"] = self.inputs
            model = self._attach(backbone)
            with self.reporter.working("integrity gate"), timed(phases, "gate"):
                saved = share_base_out(config, model, backbone, self.device, self.ranks)
                self._gate(model, backbone, saved)
            with timed(phases, "base"):
                record["base"] = base_metrics(config, self.meter, backbone, prepared, model)
            tracker = start_tracker(as_rank(config, self.ranks), self.directory, record["name"])
            self.after.push(lambda _kind, error, _trace: tracker.finish(exit_code(error)))
            if blocks is None:
                tracker.replay(self.directory, {"metrics_bytes": 0})
                record["training"] = told_of_training(config, Counters(), self.meter)
                self._finish(record["base"]["extended"], 0, tracker)
            else:
                make_fast(model, self.meter.autocast)
                refuse_draws(model, self.meter.autocast, self.ranks)
                with timed(phases, "training"):
                    self._train(model, blocks, validation, checkpoint, tracker)
                    if self.ranks.is_first:
                        save_adapter(model, self.directory)
                fault_point("before_evaluation")
                with timed(phases, "evaluation"):
                    metrics = self.meter.measure_all(
                        model,
                        prepared,
                        config.method.name,
                        partial=self.directory / ".evaluation.partial",
                    )
                self._finish(metrics, record["training"]["steps"], tracker)

    def _tell_shared(self, prepared: Prepared, blocks: Blocks | RetrievalBlocks | None) -> None:
        """Say which documents are trained on and measured."""
        split = self.config.eval.perplexity.split
        if not isinstance(blocks, Blocks) or split == "train":
            return
        shared = shared_documents(blocks.corpus, prepared.corpus)
        self.record["provenance"]["documents_in_both"] = len(shared)
        if shared:
            logger.warning(
                "%d of %d documents of the %s split are trained on as well (%s): its perplexity is "
                "not that of unseen text",
                len(shared), len(prepared.corpus.documents), split, ", ".join(shared[:3]),
            )  # fmt: skip

    def _corpus(self, tokenizer: Any, split: str) -> TokenCorpus:
        config, batches = self.config, itertools.count(1)

        def progress(_tokens: int) -> None:
            fault_point("inside_text", next(batches))
            self.stop.check()

        return load_token_corpus(
            config.dataset, split, tokenizer, config.model.path, progress=progress
        )

    def _blocks(self, tokenizer: Any, trained_length: int) -> Blocks | RetrievalBlocks:
        """What is trained on."""
        corpus = functools.partial(self._corpus, tokenizer, "train")
        return training_blocks(self.config, tokenizer, trained_length, corpus)

    def _validation(self, tokenizer: Any) -> TokenCorpus | None:
        """What is measured between the steps, if anything is."""
        between = self.config.train.eval_every and self.config.method.trains
        return self._corpus(tokenizer, "validation") if between else None

    def _texts(
        self, prepared: Prepared, blocks: BlockSource | None, validation: TokenCorpus | None
    ) -> dict[str, str]:
        """sha256 of the text of each split that is read."""
        texts = {self.config.eval.perplexity.split: prepared.corpus.sha256}
        if isinstance(blocks, Blocks):
            texts["train"] = blocks.sha256
        if validation is not None:
            texts["validation"] = validation.sha256
        return texts

    def _attach(self, backbone: Backbone) -> Any:
        """Extend the range and attach the adapter; the parameters, counted by group."""
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

    def _gate(self, model: Any, backbone: Backbone, saved: Check | None) -> None:
        """Refuse a model in which something does not act, or reads the future."""
        if not self.config.integrity.enabled:
            return
        report = prove(
            model, backbone.tokenizer, self.config, self.meter.autocast, self.stop, self.ranks,
            saved,
        )  # fmt: skip
        self.record["integrity"] = report.to_dict()
        replace_file(self.directory / "integrity.json", to_json(report.to_dict()))
        report.raise_if_failed()
        for warning in report.warnings:
            logger.warning("integrity: %s", warning)
        ran = [name for name, check in report.checks.items() if not check.skipped]
        logger.info("integrity: passed %s", ", ".join(ran))

    def _train(
        self,
        model: Any,
        blocks: BlockSource,
        validation: TokenCorpus | None,
        checkpoint: Checkpoint | None,
        tracker: Tracker,
    ) -> None:
        config, loss_model = self.config, LossModel(model, self.config.train.loss_chunk)
        training = Training(
            model=model,
            loss_model=loss_model,
            blocks=blocks,
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
        if validation is not None:
            training.evaluate = lambda step: self._validate(model, validation, step)
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
            told = told_of_training(config, training.counters, self.meter)
            self.record["training"] = told | told_of_end(config, training) | sent

    def _validate(self, model: Any, corpus: TokenCorpus, step: int) -> dict[str, float]:
        settings = dataclasses.replace(
            self.config.eval.perplexity, split="validation", conventions=["blocks"], stride=0
        )
        asked = perplexity.Asked(settings, self.config.length.max_length, corpus)
        part = Part(perplexity.MEASUREMENT, asked, {})
        results = self.meter.measure(model, part, f"validation, step {step}")
        return {"validation/ppl": results["eval/ppl"]["value"]}

    def _finish(self, metrics: Record, step: int, tracker: Tracker) -> None:
        """The final numbers: into the record, metrics.jsonl and the tracker."""
        self.record["metrics"] = metrics
        if not self.ranks.is_first:
            return
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
