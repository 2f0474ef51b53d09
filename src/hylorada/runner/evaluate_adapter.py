"""Measuring any PEFT adapter on its base, with a record of its own. Nothing is trained."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hylorada import config as configs
from hylorada.config import RunConfig
from hylorada.data.token_corpus import tokenizer_sha256
from hylorada.errors import ConfigError
from hylorada.kernels.frozen_weights import make_fast
from hylorada.kernels.switch import left_out
from hylorada.loading.adapter import attach_adapter, count_numbers, read_settings
from hylorada.loading.backbone import Backbone, load_backbone, parameter_count
from hylorada.loading.finished_run import Record
from hylorada.loading.inputs import Inputs
from hylorada.methods.position_range import extend_range
from hylorada.process.place import place
from hylorada.process.progress import Reporter
from hylorada.process.redaction import remember
from hylorada.process.seeding import repeatable, seed_everything
from hylorada.process.session import session
from hylorada.process.signals import Stop
from hylorada.process.terminal import lasting_terminal
from hylorada.records.outcome import recorded
from hylorada.records.provenance import add_texts, provenance
from hylorada.records.result import blank_result, read_result
from hylorada.records.run_files import ADAPTER_SETTINGS, ADAPTER_WEIGHTS
from hylorada.runner.base_model import base_metrics
from hylorada.runner.earlier_attempt import refuse_changed
from hylorada.runner.evaluate import mirror_record, prepare_questions
from hylorada.runner.measure import make_meter
from hylorada.runner.summary import print_summary
from hylorada.settings import check_settings
from hylorada.settings.fingerprint import group_name


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
    settings = read_settings(folder)
    reach = getattr(settings, "max_length", 0)
    # The base beside it is extended from the same length.
    trained = config.model.trained_length or getattr(settings, "base_trained_length", 0)
    window = config.length.max_length
    if reach and reach < window:
        raise ConfigError(
            f"adapter={adapter}: made for {reach} tokens, but length.max_length is {window}; "
            "choose a length that it reaches"
        )
    trained_numbers = count_numbers(folder / ADAPTER_WEIGHTS)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, trained_length=trained),
        method=dataclasses.replace(config.method, name=_label(folder)),
    )
    record = _blank_record(config, str(adapter), folder, settings)
    directory = Path(config.output_root) / group_name(config) / record["name"]
    done = read_result(directory)
    if done is not None and done.get("status") == "ok":
        refuse_changed(done, config, directory)
        Reporter().say(f"measured already: {directory / 'result.json'}")
        print_summary(done, directory)
        return done
    with (
        session(directory) as (stop, log),
        ExitStack() as after,  # closed once the record is written
        recorded(directory, record, log),
    ):
        _measure(
            config, folder, record, directory, stop, trained_numbers, own_range=bool(reach)
        )  # fmt: skip
        after.callback(mirror_record, config, directory, record)
    print_summary(record, directory)
    return record


def _label(folder: Path) -> str:
    """What the adapter is called in the record: by its folder, or by the run that holds it."""
    source = folder.resolve()
    name = source.parent.name if source.name == "adapter" else source.name
    return "adapter-" + (re.sub(r"[^\w.+-]+", "-", name).strip("-") or "unnamed")


def _blank_record(config: RunConfig, adapter: str, folder: Path, settings: Any) -> Record:
    """A record whose fingerprint counts the adapter's files among the settings."""
    digest = _sha256(folder / ADAPTER_WEIGHTS)
    settings_digest = _sha256(folder / ADAPTER_SETTINGS)
    record = blank_result(config)
    text = f"{record['fingerprint']} {digest} {settings_digest}"
    record["fingerprint"] = hashlib.sha256(text.encode()).hexdigest()[:10]
    record["name"] = f"{config.method.name}-{config.length.name}-{record['fingerprint']}"
    record["config"]["method"] = {
        "name": config.method.name,
        "adapter": adapter,
        "adapter_sha256": digest,
        "adapter_config_sha256": settings_digest,
        "peft_type": str(getattr(settings.peft_type, "value", settings.peft_type)),
        "position_range": dataclasses.asdict(config.method.position_range),
    }
    record["config"]["train"] = None  # unknown
    return record


def _measure(
    config: RunConfig,
    folder: Path,
    record: Record,
    directory: Path,
    stop: Stop,
    trained_numbers: int,
    *,
    own_range: bool,
) -> None:
    """Load the base with the adapter and measure both; each step fills its part of the record."""
    seed_everything(config.seed)
    with (
        ExitStack() as stack,
        Reporter() as reporter,
        left_out(not config.train.frozen_kernels),
    ):
        meter = make_meter(config, stop, reporter)
        stack.enter_context(repeatable(meter.device, config.train.deterministic))
        record["provenance"] = provenance(meter.device)
        prepared = prepare_questions(config, stop)
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
        model = _attach(folder, backbone, config, own_range=own_range)
        reached = getattr(backbone.model.config, "hylorada_range", None)
        record["position_range"] = reached or {"kind": "none", "from": backbone.trained_length}
        record["base"] = base_metrics(config, meter, backbone, prepared, model)
        record["parameters"] = {
            "total": parameter_count(model),
            "trainable": trained_numbers,
            "by_group": {"other": trained_numbers},
        }
        make_fast(model, meter.autocast)
        record["metrics"] = meter.measure_all(
            model, prepared, config.method.name, partial=directory / ".evaluation.partial"
        )


def _attach(folder: Path, backbone: Backbone, config: RunConfig, own_range: bool) -> Any:
    """Attach the adapter; a base whose range it does not extend itself is extended before."""
    if not own_range:
        position_range = config.method.position_range
        extend_range(
            backbone.model, config.length.max_length, position_range.learned_init,
            position_range.rope_type, position_range.rope_factor,
        )  # fmt: skip
    return attach_adapter(backbone.model, folder, config.model.path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
