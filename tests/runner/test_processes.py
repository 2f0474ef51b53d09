"""`processes=N`, torchrun and SLURM, by commands: the bytes of one process, signals, exit codes.

What does not depend on who starts the processes is in `test_ranks_of_a_run.py`, more quickly.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from helpers.many_processes import (
    EVALUATE,
    TRAIN,
    ended,
    finished_by_command,
    free_port,
    gone,
    left_by,
    lines,
    ranks_of,
    run_directory,
    start,
    train,
    wait_until,
    words,
)
from helpers.marks import LONG, SLOW, on_request, slow, thinned
from helpers.tiny_runs import make_model_folder, make_texts, outcome, result
from helpers.two_hosts import two_hosts

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    make_model_folder(folder / "model")
    make_texts(folder / "texts")
    return folder


@pytest.fixture(scope="module")
def alone(root):
    """What one process leaves."""
    return finished_by_command(root, root / "alone")


@pytest.mark.parametrize("processes", [*on_request(2), *slow(3)])
def test_their_number_changes_no_byte(root, alone, tmp_path, processes):
    """Three have two, one and one of the four micro-batches of a step."""
    assert finished_by_command(root, tmp_path, f"processes={processes}") == alone
    directory = run_directory(tmp_path)
    told = result(directory)["provenance"]["processes"]
    assert (told["world"], len(told["hosts"])) == (processes, 1)
    assert sorted(p.name for p in directory.glob(".*")) == [".hydra", ".lock"]
    # Done is done, and says so, with another number too.
    before = (directory / "result.json").read_bytes()
    process = train(words(root, tmp_path, "processes=4"), tmp_path / "again")
    assert ended(process) == 0
    assert "done already" in (tmp_path / "again").read_text()
    assert (directory / "result.json").read_bytes() == before


@pytest.mark.long
def test_nor_where_nothing_trains_and_all_is_measured(root, tmp_path):
    records = []
    for processes in (1, 2, 3):
        output = tmp_path / str(processes)
        output.mkdir()
        more = ["method=baseline", f"processes={processes}"]
        kept = [w for w in words(root, output) if not w.startswith(("method", "train."))]
        process = train([*kept, *more, "eval.perplexity.max_blocks=0"], output / "log")
        assert ended(process) == 0, (output / "log").read_text()
        records.append(result(run_directory(output)))
    one, *others = records
    for other in others:
        assert (other["metrics"], other["base"]) == (one["metrics"], one["base"])


@pytest.mark.long
def test_nor_where_a_finished_run_is_measured_again(root, alone, tmp_path):
    found = []
    for processes in ("1", "2"):
        shutil.copytree(root / "alone", tmp_path / processes)
        directory = run_directory(tmp_path / processes)
        asked = ["eval.perplexity.max_blocks=5", "eval.context_gain.enabled=true",
                 "eval.context_gain.contexts=[8,32]", "eval.context_gain.targets=16",
                 "eval.context_gain.places=5"]  # fmt: skip
        process = start(
            [sys.executable, "-c", EVALUATE, f"run={directory}", *asked, f"processes={processes}"],
            tmp_path / f"log-{processes}",
        )
        assert ended(process) == 0, (tmp_path / f"log-{processes}").read_text()
        record = result(directory)
        (entry,) = record["evaluations"]
        assert entry["provenance"].get("processes", {}).get("world", 1) == int(processes)
        found.append((record["metrics"], record["base"], outcome(directory)))
    assert "context_gain/gain" in found[0][0]
    assert found[0] == found[1]


@pytest.mark.parametrize("rank", on_request(0, 1))
def test_one_that_is_killed_ends_all_with_a_record(root, alone, tmp_path, rank):
    process = train(
        words(root, tmp_path, "processes=2"), tmp_path / "log",
        HYLORADA_FAULT="after_step:3", HYLORADA_FAULT_RANK=str(rank),
    )  # fmt: skip
    assert ended(process) == 128 + signal.SIGKILL
    said = (tmp_path / "log").read_text()
    assert f"process {rank} was ended by SIGKILL" in said
    assert "Traceback" not in said
    assert result(run_directory(tmp_path))["status"] == "failed"
    assert not ranks_of(process.pid)
    if rank:
        assert finished_by_command(root, tmp_path, "processes=3") == alone


def under_way(root: Path, output: Path, *more: str, **faults: str):
    """A run of two processes that has come to its third step, and its processes."""
    output.mkdir(exist_ok=True)
    process = train(words(root, output, "processes=2", *more), output / "log", **faults)
    wait_until(lambda: lines(output) >= 3 or process.poll() is not None)
    ranks = ranks_of(process.pid)
    assert sorted(ranks) == [0, 1], (output / "log").read_text()
    return process, ranks


@pytest.mark.long
def test_a_starter_that_is_killed_leaves_no_process_and_no_lock(root, alone, tmp_path):
    waiting = {"HYLORADA_FAULT": "after_step:3:SIGSTOP", "HYLORADA_FAULT_RANK": "1"}
    process, ranks = under_way(root, tmp_path, **waiting)
    process.kill()
    assert ended(process) == -signal.SIGKILL
    wait_until(lambda: all(gone(pid) for pid in ranks.values()))
    assert finished_by_command(root, tmp_path, "processes=3") == alone


@pytest.mark.parametrize(
    ("number", "to"),
    thinned(
        [
            ("SIGTERM", "starter"),
            ("SIGINT", "group"),  # as a terminal's Ctrl-C
            ("SIGUSR1", "starter"),
            ("SIGTERM", "everything"),  # and the starter hands it on as well
            ("SIGTERM", "second"),
        ],
        [("SIGTERM", "everything")],
        often=SLOW,
        seldom=LONG,
    ),
)
def test_a_signal_saves_once_and_keeps_its_exit_code(root, tmp_path, number, to):
    code = signal.Signals[number]
    longer = "train.max_steps=4000"  # the signal comes before its end
    process, ranks = under_way(root, tmp_path, longer)
    if to == "group":
        os.killpg(process.pid, code)
    else:
        for pid in {"starter": [process.pid], "second": [ranks[1]]}.get(
            to, [*ranks.values(), process.pid]
        ):
            os.kill(pid, code)
    assert ended(process) == 128 + code
    wait_until(lambda: all(gone(pid) for pid in ranks.values()))
    directory = run_directory(tmp_path)
    record = result(directory)
    assert (record["status"], number in record["error"]) == ("interrupted", True)
    steps = [int(p.name[5:]) for p in (directory / "checkpoints").glob("step-*")]
    assert (
        max(steps) == json.loads((directory / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    )


@pytest.mark.parametrize(
    ("fails", "rank", "code", "said"),
    thinned(
        [
            ("memory", 1, 5, "out of memory"),
            ("memory", 0, 5, "out of memory"),
            ("disk", 0, 6, "file"),
            ("gate", 1, 7, "refused here alone"),
            ("bug", 1, 1, "KeyError"),
            ("bug", 0, 1, "KeyError"),
        ],
        [("gate", 1, 7, "refused here alone")],
        often=SLOW,
        seldom=LONG,
    ),
)
def test_what_ends_one_ends_all_with_its_exit_code_and_a_record(
    root, tmp_path, fails, rank, code, said
):
    process = train(
        words(root, tmp_path, "processes=2"), tmp_path / "log",
        TEST_FAILS=fails, TEST_RANK=str(rank),
    )  # fmt: skip
    found = ended(process)
    record = result(run_directory(tmp_path))
    assert said in record["error"], record["error"]
    assert found == code
    assert record["status"] == "failed"
    log = (run_directory(tmp_path) / "run.log").read_text()
    assert ("KeyError" in log) == (fails == "bug")
    (line,) = [
        x for x in (tmp_path / "log").read_text().splitlines() if x.startswith("hylorada-train: ")
    ]
    assert said in line


@pytest.mark.slow
def test_refusals_need_no_process(root, tmp_path):
    for more, said in (
        (["processes=5"], "5 processes, but a step has 4 micro-batches"),
        (["processes=2", "method.lora.lora_dropout=0.1"], "lora_dropout=0.1 with processes=2"),
        (["processes=0"], "processes"),
    ):
        log = tmp_path / "-".join(more)
        process = train(words(root, tmp_path / "out", *more), log)
        assert ended(process) == 2
        assert said in log.read_text()
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_divergence_is_the_same_on_all(root, tmp_path):
    process = train(
        words(root, tmp_path, "processes=2", "train.lr=1e30", "train.eval_every=0"),
        tmp_path / "log",
    )  # fmt: skip
    assert ended(process) == 4
    assert result(run_directory(tmp_path))["status"] == "diverged"


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--no-python"]


@pytest.mark.long
def test_torchruns_environment_is_taken(root, alone, tmp_path):
    process = start(
        [*TORCHRUN, "--standalone", "--nproc-per-node", "2",
         sys.executable, "-c", TRAIN, *words(root, tmp_path)],
        tmp_path / "log",
    )  # fmt: skip
    assert ended(process) == 0, (tmp_path / "log").read_text()
    assert left_by(run_directory(tmp_path)) == alone
    assert (tmp_path / "log").read_text().count(f"{run_directory(tmp_path)}\n") == 1


@pytest.mark.long
def test_two_machines_leave_the_bytes_of_one_process(root, alone, tmp_path):
    with two_hosts() as hosts:
        agents = [
            start(
                [*host, *TORCHRUN, "--nnodes", "2", "--nproc-per-node", "2",
                 "--rdzv-backend", "c10d", "--rdzv-endpoint", "hyloa:29511", "--rdzv-id", "x",
                 sys.executable, "-c", TRAIN, *words(root, tmp_path)],
                tmp_path / f"log-{number}",
            )
            for number, host in enumerate(hosts)
        ]  # fmt: skip
        codes = [ended(agent) for agent in agents]
    assert codes == [0, 0], [(tmp_path / f"log-{n}").read_text() for n in range(2)]
    assert left_by(run_directory(tmp_path)) == alone
    told = result(run_directory(tmp_path))["provenance"]["processes"]
    assert told["world"] == 4
    assert sorted(told["hosts"]) == ["hyloa", "hylob"]


@pytest.mark.slow
def test_slurms_environment_is_taken(root, alone, tmp_path):
    """Two tasks of a step, as srun starts them, on this machine."""
    port = str(free_port())
    tasks = [
        train(
            words(root, tmp_path), tmp_path / f"log-{rank}",
            SLURM_PROCID=str(rank), SLURM_STEP_NUM_TASKS="2", SLURM_LOCALID=str(rank),
            SLURM_NODEID="0", SLURM_STEP_TASKS_PER_NODE="2", SLURM_JOB_ID="7",
            SLURM_STEP_NODELIST="localhost", MASTER_PORT=port, GLOO_SOCKET_IFNAME="lo",
        )
        for rank in range(2)
    ]  # fmt: skip
    assert [ended(task) for task in tasks] == [0, 0]
    assert left_by(run_directory(tmp_path)) == alone


@pytest.mark.long
def test_the_tasks_of_a_launchers_job_are_the_processes_of_its_cell(root, alone, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    process = train(
        ["-m", *words(root, tmp_path), "seed=0", "launcher=submitit_local",
         "hydra.launcher.tasks_per_node=2", "hydra.launcher.timeout_min=5"],
        tmp_path / "log", GLOO_SOCKET_IFNAME="lo",
    )  # fmt: skip
    assert ended(process) == 0, (tmp_path / "log").read_text()
    assert left_by(run_directory(tmp_path)) == alone
    assert result(run_directory(tmp_path))["provenance"]["processes"]["world"] == 2
