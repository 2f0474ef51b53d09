"""One run, from a typed config to a record: the sentence of data flow, as code.

`run` refuses what cannot be (`earlier_attempt`, `preflight`), reads the text, loads the backbone,
`adapt` attaches what the config enables, `check_integrity` proves that it acts and does not leak,
the base is measured, `Training` trains on packed blocks while metrics.jsonl grows, the evaluation
measures, and result.json says how it ended, however it ended.
"""

from __future__ import annotations

import dataclasses
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hylorada import config as configs
from hylorada.architecture import anatomy
from hylorada.config import RunConfig
from hylorada.data.blocks import Blocks
from hylorada.data.overlap import shared_documents
from hylorada.data.token_corpus import TokenCorpus, load_token_corpus, tokenizer_sha256
from hylorada.evaluation.measurements import perplexity
from hylorada.kernels.frozen_weights import make_fast
from hylorada.kernels.switch import left_out
from hylorada.loading.adapter import save_adapter
from hylorada.loading.backbone import Backbone, load_backbone, parameter_count
from hylorada.loading.finished_run import extend
from hylorada.loading.inputs import Inputs
from hylorada.methods import adapt
from hylorada.methods.adaptive_rule import from_method
from hylorada.methods.experts import reached_experts
from hylorada.methods.integrity.adapters import count_by_component
from hylorada.methods.peft_methods import attach_peft_method
from hylorada.process.disk import replace_file
from hylorada.process.fault_points import fault_point
from hylorada.process.progress import Reporter
from hylorada.process.redaction import remember
from hylorada.process.seeding import repeatable, seed_everything
from hylorada.process.session import session
from hylorada.process.signals import Stop
from hylorada.process.terminal import lasting_terminal
from hylorada.records import manifest
from hylorada.records.model_card import write_card
from hylorada.records.outcome import exit_code, recorded
from hylorada.records.provenance import PeakMemory, add_texts, provenance
from hylorada.records.result import JsonLines, blank_result, to_json
from hylorada.runner.base_model import base_metrics
from hylorada.runner.earlier_attempt import (
    already_done,
    check_continuation,
    check_hardware,
    check_start,
    identity,
    set_earlier_attempt_aside,
)
from hylorada.runner.gate import prove
from hylorada.runner.measure import make_meter
from hylorada.runner.preflight import Preflight
from hylorada.runner.preparation import Part, Prepared, prepare
from hylorada.runner.summary import print_summary
from hylorada.settings import check_settings, fingerprint
from hylorada.tracking.final_numbers import mirror
from hylorada.tracking.tracker import Tracker, start_tracker
from hylorada.training.checkpoint import Checkpoint, load_newest
from hylorada.training.group_rates import rates_by_name
from hylorada.training.loop import (
    BlockSource,
    Counters,
    Training,
    checkpointing_as,
    gradient_checkpointing,
)
from hylorada.training.loss import LossModel
from hylorada.training.retrieval_blocks import RetrievalBlocks

logger = logging.getLogger(__name__)

Record = dict[str, Any]


@lasting_terminal()
def run(config: RunConfig, run_dir: Path | str | None = None) -> Record:
    """Run, continue, or skip what the config describes.

    Args:
        config: the run's settings.
        run_dir: its directory; default: the one named by the config's content.

    Returns:
        The record, as in result.json. A run that is done already is not repeated.

    Raises:
        HyloradaError: see `errors`; the record says so too, unless the directory itself cannot be
            used.
    """
    check_settings(config)
    remember(configs.to_dict(config))
    directory = Path(run_dir or fingerprint.run_dir(config))
    done = already_done(config, directory)
    if done is not None:
        Reporter().say(f"already done: {directory / 'result.json'} (resume=never runs it again)")
        return done
    with session(directory) as (stop, log), ExitStack() as after:
        if config.resume == "never":
            set_earlier_attempt_aside(directory)
        record = blank_result(config)
        with recorded(directory, record, log):
            check_start(config, directory)
            _Run(config, directory, record, stop, after).execute()
    print_summary(record, directory)
    return record


