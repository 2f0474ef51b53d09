"""How a run stands before it starts: done, to be continued, or not possible. Without torch.

Read from result.json and the state of the newest checkpoint, so that a sweep that is done, and a
command that cannot continue what lies in its directory, end within a second.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from hylorada import config as configs
from hylorada.config import RunConfig
from hylorada.data.files import is_litter
from hylorada.errors import ConfigError, DataError
from hylorada.loading.inputs import Described, Inputs
from hylorada.process.disk import disk_errors, refuse_unwritable
from hylorada.process.redaction import matches
from hylorada.records.checkpoint_files import read_file, steps_in
from hylorada.records.manifest import damage
from hylorada.records.result import JsonLines, parse_json, read_result
from hylorada.settings import check_splits
from hylorada.settings.fingerprint import IMPLIED, counted
from hylorada.settings.processes import check_dropout, check_parts, check_world

logger = logging.getLogger(__name__)

Record = dict[str, Any]


def already_done(config: RunConfig, directory: Path, inputs: Inputs | None = None) -> Record | None:
    """The record of a run that is done; None if it must run, or run again (resume=never).

    Args:
        config: the run's settings.
        directory: of the run.
        inputs: looks at what the run read; one may serve many runs.

    Raises:
        DataError: the run is done, but not on what lies there now, or what it left is damaged.
    """
    record = read_result(directory) if config.resume != "never" else None
    if record is None or record.get("status") != "ok":
        return None
    reason = damage(directory, record, weights=False)
    if reason:
        raise DataError(f"{reason}; restore it from a copy, or run again with resume=never")
    refuse_changed(record, config, directory, inputs)
    return record


def refuse_changed(
    record: Record, config: RunConfig, directory: Path, inputs: Inputs | None = None
) -> None:
    """Refuse to call done what was done on another text or other weights.

    Args:
        record: of a finished run.
        config: its settings.
        directory: where it lies.
        inputs: see `already_done`.

    Raises:
        DataError: naming what changed.
    """
    read = (record.get("provenance") or {}).get("inputs") or {}
    reason = (inputs or Inputs()).changed(read, config)
    if reason:
        raise DataError(
            f"{directory} is done, but {reason}; put it back, or run again with resume=never"
        )


def check_start(config: RunConfig, directory: Path, inputs: Inputs | None = None) -> None:
    """Refuse a start that the directory does not allow, before anything is loaded.

    Only looks: a damaged checkpoint is left to the run, which sets it aside.

    Args:
        config: the run's settings.
        directory: of the run; need not exist.
        inputs: see `already_done`.

    Raises:
        ConfigError: the newest checkpoint was made under other settings; the processes are more
            than a step has micro-batches, or would draw for dropout; the text's folder would be
            written to.
        DataError: resume=must, and there is no checkpoint; a checkpoint that cannot be read, that
            was made on another text or other weights, or whose lines are lost; a split that the
            data set never has.
        DiskError: the directory cannot be written.
    """
    check_splits(config)
    _check_folders(config)
    check_parts(config)
    check_dropout(config)
    if config.processes > 1:  # of one, whoever starts the others knows how many there are
        check_world(config, config.processes)
    refuse_unwritable(directory)
    if config.resume == "never":
        return
    checkpoints = directory / "checkpoints"
    newest = newest_state(checkpoints)
    refuse_unwritable(checkpoints)
    if newest is not None:
        check_continuation(newest, config, directory, inputs)
        return
    trains = config.method.trains
    if config.resume == "must" and trains and not any(checkpoints.glob("*step-*")):
        raise DataError(f"resume=must: {directory} has no checkpoint to continue from")


def _check_folders(config: RunConfig) -> None:
    """Refuse to write into a folder that is read as text, where a run would become documents."""
    dataset = config.dataset
    if dataset.kind != "local":
        return
    texts = Path(dataset.path).expanduser().resolve()
    places = {"output_root": config.output_root, "dataset.cache_dir": dataset.cache_dir}
    for key, value in places.items():
        place = Path(value).expanduser().resolve()
        if not value or not place.is_relative_to(texts):
            continue
        if not any(map(is_litter, place.relative_to(texts).parts)):  # hidden, so not read
            raise ConfigError(
                f"{key}={value} lies in dataset.path={dataset.path}, so what is written there "
                f"would be read as text; set {key} to a folder outside of it"
            )


def identity(config: RunConfig, inputs: Described, hardware: list[dict[str, str]]) -> Record:
    """What a checkpoint keeps of its run: settings, what was read, and what it ran on, in order.

    Args:
        config: the run's settings.
        inputs: what was read.
        hardware: kinds of device and precisions, the present ones last.
    """
    return {"config": configs.to_dict(config), "inputs": inputs, "hardware": hardware}


def check_continuation(
    state: Record, config: RunConfig, directory: Path, inputs: Inputs | None = None
) -> None:
    """A checkpoint is continued under its own settings, text and weights, or not at all.

    Args:
        state: of the checkpoint.
        config: that it is to be continued under.
        directory: of the run.
        inputs: see `already_done`.

    Raises:
        ConfigError: settings differ in what changes a number; the first are named.
        DataError: the text or the weights are others, or lines of the run are lost.
    """
    saved = state["identity"]
    settings = saved.get("config", saved)  # once they stood there alone
    before, now = counted(settings), counted(configs.to_dict(config))
    differing = [
        f"{key} was {before.get(key, IMPLIED.get(key))!r}, is {now.get(key, IMPLIED.get(key))!r}"
        for key in sorted(before | now)
        if not matches(before.get(key, IMPLIED.get(key)), now.get(key, IMPLIED.get(key)))
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise ConfigError(
            f"the checkpoint was made with other settings ({'; '.join(differing[:3])}{more}); "
            "restore them, use another directory, or start again with resume=never"
        )
    reason = (inputs or Inputs()).changed(saved.get("inputs") or {}, config)
    if reason:
        raise DataError(
            f"the run's inputs have changed since the checkpoint: {reason}; restore them, use "
            "another directory, or start again with resume=never"
        )
    for name in ("metrics", "timing"):
        JsonLines(directory / f"{name}.jsonl").refuse_shorter(
            state.get(f"{name}_bytes", 0), state.get(f"{name}_sha256")
        )


def check_hardware(
    state: Record | None, here: dict[str, str], config: RunConfig
) -> list[dict[str, str]]:
    """One run, one kind of device and one precision; or `resume_on=any`, and its record says so.

    Args:
        state: of the checkpoint that is continued, if one is.
        here: kind of device and precision of this process.
        config: the run's settings.

    Returns:
        What the run has run on, in order, the present last. Checkpoints of older versions do not
        say it.

    Raises:
        ConfigError: another kind of device or precision than that of the checkpoint.
    """
    before = list((state or {}).get("identity", {}).get("hardware") or [])
    if not before or before[-1] == here:
        return before or [here]
    was, now = (f"on {h['device']} in {h['precision']}" for h in (before[-1], here))
    if config.resume_on == "same":
        raise ConfigError(
            f"the checkpoint was made {was}, but this run would continue {now} and mix both in one "
            "record; continue where it was made, start again with resume=never, or allow it with "
            "resume_on=any"
        )
    logger.warning("made %s, continued %s: the record has numbers of both", was, now)
    return [*before, here]


def newest_state(checkpoints: Path) -> Record | None:
    """The state of the newest checkpoint that has one; nothing is verified or set aside.

    Raises:
        DataError: they are there and cannot be read.
    """
    for folder in reversed(steps_in(checkpoints)):
        try:
            state = parse_json(read_file(folder, "state.json"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            continue
        if isinstance(state, dict) and isinstance(state.get("identity"), dict):
            return state
    return None


def set_earlier_attempt_aside(directory: Path) -> None:
    """Make room for a fresh start without deleting anything: into `earlier-1/`, and so on."""
    kept = {".lock", ".lock-owner", ".hydra", "run.log"}
    found = [
        path
        for path in directory.iterdir()
        if path.name not in kept and not path.name.startswith("earlier-")
    ]
    if not found:
        return
    number = 1 + sum(1 for _ in directory.glob("earlier-*"))
    with disk_errors(directory):
        aside = directory / f"earlier-{number}"
        aside.mkdir()
        for path in found:
            path.rename(aside / path.name)
    logger.info("resume=never: the earlier attempt is in %s", aside)
