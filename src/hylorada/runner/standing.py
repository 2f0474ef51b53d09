"""How a run stands before it starts: done, to be continued, or not possible. Without torch.

Read from result.json and the state of the newest checkpoint, so that a sweep that is done, and a
command that cannot continue what lies in its directory, end within a second.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from hylorada import config as configs
from hylorada.config import RunConfig
from hylorada.disk import disk_errors, refuse_unwritable
from hylorada.errors import ConfigError, DataError
from hylorada.identity import IMPLIED
from hylorada.redaction import matches
from hylorada.runner.record import read_result
from hylorada.validation import check_splits

logger = logging.getLogger(__name__)

Record = dict[str, Any]


def already_done(config: RunConfig, directory: Path) -> Record | None:
    """The record of a run that is done; None if it must run, or run again (resume=never).

    Args:
        config: the run's settings.
        directory: of the run.
    """
    record = read_result(directory) if config.resume != "never" else None
    return record if record is not None and record.get("status") == "ok" else None


def check_start(config: RunConfig, directory: Path) -> None:
    """Refuse a start that the directory does not allow, before anything is loaded.

    Only looks: a checkpoint that cannot be read is left to the run, which sets it aside.

    Args:
        config: the run's settings.
        directory: of the run; need not exist.

    Raises:
        ConfigError: the newest checkpoint was made under other settings.
        DataError: resume=must, and there is no checkpoint; a split that the data set never has.
        DiskError: the directory cannot be written.
    """
    check_splits(config)
    refuse_unwritable(directory)
    if config.resume == "never":
        return
    checkpoints = directory / "checkpoints"
    newest = _newest_state(checkpoints)
    if newest is not None:
        check_continuation(newest, configs.to_dict(config))
        return
    trains = config.method.lora.enabled
    if config.resume == "must" and trains and not any(checkpoints.glob("*step-*")):
        raise DataError(f"resume=must: {directory} has no checkpoint to continue from")


def check_continuation(state: Record, settings: Record) -> None:
    """A checkpoint is continued under its own settings; the first differences are named.

    Args:
        state: of the checkpoint.
        settings: that it is to be continued under, as in a record.

    Raises:
        ConfigError: they differ in what changes a number.
    """
    before, now = configs.counted(state["identity"]), configs.counted(settings)
    differing = [
        f"{key} was {before.get(key, IMPLIED.get(key))!r}, is {now.get(key, IMPLIED.get(key))!r}"
        for key in sorted(before | now)
        if not matches(before.get(key, IMPLIED.get(key)), now.get(key, IMPLIED.get(key)))
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise ConfigError(
            f"the checkpoint was made under other settings ({'; '.join(differing[:3])}{more}); "
            "use another directory, put them back, or start again with resume=never"
        )


def _newest_state(checkpoints: Path) -> Record | None:
    """The state of the newest checkpoint that can be read; nothing is verified or set aside."""
    for folder in sorted(checkpoints.glob("step-*"), reverse=True):
        try:
            state = json.loads((folder / "state.json").read_bytes())
        except (OSError, ValueError):
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
