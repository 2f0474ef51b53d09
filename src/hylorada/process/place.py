"""Which of the processes of one run this is, by the environment that its starter made. No torch.

torchrun, torch's elastic agent and whoever follows them set RANK and WORLD_SIZE; SLURM sets
SLURM_PROCID in each task of a step, submitit's local executor a number of its own. A script of
sbatch that was not started by srun is one process, however many tasks the job asked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from hylorada.errors import ConfigError


@dataclass(frozen=True)
class Place:
    """One process among those of a run.

    Attributes:
        rank: its number, from 0.
        world: how many there are.
        local_rank: its number on its machine, from 0.
        local_world: how many there are on its machine.
        address: host of the first one; empty where there is one process.
        port: that it listens at.
        attempt: times that an agent has started all of them anew.
        by_agent: whether torch's elastic agent started it, whose death is to be its own.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    address: str = ""
    port: int = 0
    attempt: int = 0
    by_agent: bool = False

    @property
    def is_first(self) -> bool:
        """Whether it writes and decides for all."""
        return self.rank == 0


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """The place of this process.

    Raises:
        ConfigError: the environment names a place that there cannot be, or no address to meet at.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        found = _of_torchrun(environment)
    elif "SLURM_PROCID" in environment and _number(environment, "SLURM_STEP_NUM_TASKS", 1) > 1:
        found = _of_slurm(environment)
    elif _number(environment, "SUBMITIT_LOCAL_NTASKS", 1) > 1:  # `launcher=submitit_local`
        rank, world = (_number(environment, f"SUBMITIT_LOCAL_{x}") for x in ("GLOBALID", "NTASKS"))
        port = _port(_number(environment, "SUBMITIT_LOCAL_JOB_ID", 0))
        found = Place(rank, world, rank, world, "127.0.0.1", port)
    else:
        _refuse_half_a_place(environment)
        return Place()
    if not 0 <= found.rank < found.world or not 0 <= found.local_rank < found.local_world:
        raise ConfigError(
            f"the environment says process {found.rank} of {found.world}, "
            f"{found.local_rank} of {found.local_world} on this machine, which is impossible; "
            "check RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE (SLURM: SLURM_PROCID)"
        )
    return found if found.world > 1 else Place()


def _refuse_half_a_place(environment: Mapping[str, str]) -> None:
    """Each of several processes would take itself for the only one."""
    for key, least, other in (("WORLD_SIZE", 2, "RANK"), ("RANK", 1, "WORLD_SIZE")):
        if _number(environment, key, 0) >= least:
            raise ConfigError(
                f"{key}={environment[key]} without {other}: it is unclear whether this is one of "
                f"several processes; unset {key} for a single process, or start several with "
                "torchrun or processes=N"
            )


def _of_torchrun(environment: Mapping[str, str]) -> Place:
    rank, world = (_number(environment, key) for key in ("RANK", "WORLD_SIZE"))
    if world > 1 and not (environment.get("MASTER_ADDR") and environment.get("MASTER_PORT")):
        raise ConfigError(
            f"WORLD_SIZE={world} is set without MASTER_ADDR and MASTER_PORT, through which the "
            "processes connect; start them with torchrun, or with processes=N on one machine"
        )
    return Place(
        rank,
        world,
        _number(environment, "LOCAL_RANK", rank),
        _number(environment, "LOCAL_WORLD_SIZE", world),
        environment.get("MASTER_ADDR", ""),
        _number(environment, "MASTER_PORT", 0),
        _number(environment, "TORCHELASTIC_RESTART_COUNT", 0),
        "TORCHELASTIC_RUN_ID" in environment,
    )


def _of_slurm(environment: Mapping[str, str]) -> Place:
    rank, world = (_number(environment, key) for key in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"))
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "")
    return Place(
        rank,
        world,
        _number(environment, "SLURM_LOCALID", 0),
        _tasks_here(environment, world),
        environment.get("MASTER_ADDR") or first_host(nodes) or "127.0.0.1",
        _number(environment, "MASTER_PORT", 0)
        or _port(_number(environment, "SLURM_JOB_ID", 0), _number(environment, "SLURM_STEP_ID", 0)),
        _number(environment, "SLURM_RESTART_COUNT", 0),
    )


def _port(job: int, step: int = 0) -> int:
    """One for each step of each job, among those that no system hands out by itself."""
    return 15000 + (job * 7 + step) % 15000


def _tasks_here(environment: Mapping[str, str], world: int) -> int:
    """Tasks on this node: of "2(x3),1" the part that belongs to it."""
    counts: list[int] = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", str(world)).split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if found is None:
            return world
        counts += [int(found[1])] * int(found[2] or 1)
    node = _number(environment, "SLURM_NODEID", 0)
    return counts[node] if node < len(counts) else world


def first_host(nodes: str) -> str:
    """The first of a list of hosts as SLURM writes it: of "gpu[03-05,9],login" it is gpu03."""
    found = re.match(r"([^,\[]*)(?:\[([^\]]*)\]([^,]*))?", nodes)
    if found is None or found[2] is None:
        return nodes.partition(",")[0]
    return f"{found[1]}{re.split('[-,]', found[2])[0]}{found[3]}"


def _number(environment: Mapping[str, str], key: str, default: int | None = None) -> int:
    text = environment.get(key, "")
    if not text and default is not None:
        return default
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"{key}={text!r} in the environment is not a number") from error
