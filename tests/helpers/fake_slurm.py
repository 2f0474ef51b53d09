"""The programs of SLURM that submitit and a job call, on one machine and without a queue.

Written from SLURM's manual pages: sbatch starts the script of a job, each member of an array after
the other; srun its tasks, with the variables that they find; `scontrol requeue` ends the tasks by
SIGTERM and starts the same job again, or refuses; sacct tells states. This file is all of them: it
is what it is called as, by links that `fake_slurm` makes.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

FIRST_JOB = 4711
HERE = Path(os.environ.get("FAKE_SLURM", ""))


def fake_slurm(folder: Path, *, requeues: bool = True) -> dict[str, str]:
    """The environment in which these programs are SLURM's; what they note lies in `folder`."""
    programs, state = folder / "programs", folder / "state"
    for each in (programs, state):
        each.mkdir(parents=True)
    for name in ("sbatch", "srun", "scontrol", "sacct"):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {__file__} {name} "$@"\n')
        program.chmod(0o755)
    if not requeues:
        (state / "refuses").touch()
    return {"PATH": f"{programs}:{os.environ['PATH']}", "FAKE_SLURM": str(state)}


def tasks_of(folder: Path, job: str, attempt: int = 0) -> list[int]:
    """Process ids of the tasks of a job, by rank; empty before they are started."""
    with contextlib.suppress(OSError):
        return [int(x) for x in (folder / "state" / f"{job}.{attempt}").read_text().split()]
    return []


def _sbatch(script: str) -> int:
    """Give the job a number and start what runs it, which outlives this."""
    number = FIRST_JOB + 100 * len(list(HERE.glob("*.script")))
    (HERE / f"{number}.script").write_text(Path(script).read_text())
    for name in _names(number):
        _is(name, "PENDING")
    subprocess.Popen(
        [sys.executable, "-S", "-E", __file__, "run", str(number)], start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    sys.stdout.write(f"Submitted batch job {number}\n")
    return 0


def _asked(number: int) -> dict[str, str]:
    """The `#SBATCH --key=value` lines of a job."""
    text = (HERE / f"{number}.script").read_text()
    return dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", text, re.M))


def _names(number: int) -> list[str]:
    """Of a job, or of each member of an array."""
    last = re.match(r"0-(\d+)", _asked(number).get("array", "").strip("'"))
    return [str(number)] if last is None else [f"{number}_{i}" for i in range(int(last[1]) + 1)]


def _run(number: str) -> int:
    """All of a job to its end, started again as often as it was asked for."""
    asked = _asked(int(number))
    tasks = int(asked.get("nodes", 1)) * int(asked.get("ntasks-per-node", 1))
    for place, name in enumerate(_names(int(number))):
        variables = {
            "SLURM_JOB_ID": str(int(number) + place), "SLURM_NTASKS": str(tasks),
            "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "localhost", "FAKE_NAME": name,
        }  # fmt: skip
        if "_" in name:
            variables |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": str(place)}
        attempt = 0
        while True:
            variables["FAKE_ATTEMPT"] = str(attempt)
            if attempt:
                variables["SLURM_RESTART_COUNT"] = str(attempt)
            _is(name, "RUNNING")
            script = ["bash", str(HERE / f"{number}.script")]
            code = subprocess.run(script, env={**os.environ, **variables}, check=False).returncode
            if not (HERE / f"{name}.again").exists():
                break
            (HERE / f"{name}.again").unlink()
            attempt += 1
        _is(name, "FAILED" if code else "COMPLETED")
    return 0


def _is(name: str, state: str) -> None:
    """Note the state of a job, which another process reads before or after, and never half."""
    part = HERE / f"{name}.new"
    part.write_text(state)
    part.rename(HERE / f"{name}.state")


def _srun(*words: str) -> int:
    """The tasks of the job's step; returns the largest exit code, when all have ended."""
    streams, rest = {}, list(words)
    while rest[0].startswith("--"):
        option = rest.pop(0)
        if option in ("--output", "--error"):
            streams[option] = rest.pop(0)
    count, name = int(os.environ["SLURM_NTASKS"]), os.environ["FAKE_NAME"]
    job, _, member = name.partition("_")
    started = []
    for rank in range(count):
        variables = {
            "SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": 0, "SLURM_STEP_ID": 0,
            "SLURM_STEP_NUM_TASKS": count, "SLURM_STEP_TASKS_PER_NODE": count,
            "SLURM_STEP_NODELIST": "localhost",
        }  # fmt: skip
        env = {**os.environ, **{key: str(value) for key, value in variables.items()}}
        out, err = (
            Path(streams[option].replace("%j", name).replace("%t", str(rank)).replace("%A", job)
                 .replace("%a", member))
            for option in ("--output", "--error")
        )  # fmt: skip
        with out.open("ab") as stdout, err.open("ab") as stderr:
            started.append(subprocess.Popen(rest, env=env, stdout=stdout, stderr=stderr))
    noted = HERE / f"{name}.{os.environ['FAKE_ATTEMPT']}"
    noted.with_suffix(".part").write_text(" ".join(str(task.pid) for task in started))
    noted.with_suffix(".part").rename(noted)
    return max(abs(task.wait()) for task in started)


def _scontrol(*words: str) -> int:
    """`requeue JOB`: end it now and start it again; which job that is, SLURM knows by itself."""
    with (HERE / "scontrol").open("a") as file:
        file.write(" ".join(words) + "\n")
    if (HERE / "refuses").exists():
        sys.stderr.write("Requested operation is presently disabled\n")
        return 1
    _, name = words
    (HERE / f"{name}.again").touch()
    for pid in (HERE / f"{name}.{os.environ['FAKE_ATTEMPT']}").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGCONT)
            os.kill(int(pid), signal.SIGTERM)
    time.sleep(0.1)
    return 0


def _sacct(*_words: str) -> int:
    sys.stdout.write("JobID|State|NodeList\n")
    for path in HERE.glob("*.state"):
        sys.stdout.write(f"{path.stem}|{path.read_text()}|localhost\n")
    return 0


PROGRAMS = {
    "sbatch": _sbatch, "srun": _srun, "scontrol": _scontrol, "sacct": _sacct, "run": _run,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(PROGRAMS[sys.argv[1]](*sys.argv[2:]))
