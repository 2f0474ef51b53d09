"""A job of SLURM whose time is nearly over is put back into the queue, to go on where it stopped.

SLURM sends a signal some time before the limit, if it was asked to (`sbatch --signal=USR1@120`;
submitit, by which `launcher=slurm` starts jobs, asks for SIGUSR2). The run saves and ends; here
SLURM is told to start the same job again.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess

from hylorada.errors import in_one_line

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)
_SECONDS = 30  # that scontrol may take


def is_asked_for(signal_number: int) -> bool:
    """Whether this is a job of SLURM, and the signal the one before the end of its time."""
    return signal_number in SIGNALS and bool(_job())


def requeue(signal_number: int) -> bool:
    """Ask SLURM to start this job again, if `is_asked_for`.

    What fails is a warning: the run is saved, and the same command continues it.

    Returns:
        whether SLURM does it.
    """
    if not is_asked_for(signal_number):
        return False
    job = _job()
    words = ["scontrol", "requeue", job]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=_SECONDS, check=False,
            stdin=subprocess.DEVNULL, errors="replace",
        )  # fmt: skip
        reason = " ".join(done.stderr.split())[:200] if done.returncode else None
    except (OSError, subprocess.SubprocessError) as error:
        reason = in_one_line(error, 200)
    if reason is None:
        logger.info("SLURM starts job %s again (%s)", job, " ".join(words))
        return True
    logger.warning(
        "%s failed (%s); the run is saved, submit the same command again", " ".join(words), reason
    )
    return False


def _job() -> str:
    """The number of this job, with that of its place where it is one of an array; else empty."""
    array, place = (os.environ.get(f"SLURM_ARRAY_{x}_ID", "") for x in ("JOB", "TASK"))
    return f"{array}_{place}" if array and place else os.environ.get("SLURM_JOB_ID", "")
