"""`launcher=slurm` by the whole command, with SLURM's programs as `fake_slurm` has them.

Everything of ours, Hydra's and submitit's is real: the script of the job, its two tasks, the
results that come back. No SLURM was at hand: that it behaves so is its manual's word.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from helpers.fake_slurm import FIRST_JOB, fake_slurm, tasks_of
from helpers.many_processes import (
    ended,
    gone,
    left_by,
    run_directory,
    train,
    wait_until,
    words,
)
from helpers.marks import LONG, SLOW, thinned
from helpers.tiny_runs import make_model_folder, make_texts, result

from hylorada import cli

pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="SLURM is for Linux")

JOB = str(FIRST_JOB)
TWO_TASKS = ["-m", "launcher=slurm", "hydra.launcher.tasks_per_node=2"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    make_model_folder(folder / "model")
    make_texts(folder / "texts")
    return folder


@pytest.fixture(scope="module")
def alone(root):
    """What one process leaves."""
    return here(root, root / "alone")


def here(root: Path, output: Path, *more: str):
    """What the command leaves, in this process, which has imported everything."""
    assert cli.train(words(root, output, *more)) == 0
    return left_by(run_directory(output))


def submitted(root: Path, output: Path, number: int = 0, *, requeues: bool = True):
    """Run the command that submits; both tasks get the signal, if any, after their third step."""
    slurm = fake_slurm(output / "slurm", requeues=requeues)
    if number:
        slurm["HYLORADA_FAULT"] = f"after_step:3:{signal.Signals(number).name}"
    process = train(
        [*TWO_TASKS, *words(root, output, "seed=0")], output / "log",
        GLOO_SOCKET_IFNAME="lo", **slurm,
    )  # fmt: skip
    return ended(process), output / "slurm", (output / "log").read_text()


@pytest.mark.parametrize(
    ("number", "named"),
    thinned(
        [(signal.SIGUSR2, "USR2"), (signal.SIGUSR1, "USR1"), (0, "")], 3, often=SLOW, seldom=LONG
    ),
)
def test_a_job_of_two_tasks_is_put_back_into_the_queue_and_leaves_the_bytes_of_one_process(
    root, alone, tmp_path, number, named
):
    """Before its time is over SLURM sends the signal that the script asks for, USR2."""
    code, slurm, said = submitted(root, tmp_path, number)
    assert code == 0, said
    script = (slurm / "state" / f"{JOB}.script").read_text()
    assert "#SBATCH --ntasks-per-node=2\n" in script
    assert "#SBATCH --signal=USR2@120\n" in script
    directory = run_directory(tmp_path)
    log = (directory / "run.log").read_text()
    if number:
        assert (slurm / "state" / "scontrol").read_text() == f"requeue {JOB}\n"
        assert len(tasks_of(slurm, JOB, 1)) == 2
        assert f"stopped by SIG{named}" in log
        assert "continuing from step" in log
    else:
        assert not (slurm / "state" / "scontrol").exists()
    tasks = [pid for attempt in (0, 1) for pid in tasks_of(slurm, JOB, attempt)]
    wait_until(lambda: all(gone(pid) for pid in tasks))  # the result is there before they are gone
    assert left_by(directory) == alone
    told = result(directory)["provenance"]["processes"]
    assert told["world"] == 2
    assert said.count(f"{directory}\n") == 1
    assert "1 cell: 1 run, 0 done already, 0 failed" in said
    assert "Traceback" not in said


@pytest.mark.long
def test_a_queue_that_does_not_start_it_again_is_one_line_and_the_same_command_goes_on(
    root, alone, tmp_path
):
    code, _, said = submitted(root, tmp_path, signal.SIGUSR2, requeues=False)
    assert code == 128 + signal.SIGUSR2, said
    assert "stopped by SIGUSR2; run the same command again to continue" in said
    assert "Traceback" not in said
    directory = run_directory(tmp_path)
    log = (directory / "run.log").read_text()
    assert f"scontrol requeue {JOB} failed (Requested operation is presently disabled)" in log
    assert result(directory)["status"] == "interrupted"
    assert here(root, tmp_path) == alone


@pytest.mark.long
def test_a_job_that_ends_without_a_word_is_one_line(root, alone, tmp_path):
    code, _, said = submitted(root, tmp_path, signal.SIGKILL)
    assert code == 8, said
    assert f"job {JOB} ended without a result (FAILED)" in said
    assert "Traceback" not in said
    assert here(root, tmp_path) == alone


@pytest.mark.slow
def test_where_there_is_no_slurm_nothing_is_submitted(root, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.train([*TWO_TASKS, *words(root, tmp_path, "seed=0")]) == 2
    (line,) = (x for x in capfd.readouterr().err.splitlines() if x.startswith("hylorada-train: "))
    assert "launcher=slurm: there is no sbatch on this machine" in line


@pytest.mark.slow
def test_a_plan_is_of_each_task(root, tmp_path, capfd):
    more = ["hydra.launcher.nodes=2", "seed=0,1", "device=cuda", "dry_run=true"]
    assert cli.train([*TWO_TASKS, *words(root, tmp_path, *more)]) == 0
    *lines, total = capfd.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all("MiB in each of 4 processes; assumed: a GPU" in line for line in lines)
    assert total.endswith(" MiB in all processes")
    assert cli.train([*TWO_TASKS, *words(root, tmp_path, *more, "sequence_ranks=3")]) == 2
    assert "does not divide the number of processes, 4" in capfd.readouterr().err
