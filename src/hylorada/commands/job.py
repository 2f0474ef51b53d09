"""One cell of a command: its directory, its log, its settings on disk, and how it ended.

Hydra makes no directory and writes no file here: whatever can fail belongs to the cell, so that it
stops no other one, and what is written holds no secret.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from hylorada import compose
from hylorada.config import to_dict
from hylorada.errors import HyloradaError, Interrupted
from hylorada.process.beside import end_with, leave_terminal_group, outliving
from hylorada.process.disk import (
    exclusive,
    make_directory,
    replace_file,
    unforeseen_disk_error,
)
from hylorada.process.log import log_file
from hylorada.process.place import place
from hylorada.process.redaction import redacted, remember
from hylorada.process.terminal import lasting_terminal, silent_terminal
from hylorada.records.result import RESULT
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

    As one of several processes of a run (torchrun, a task of SLURM) that is not the first, it
    writes nothing there.

    Raises:
        Stopped: with the exit code and the message of an `Interrupted`.
    """
    config = compose.to_typed(cfg)
    remember(to_dict(config))
    name, directory = run_name(config), Path(run_dir(config))
    at = place()
    if at.by_agent:  # which dies of some signals without a word: save then, rather than go on
        end_with(os.getppid(), signal.SIGTERM)
    try:
        if not at.is_first:
            from hylorada.runner.run import run

            run(config, directory, held=True)
            return Outcome(name, 0)
        # Held before anything is written: what another process is running here stays as it is.
        with (
            exclusive(directory),
            log_file(directory / "run.log", logging.getLogger()) as log,
        ):
            try:
                _save_settings(cfg, directory)
                from hylorada.runner.run import run

                run(config, directory, held=True)
            except BaseException as error:
                log(error)
                raise
    except Interrupted as stop:
        raise Stopped(stop.exit_code, str(stop)) from stop
    except HyloradaError as error:
        return Outcome(name, error.exit_code, _with_record(str(error), directory))
    except (Exception, SystemExit) as error:
        known = unforeseen_disk_error(error, directory)
        if known is not None:
            return Outcome(name, known.exit_code, _with_record(str(known), directory))
        return Outcome(
            name,
            1,
            f"{type(error).__name__}: {error} (a bug in hylorada; the traceback is in "
            f"{directory / 'run.log'})",
        )
    return Outcome(name, 0)


def _with_record(message: str, directory: Path) -> str:
    """The message, and where more is known: the record of a run that got so far as to leave one."""
    path = directory / RESULT
    return f"{message} (its record: {path})" if path.is_file() else message


_stopped: list[Outcome] = []  # in a process of a launcher: the cell that a signal ended


@dataclass(frozen=True)
class JobBeside:
    """`run_job` in one of several processes on one machine.

    The terminal belongs to the command that started them, which shows all cells; what this one says
    is in its run.log. A signal ends the cell, and the process begins no other one.

    Attributes:
        threads: of torch, where the settings leave them open: a share of the machine.
    """

    threads: int

    def __call__(self, cfg: DictConfig) -> Outcome:
        """One run in its directory."""
        config = compose.to_typed(cfg)
        if _stopped:
            return Outcome(run_name(config), _stopped[0].exit_code, "not begun: a signal came")
        leave_terminal_group()
        with outliving(os.getppid()), silent_terminal():
            if not config.threads:
                import torch

                torch.set_num_threads(self.threads)
            try:
                return run_job(cfg)
            except Stopped as stop:
                _stopped.append(Outcome(run_name(config), *stop.args))
                return _stopped[0]


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
