"""Cells as jobs of a queue (SLURM, by submitit): how each ends, told to the command that waits."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator

from omegaconf import DictConfig

from hylorada import compose
from hylorada.commands.job import Outcome, Stopped, run_job
from hylorada.errors import ConfigError, Interrupted, PeerError, in_one_line
from hylorada.settings.fingerprint import run_name


def is_queue(launcher: DictConfig) -> bool:
    """Whether cells are jobs of a queue, which run on other machines, or as if they did."""
    return "submitit" in launcher._target_


def tasks_of(launcher: DictConfig) -> int:
    """Processes that it starts for each cell."""
    return int(launcher.nodes or 1) * int(launcher.tasks_per_node or 1)


def run_queued(cfg: DictConfig) -> Outcome:
    """`run_job` as a task of a job.

    A signal ends it with an outcome; but where the queue starts the job again there is none yet,
    and who waits for one goes on waiting.
    """
    try:
        return run_job(cfg)
    except Stopped as stop:
        interrupted = stop.__cause__
        if isinstance(interrupted, Interrupted) and interrupted.requeued:
            raise
        code, message = stop.args
        return Outcome(run_name(compose.to_typed(cfg)), code, message)


@contextlib.contextmanager
def queued(launcher: DictConfig) -> Iterator[None]:
    """What a queue does not take, and a job that ends without a word, are errors of one line.

    Raises:
        ConfigError: there is no SLURM here, or it refuses the jobs.
        PeerError: a job was killed; those of other cells go on.
    """
    from submitit.core.utils import FailedSubmissionError, UncompletedJobError

    if launcher._target_.endswith("SlurmLauncher"):
        for program in ("sbatch", "srun", "sacct"):
            if shutil.which(program) is None:
                raise ConfigError(
                    f"launcher=slurm: there is no {program} on this machine; start the command "
                    "where SLURM is, or use launcher=processes"
                )
    try:
        yield
    except FailedSubmissionError as error:
        reason = in_one_line(error, 300)
        raise ConfigError(
            f"the queue refused the jobs ({reason}); check the settings below hydra.launcher"
        ) from error
    except UncompletedJobError as error:
        told = str(error)
        job, state = (re.search(p, told) for p in (r"Job (\S+)", r"\(state: (\w+)\)"))
        raise PeerError(
            f"job {job[1] if job else '?'} ended without a result ({state[1] if state else '?'}); "
            "jobs of other cells continue; repeat the command to finish the rest"
        ) from error
