"""Measuring a finished run again, and adding the numbers to its record.

Nothing is trained. Numbers that are measured anew take the place of those in the record, which are
kept under ``evaluations`` with the settings and the machine of each time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hylorada import config as configs
from hylorada.config import RunConfig
from hylorada.evaluation.measurement import Metrics, asked_for, owner
from hylorada.kernels.frozen_weights import make_fast
from hylorada.kernels.switch import left_out
from hylorada.loading.finished_run import Record, load_finished
from hylorada.process.disk import exclusive
from hylorada.process.progress import Reporter
from hylorada.process.ranks import Ranks, joined
from hylorada.process.redaction import remember
from hylorada.process.seeding import repeatable, seed_everything
from hylorada.process.session import session
from hylorada.process.signals import Stop
from hylorada.process.terminal import lasting_terminal
from hylorada.records import manifest
from hylorada.records.model_card import write_card
from hylorada.records.outcome import exit_code, explained
from hylorada.records.provenance import add_texts, name_of, provenance
from hylorada.records.result import (
    JsonLines,
    finished_record,
    write_result,
)
from hylorada.runner.base_model import base_metrics
from hylorada.runner.launch import start_processes, starts_processes
from hylorada.runner.measure import Meter, make_meter
from hylorada.runner.preflight import Preflight
from hylorada.runner.preparation import Prepared, prepare
from hylorada.runner.processes import of_processes, own_directory
from hylorada.runner.summary import summary_console, summary_tables
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
            metrics = _measure_again(config, directory, record, stop, chosen, ranks)
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


def _measure_again(
    config: RunConfig,
    directory: Path,
    record: Record,
    stop: Stop,
    chosen: Mapping[str, Any] | None,
    ranks: Ranks,
) -> Metrics:
    """Measure the run and the base, and add the numbers to the record and the run's files."""
    seed_everything(config.seed)
    # The base's cache lies beside the experiment's folder, wherever that is now.
    if directory.absolute().parent.name == group_name(config):
        root = str(directory.absolute().parents[1])
        config = dataclasses.replace(config, output_root=root)
    with ExitStack() as stack, Reporter() as reporter, left_out(not config.train.frozen_kernels):
        meter = make_meter(config, stop, reporter, ranks)
        stack.enter_context(repeatable(meter.device, config.train.deterministic))
        prepared = prepare_questions(config, stop)
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
    _add_to_record(record, config, prepared, metrics, base, meter)
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
    mirror_record(config, directory, record)
    return metrics


def _add_to_record(
    record: Record,
    config: RunConfig,
    prepared: Prepared,
    metrics: Metrics,
    base: dict[str, Metrics],
    meter: Meter,
) -> None:
    """Put new numbers in the place of those of the same family; those are kept in `evaluations`."""
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
    """Update metrics in place; returns those that were replaced.

    Args:
        metrics: of a record.
        new: what was measured now.
        family: name of a metric -> its family; a new metric replaces all of its family.
    """
    families = {family(name) for name in new}
    old = {name: metric for name, metric in metrics.items() if family(name) in families}
    for name in old:
        del metrics[name]
    metrics.update(new)
    return {name: metric for name, metric in old.items() if new.get(name) != metric}


def prepare_questions(config: RunConfig, stop: Stop) -> Prepared:
    """What is measured, prepared before any weights are read: what cannot be is refused at once."""
    return prepare(config, Preflight().check(config, trains=False), stop)


def mirror_record(config: RunConfig, directory: Path, record: Record) -> None:
    """Mirror the numbers of a record to the tracker that the settings name."""
    tracker = start_tracker(config, directory, record["name"])
    with ExitStack() as stack:
        stack.push(lambda _kind, error, _trace: tracker.finish(exit_code(error)))
        tracker.replay(directory, {})
        mirror(record, tracker)
