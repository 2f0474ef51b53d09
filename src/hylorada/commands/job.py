"""One cell of a command: its directory, its log, its settings on disk, and how it ended.

Hydra makes no directory and writes no file here: whatever can fail belongs to the cell, so that it
stops no other one, and what is written holds no secret.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from hylorada import compose
from hylorada.config import to_dict
from hylorada.errors import HyloradaError, Interrupted
from hylorada.process.disk import disk_error, make_directory, replace_file
from hylorada.process.log import log_file
from hylorada.process.redaction import redacted, remember
from hylorada.process.terminal import lasting_terminal
from hylorada.settings.fingerprint import run_dir, run_name

# Given to Hydra in place of a run's directory, which it would make by itself.
NOWHERE = "."


@dataclass
class Outcome:
    """How a job ended; what a launcher in another process sends back."""

    name: str
    exit_code: int
    message: str = ""


class Stopped(BaseException):
    """A signal ended a job: not an Exception, so that Hydra starts no further cell."""


@lasting_terminal()
def run_job(cfg: DictConfig) -> Outcome:
    """One run in its directory. Failures return, so that a sweep goes on.

    Raises:
        Stopped: with the exit code and the message of an `Interrupted`.
    """
    config = compose.to_typed(cfg)
    remember(to_dict(config))
    name, directory = run_name(config), Path(run_dir(config))
    try:
        make_directory(directory)
        with log_file(directory / "run.log", logging.getLogger()) as log:
            try:
                _save_settings(cfg, directory)
                from hylorada.runner.run import run

                run(config, directory)
            except BaseException as error:
                log(error)
                raise
    except Interrupted as stop:
        raise Stopped(stop.exit_code, str(stop)) from stop
    except HyloradaError as error:
        return Outcome(name, error.exit_code, str(error))
    except (Exception, SystemExit) as error:
        known = disk_error(error, directory)
        if known is not None:
            return Outcome(name, known.exit_code, str(known))
        return Outcome(
            name,
            1,
            f"{type(error).__name__}: {error} (a bug in hylorada; the traceback is in "
            f"{directory / 'run.log'})",
        )
    return Outcome(name, 0)


def _save_settings(cfg: DictConfig, directory: Path) -> None:
    """`.hydra/`, as Hydra writes it."""
    settings = HydraConfig.instance().cfg
    assert settings is not None
    own = cast("dict[str, Any]", OmegaConf.to_container(settings))
    remember(own["hydra"]["job"])  # env_set
    own["hydra"]["runtime"]["output_dir"] = str(directory.absolute())
    folder = directory / ".hydra"
    make_directory(folder)
    for name, tree in (
        ("config.yaml", OmegaConf.to_container(cfg)),
        ("hydra.yaml", {"hydra": own["hydra"]}),
        ("overrides.yaml", own["hydra"]["overrides"]["task"]),
    ):
        text = OmegaConf.to_yaml(_unread(redacted(tree)))
        replace_file(folder / name, text.encode(errors="backslashreplace"))


def _unread(tree: Mapping[str, Any] | list[Any]) -> Any:
    return OmegaConf.create(cast("dict[str, Any]", tree))
