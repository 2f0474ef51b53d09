"""Measuring again: a finished run, whose record it adds to, or any PEFT adapter.

Nothing is trained. What a record held before and is measured now is kept under ``evaluations``,
with the settings and the machine of each time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hylorada import config as configs
from hylorada.config import RunConfig
from hylorada.data.token_corpus import tokenizer_sha256
from hylorada.errors import ConfigError
from hylorada.evaluation.measurement import Metrics, asked_for, owner
from hylorada.kernels.frozen_weights import make_fast
from hylorada.kernels.switch import left_out
from hylorada.loading.adapter import attach_adapter, count_numbers, read_settings
from hylorada.loading.backbone import Backbone, load_backbone, parameter_count
from hylorada.loading.finished_run import Record, load_finished
from hylorada.loading.inputs import Inputs
from hylorada.methods.position_range import extend_range
from hylorada.process.disk import exclusive
from hylorada.process.place import place
from hylorada.process.progress import Reporter
from hylorada.process.ranks import Ranks, joined
from hylorada.process.redaction import remember
from hylorada.process.seeding import repeatable, seed_everything
from hylorada.process.session import session
from hylorada.process.signals import Stop
from hylorada.process.terminal import lasting_terminal
from hylorada.records import manifest
from hylorada.records.model_card import write_card
from hylorada.records.outcome import exit_code, explained, recorded
from hylorada.records.provenance import add_texts, name_of, provenance
from hylorada.records.result import (
    JsonLines,
    blank_result,
    finished_record,
    read_result,
    write_result,
)
from hylorada.records.run_files import ADAPTER_SETTINGS, ADAPTER_WEIGHTS
from hylorada.runner.base_model import base_metrics
from hylorada.runner.earlier_attempt import refuse_changed
from hylorada.runner.launch import start_processes, starts_processes
from hylorada.runner.measure import Meter, make_meter
from hylorada.runner.preflight import Preflight
from hylorada.runner.preparation import Prepared, prepare
from hylorada.runner.processes import of_processes, own_directory
from hylorada.runner.summary import print_summary, summary_console, summary_tables
from hylorada.settings import check_settings
from hylorada.settings.fingerprint import group_name
from hylorada.tracking.final_numbers import mirror
from hylorada.tracking.tracker import start_tracker


@lasting_terminal()
def evaluate_run(
    run_dir: Path | str,
    config: RunConfig,
    chosen: Mapping[str, Any] | None = None,
    *,
    held: bool = False,
) -> Record:
    """Measure a finished run by ``config.eval`` and add the numbers to its record.

    Args:
        run_dir: the run's directory.
        config: the run's settings, but for what may differ now: ``eval``, ``device``, ``threads``,
            ``track``, ``train.precision``, ``train.frozen_kernels``, ``processes``, and where its
            text lies.
        chosen: why this run of a grid and no other one is measured (`records.schema.Chosen`).
        held: whether the caller holds the directory (`disk.exclusive`).

    Returns:
        The record as it stands now.

    Raises:
        DataError: see `finished_record`; or its base or text is not available.
        HyloradaError: see `errors`; the record is then as it was.
    """
    check_settings(config)
    remember(configs.to_dict(config))
    directory = Path(run_dir)
    if starts_processes(config):
        with exclusive(directory):
            start_processes(config, directory, "evaluate", chosen)
        return finished_record(directory)
    with (
        joined(config.device) as ranks,
        own_directory(ranks, directory) as own,
        session(own, held=held or not ranks.is_first, ranks=ranks) as (stop, log),
        ranks.telling(),
    ):
        record = ranks.decided(lambda: finished_record(directory))
        try:
            metrics = _again(config, directory, record, stop, chosen, ranks)
        except BaseException as error:
            known = explained(error, directory, record)
            log(known)
            if known is error:
                raise
            raise known from error
    if ranks.is_first:
        console = summary_console()
        for table in summary_tables(record, metrics):
            console.print(table)
        console.print(f"added to {directory / 'result.json'}", soft_wrap=True)
    return record


def _again(
    config: RunConfig,
    directory: Path,
    record: Record,
    stop: Stop,
    chosen: Mapping[str, Any] | None,
    ranks: Ranks,
) -> Metrics:
    seed_everything(config.seed)
    # The base's cache lies beside the experiment's folder, wherever that is now.
    if directory.absolute().parent.name == group_name(config):
        root = str(directory.absolute().parents[1])
        config = dataclasses.replace(config, output_root=root)
    with ExitStack() as stack, Reporter() as reporter, left_out(not config.train.frozen_kernels):
        meter = make_meter(config, stop, reporter, ranks)
        stack.enter_context(repeatable(meter.device, config.train.deterministic))
        prepared = _prepared(config, stop)
        precision = config.train.precision
        model, backbone = load_finished(directory, record, meter.device, precision)
        meter.weigh(backbone.dtype)
        base = base_metrics(config, meter, backbone, prepared, model)
        if config.method.trains:
            make_fast(model, meter.autocast)
            asked = json.dumps(dataclasses.asdict(config.eval), sort_keys=True)
            name = hashlib.sha256(f"{asked} {prepared.corpus.sha256}".encode()).hexdigest()[:10]
            metrics = meter.measure_all(
                model,
                prepared,
                config.method.name,
                partial=directory / f".evaluation-{name}.partial",
            )
        else:
            metrics = base["extended"]
    _add(record, config, prepared, metrics, base, meter)
    if chosen is not None:
        record["evaluations"][-1]["chosen"] = dict(chosen)
    if not ranks.is_first:
        return metrics
    step = (record["training"] or {}).get("steps", 0)
    line = {"step": step, **{name: metric["value"] for name, metric in metrics.items()}}
    lines = JsonLines(directory / "metrics.jsonl")
    if "files" in record:  # a line that no record counts is of an evaluation that was killed here
        lines.truncate(record["files"]["metrics.jsonl"]["bytes"])
    lines.append(line)
    if "files" in record:
        record["files"] |= manifest.describe(directory, "metrics.jsonl")
    write_result(directory, record)
    write_card(directory, record)
    _mirror(config, directory, record)
    return metrics


def _add(
    record: Record,
    config: RunConfig,
    prepared: Prepared,
    metrics: Metrics,
    base: dict[str, Metrics],
    meter: Meter,
) -> None:
    """Put new numbers in the place of those of the same name; what stood there is kept."""
    measured = asked_for(config.eval)
    anew = [each for each in measured if each.all_anew(record, config, prepared.corpus)]

    def family(name: str) -> str:
        of = owner(name)
        if of is None:
            return name.partition("@")[0]
        return of.name if of in anew else of.replaced_with(name)

    before = record["config"]["eval"]
    asked: dict[str, Any] = {}
    for each in measured:
        _copy(dataclasses.asdict(config.eval), asked, each.place)
        # The settings in a record are those that its numbers were measured under.
        _copy(asked, before, each.place)
    record.setdefault("evaluations", []).append(
        {
            "eval": asked,
            "metrics": sorted(metrics),
            "replaced": _put(record["metrics"], metrics, family),
            "replaced_base": {
                which: _put(record["base"].setdefault(which, {}), found, family)
                for which, found in base.items()
            },
            "text": prepared.corpus.label,
            "text_sha256": prepared.corpus.sha256,
            "precision": meter.precision,
            "weights": name_of(meter.weights),
            "frozen_kernels": config.train.frozen_kernels,
            "device": meter.device.type,
            "provenance": provenance(meter.device) | of_processes(meter.ranks),
        }
    )
    if any(each.of_the_text for each in measured):
        add_texts(record["provenance"], config.eval.perplexity.split, prepared.corpus)


def _copy(source: dict[str, Any], target: dict[str, Any], place: Sequence[str]) -> None:
    """Put what stands at a place of one tree at the same place of another."""
    *path, last = place
    for name in path:
        source, target = source[name], target.setdefault(name, {})
    target[last] = source[last]


def _put(metrics: Metrics, new: Metrics, family: Callable[[str], str]) -> Metrics:
    """Update metrics in place; return those that had to go.

    Args:
        metrics: of a record.
        new: what was measured now.
        family: of a metric, by its name; with one all others of its family go.
    """
    families = {family(name) for name in new}
    old = {name: metric for name, metric in metrics.items() if family(name) in families}
    for name in old:
        del metrics[name]
    metrics.update(new)
    return {name: metric for name, metric in old.items() if new.get(name) != metric}


@lasting_terminal()
def evaluate_adapter(adapter: Path | str, config: RunConfig) -> Record:
    """Measure any PEFT adapter on its base, and write a record of its own.

    An adapter that does not bring its own extension of the range is measured on the base extended
    as every arm is (``config.method.position_range``).

    Args:
        adapter: the folder that `save_pretrained` wrote.
        config: model, text, length, evaluation; nothing else of it has an effect.

    Returns:
        The record, which lies in ``<output_root>/<group>/<label>-<length>-<fingerprint>``.

    Raises:
        DataError: no adapter there, or not one of this base.
        ConfigError: a kind of adapter that cannot be measured, or several processes.
    """
    check_settings(config)
    if config.processes > 1 or place().world > 1:
        raise ConfigError(
            "adapter= is measured by one process: leave processes at 1, and start it once"
        )
    remember(configs.to_dict(config))
    folder = Path(adapter).expanduser()
    weights, settings = folder / ADAPTER_WEIGHTS, read_settings(folder)
    reach = getattr(settings, "max_length", 0)
    # The base beside it is extended from the same length.
    trained = config.model.trained_length or getattr(settings, "base_trained_length", 0)
    window = config.length.max_length
    if reach and reach < window:
        raise ConfigError(
            f"adapter={adapter}: made for {reach} tokens, but length.max_length is {window}; "
            "choose a length that it reaches"
        )
    count = count_numbers(weights)
    digest, settings_digest = (_sha256(path) for path in (weights, folder / ADAPTER_SETTINGS))
    source = folder.resolve()
    name = source.parent.name if source.name == "adapter" else source.name
    label = "adapter-" + (re.sub(r"[^\w.+-]+", "-", name).strip("-") or "unnamed")
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, trained_length=trained),
        method=dataclasses.replace(config.method, name=label),
    )
    record = blank_result(config)
    text = f"{record['fingerprint']} {digest} {settings_digest}"
    record["fingerprint"] = hashlib.sha256(text.encode()).hexdigest()[:10]
    record["name"] = f"{config.method.name}-{config.length.name}-{record['fingerprint']}"
    record["config"]["method"] = {
        "name": config.method.name,
        "adapter": str(adapter),
        "adapter_sha256": digest,
        "adapter_config_sha256": settings_digest,
        "peft_type": str(getattr(settings.peft_type, "value", settings.peft_type)),
        "position_range": dataclasses.asdict(config.method.position_range),
    }
    record["config"]["train"] = None  # unknown
    directory = Path(config.output_root) / group_name(config) / record["name"]
    done = read_result(directory)
    if done is not None and done.get("status") == "ok":
        refuse_changed(done, config, directory)
        Reporter().say(f"measured already: {directory / 'result.json'}")
        print_summary(done, directory)
        return done
    # `after` is left when the record is written.
    frame = session(directory)
    with frame as (stop, log), ExitStack() as after, recorded(directory, record, log):
        seed_everything(config.seed)
        with (
            ExitStack() as stack,
            Reporter() as reporter,
            left_out(not config.train.frozen_kernels),
        ):
            meter = make_meter(config, stop, reporter)
            stack.enter_context(repeatable(meter.device, config.train.deterministic))
            record["provenance"] = provenance(meter.device)
            prepared = _prepared(config, stop)
            backbone = load_backbone(config.model, meter.device, config.train.precision)
            meter.weigh(backbone.dtype)
            record["provenance"] |= backbone.identity
            split = config.eval.perplexity.split
            add_texts(record["provenance"], split, prepared.corpus)
            inputs = Inputs().describe(config, {split: prepared.corpus.sha256})
            record["provenance"]["inputs"] = inputs
            record["provenance"] |= {
                "precision": meter.precision,
                "tokenizer_sha256": tokenizer_sha256(prepared.tokenizer),
            }
            model = _attach(folder, backbone, config, own_range=bool(reach))
            reached = getattr(backbone.model.config, "hylorada_range", None)
            record["position_range"] = reached or {"kind": "none", "from": backbone.trained_length}
            record["base"] = base_metrics(config, meter, backbone, prepared, model)
            record["parameters"] = {
                "total": parameter_count(model), "trainable": count, "by_group": {"other": count}
            }  # fmt: skip
            make_fast(model, meter.autocast)
            record["metrics"] = meter.measure_all(
                model, prepared, config.method.name, partial=directory / ".evaluation.partial"
            )
        after.callback(_mirror, config, directory, record)
    print_summary(record, directory)
    return record


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _attach(folder: Path, backbone: Backbone, config: RunConfig, own_range: bool) -> Any:
    if not own_range:
        position_range = config.method.position_range
        extend_range(
            backbone.model, config.length.max_length, position_range.learned_init,
            position_range.rope_type, position_range.rope_factor,
        )  # fmt: skip
    return attach_adapter(backbone.model, folder, config.model.path)


def _prepared(config: RunConfig, stop: Stop) -> Prepared:
    """Before any weights are read, so that what cannot be asked is refused at once."""
    return prepare(config, Preflight().check(config, trains=False), stop)


def _mirror(config: RunConfig, directory: Path, record: Record) -> None:
    tracker = start_tracker(config, directory, record["name"])
    with ExitStack() as stack:
        stack.push(lambda _kind, error, _trace: tracker.finish(exit_code(error)))
        tracker.replay(directory, {})
        mirror(record, tracker)
