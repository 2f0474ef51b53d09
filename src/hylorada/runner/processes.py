"""A run of several processes: what each of them does, and which settings they cannot have.

The first one writes and reports; the others help it to compute.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hylorada.config import RunConfig
from hylorada.errors import ConfigError, HyloradaError, Interrupted
from hylorada.process.ranks import Ranks
from hylorada.process.terminal import silent_terminal
from hylorada.records.result import RESULT, blank_result, write_result
from hylorada.runner.earlier_attempt import check_continuation
from hylorada.settings.processes import check_world
from hylorada.training.checkpoint import Checkpoint, load_newest, of_first
from hylorada.training.recomputation import draws

logger = logging.getLogger(__name__)


@contextmanager
def own_directory(ranks: Ranks, directory: Path) -> Iterator[Path]:
    """Where this process of a run works: the first one in the run's directory.

    The others have one of their own, which is removed, and nothing that they say is shown; what
    ends them reaches the first one (`Ranks.telling`).
    """
    if ranks.is_first:
        yield directory
        return
    # In the agent's folder, which is removed also where this process can do nothing any more.
    beside = os.environ.get("TORCHELASTIC_ERROR_FILE")
    within = Path(beside).parent if beside and Path(beside).parent.is_dir() else None
    with (
        tempfile.TemporaryDirectory(prefix="hylorada-rank-", dir=within) as folder,
        silent_terminal(),
    ):
        yield Path(folder)


@contextmanager
def failure_recorded(config: RunConfig, directory: Path) -> Iterator[None]:
    """Write the record of a run whose processes ended before any of them could write it."""
    before = _written(directory)
    try:
        yield
    except (HyloradaError, RuntimeError) as error:
        if _written(directory) == before:
            record = blank_result(config)
            record["status"] = "interrupted" if isinstance(error, Interrupted) else "failed"
            record["error"] = str(error)
            write_result(directory, record)
        raise


def _written(directory: Path) -> int | None:
    """When the record was written; None if there is none."""
    with suppress(OSError):
        return (directory / RESULT).stat().st_mtime_ns
    return None


def check_processes(config: RunConfig, ranks: Ranks) -> None:
    """Refuse a number of processes that does not fit the settings.

    Raises:
        ConfigError: `processes` says another number, or some would have no micro-batch, or no
            part of a sequence.
    """
    if ranks.world > 1 and config.processes not in (1, ranks.world):
        raise ConfigError(
            f"processes={config.processes}, but {ranks.world} were started (RANK and WORLD_SIZE, "
            "or SLURM's tasks); leave processes at 1 to use those that were started"
        )
    check_world(config, ranks.world)


def refuse_draws(model: nn.Module, autocast: torch.dtype | None, ranks: Ranks) -> None:
    """Refuse to train a model that draws random numbers, as for dropout, on several processes.

    Raises:
        ConfigError: each process would draw its own, and their number would change the results.
    """
    if ranks.world > 1 and draws(model, autocast):
        raise ConfigError(
            f"{ranks.world} processes: the method draws random numbers in training (dropout), and "
            "each process would draw its own; set its dropout to 0, or train on one process"
        )


def newest_checkpoint(config: RunConfig, directory: Path, ranks: Ranks) -> Checkpoint | None:
    """What the run is continued from; `check_start` may have looked at one that is damaged.

    The first process reads it, and sets damaged ones aside.
    """
    found: list[Checkpoint] = []

    def read() -> bool:
        checkpoint = load_newest(directory / "checkpoints")
        if checkpoint is None:
            return False
        check_continuation(checkpoint.state, config, directory)
        logger.info("continuing from step %d (%s)", checkpoint.state["step"], checkpoint.path)
        found.append(checkpoint)
        return True

    if not config.method.trains or not ranks.decided(read):
        return None
    return of_first(found[0] if found else None, ranks)


def as_rank(config: RunConfig, ranks: Ranks) -> RunConfig:
    """The settings that this process tracks by: the first one mirrors the numbers."""
    if ranks.is_first:
        return config
    return dataclasses.replace(config, track=dataclasses.replace(config.track, kind="off"))


def of_processes(ranks: Ranks) -> dict[str, Any]:
    """For the provenance of a record: how many there are, and on which hosts."""
    if ranks.world == 1:
        return {}
    return {"processes": {"world": ranks.world, "hosts": list(dict.fromkeys(ranks.hosts))}}