class _Run:
    """The steps of one run, in order; each fills its part of the record.

    `after` is left when the record is written: what may hang then costs no result.
    """

    def __init__(
        self, config: RunConfig, directory: Path, record: Record, stop: Stop, after: ExitStack
    ) -> None:
        self.config, self.directory, self.record, self.stop = config, directory, record, stop
        self.after = after

    def execute(self) -> None:
        """All of it."""
        config, record = self.config, self.record
        seed_everything(config.seed)
        with ExitStack() as stack:
            self.reporter = stack.enter_context(Reporter())
            stack.enter_context(left_out(not config.train.frozen_kernels))
            self.meter = make_meter(config, self.stop, self.reporter)
            self.device = self.meter.device
            stack.enter_context(repeatable(self.device, config.train.deterministic))
            record["provenance"] = provenance(self.device)
            checkpoint = self._checkpoint()
            opened = Preflight().check(config)
            tokenizer = opened.tokenizer
            with self.reporter.working("text"):
                prepared = prepare(config, tokenizer, self.stop)
                blocks = self._blocks(tokenizer) if config.method.trains else None
                validation = self._validation(tokenizer)
            add_texts(record["provenance"], config.eval.perplexity.split, prepared.corpus, blocks)
            self._tell_shared(prepared, blocks)
            backbone = load_backbone(config.model, self.device, config.train.precision, opened)
            self.meter.weigh(backbone.dtype)
            here = {"device": self.device.type, "precision": self.meter.precision}
            self.hardware = check_hardware(checkpoint.state if checkpoint else None, here, config)
            if len(self.hardware) > 1:
                record["provenance"]["hardware_in_order"] = self.hardware
            record["provenance"] |= backbone.identity
            record["provenance"] |= {
                "precision": self.meter.precision,
                "tokenizer_sha256": tokenizer_sha256(tokenizer),
            }
            self.inputs = Inputs().describe(config, self._texts(prepared, blocks, validation))
            record["provenance"]["inputs"] = self.inputs
            model = self._attach(backbone)
            with self.reporter.working("integrity gate"):
                self._gate(model, backbone)
            record["base"] = base_metrics(config, self.meter, backbone, prepared, model)
            tracker = start_tracker(config, self.directory, record["name"])
            self.after.push(lambda _kind, error, _trace: tracker.finish(exit_code(error)))
            if blocks is None:
                tracker.replay(self.directory, {"metrics_bytes": 0})
                self._describe_training(Counters())
                self._finish(record["base"]["extended"], 0, tracker)
            else:
                make_fast(model, self.meter.autocast)
                self._train(model, blocks, validation, checkpoint, tracker)
                save_adapter(model, self.directory)
                fault_point("before_evaluation")
                metrics = self.meter.measure_all(
                    model,
                    prepared,
                    config.method.name,
                    partial=self.directory / ".evaluation.partial",
                )
                self._finish(metrics, record["training"]["steps"], tracker)

    def _checkpoint(self) -> Checkpoint | None:
        """What is continued from; `check_start` may have looked at one that is damaged."""
        if not self.config.method.trains:
            return None
        checkpoint = load_newest(self.directory / "checkpoints")
        if checkpoint is not None:
            check_continuation(checkpoint.state, self.config, self.directory)
            logger.info("continuing from step %d (%s)", checkpoint.state["step"], checkpoint.path)
        return checkpoint

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
        config = self.config
        return load_token_corpus(
            config.dataset, split, tokenizer, config.model.path,
            progress=lambda tokens: self.stop.check(),
        )  # fmt: skip

    def _blocks(self, tokenizer: Any) -> Blocks | RetrievalBlocks:
        """What is trained on."""
        config = self.config
        length = config.length.max_length
        if config.train.task == "retrieval":
            return RetrievalBlocks(tokenizer, length, config.train.retrieval, config.seed)
        return Blocks(self._corpus(tokenizer, "train"), length, config.dataset.packing)

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
        left_out: dict[str, str] = {}
        seed = config.seed + config.method.adapter_seed
        if config.method.peft:
            attached = attach_peft_method(model, config.method, length, seed=seed)
            model, reached = attached.model, attached.range_report
            left_out |= attached.left_out
        elif (method := from_method(config.method, length, model.config)) is None:
            reached = extend(model, length, config.method.position_range)
        else:
            adapted: Any = adapt(model, method, length, seed=seed)
            model, reached = adapted, adapted.base_model.range_report
            left_out |= adapted.peft_config["default"].left_out
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

    def _gate(self, model: Any, backbone: Backbone) -> None:
        """Refuse a model in which something does not act, or reads the future."""
        if not self.config.integrity.enabled:
            return
        report = prove(model, backbone.tokenizer, self.config, self.meter.autocast, self.stop)
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
        config = self.config
        training = Training(
            model=model,
            loss_model=LossModel(model, config.train.loss_chunk),
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
        )
        if validation is not None:
            training.evaluate = lambda step: self._validate(model, validation, step)
        if checkpoint is None:
            for lines in (training.metrics, training.timing):
                lines.truncate(0)
        tracker.replay(self.directory, {} if checkpoint is None else checkpoint.state)
        seed_everything(config.seed)
        try:
            lm = anatomy.causal_lm(model)
            with gradient_checkpointing(lm, **checkpointing_as(config.train)):
                training.run(checkpoint)
        finally:
            self._describe_training(training.counters)
            if config.train.max_seconds:
                self.record["training"]["ended_by"] = training.ended_by

    def _describe_training(self, counters: Counters) -> None:
        speed = counters.tokens / counters.seconds if counters.seconds else None
        memory = PeakMemory(self.device)
        reserved = memory.reserved() if counters.step else None
        self.record["training"] = {
            "steps": counters.step,
            "skipped_steps": counters.skipped,
            "tokens": counters.tokens,
            "seconds": counters.seconds,
            "tokens_per_second": speed,
            "final_loss": counters.last_loss,
            "peak_memory_bytes": counters.peak_memory_bytes or None,
            "peak_memory_of": memory.counts,
            **({"peak_memory_reserved_bytes": reserved} if reserved else {}),
            "precision": self.meter.precision,
            "device": self.device.type,
        }

    def _validate(self, model: Any, corpus: TokenCorpus, step: int) -> dict[str, float]:
        settings = dataclasses.replace(
            self.config.eval.perplexity, split="validation", conventions=["blocks"], stride=0
        )
        length = self.config.length.max_length
        asked = perplexity.Asked(settings, length, corpus)
        part = Part(perplexity.MEASUREMENT, asked, {})
        results = self.meter.measure(model, part, f"validation, step {step}")
        return {"validation/ppl": results["eval/ppl"]["value"]}

    def _finish(self, metrics: Record, step: int, tracker: Tracker) -> None:
        """The final numbers: into the record, metrics.jsonl and the tracker."""
        self.record["metrics"] = metrics
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
