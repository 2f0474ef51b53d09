"""R1 to R3: whatever stops a run, the same command ends with the bytes of one never stopped."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import time

import pytest
from helpers.commands import Into, start, words_of_a_run
from helpers.many_processes import gone, wait_until
from helpers.marks import LONG, SLOW, on_request, slow, thinned
from helpers.mounts import need_mounts
from helpers.patience import wait_long_for_trackers
from helpers.tiny_runs import (
    STEPS,
    finish,
    killed,
    launch,
    make_config,
    make_model_folder,
    make_texts,
    outcome,
    result,
    run_here,
    run_to_end,
)
from helpers.wandb_files import history, read_wandb_file, wait_for_exit_record

# Every component trains, dropout draws from the generator, and the validation split is measured
# between the steps. The gate, a third of such a run, is asked again in test_run_peft.py.
CHANGES = {"train__eval_every": 3, "integrity__enabled": False}
ENDLESS = 4000  # steps: what is to be stopped is not at its end before


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    make_model_folder(folder / "model")
    make_texts(folder / "texts")
    return folder


@pytest.fixture(scope="module")
def config(root):
    return make_config(root, **CHANGES)


@pytest.fixture(scope="module")
def uninterrupted(root, config):
    assert run_to_end(config, root / "whole") == 0
    return outcome(root / "whole")


def checkpoints(directory):
    return sorted(p.name for p in (directory / "checkpoints").iterdir())


@pytest.mark.slow  # each test below finds the same bytes, too
def test_an_uninterrupted_run_is_itself_reproducible(root, config, uninterrupted):
    assert run_here(config, root / "again") == 0
    assert outcome(root / "again") == uninterrupted


@pytest.mark.parametrize(
    "point",
    [
        "inside_checkpoint:8",
        *slow("mid_step:1", "before_record:0"),  # before there is a checkpoint, and after all
        *on_request(
            "after_step:7",
            "mid_step:9",
            "before_checkpoint:8",
            "after_checkpoint:8",
            "before_evaluation:0",
        ),
    ],
)
def test_kill_9_then_the_same_command_gives_the_same_bytes(root, config, uninterrupted, point):
    directory = root / point.replace(":", "-")
    assert killed(run_to_end(config, directory, HYLORADA_FAULT=point))
    assert not (directory / "result.json").exists()
    assert run_here(config, directory) == 0
    assert outcome(directory) == uninterrupted
    assert result(directory)["status"] == "ok"
    assert checkpoints(directory) == ["step-00000008", f"step-{STEPS:08d}"]


@pytest.mark.long
def test_the_newest_tracker_file_of_a_killed_run_holds_all_of_it(root, uninterrupted, monkeypatch):
    wait_long_for_trackers(monkeypatch)
    config = make_config(root, track__kind="offline", group="of-a-sweep", **CHANGES)
    directory = root / "tracked"
    assert killed(run_to_end(config, directory, HYLORADA_FAULT="after_step:7"))
    time.sleep(1.1)  # W&B names directories by the second
    assert run_here(config, directory) == 0
    assert outcome(directory) == uninterrupted  # a tracker changes no byte of it
    older, newest = sorted(directory.glob("wandb/offline-run-*/run-*.wandb"))
    assert [path.with_suffix(".wandb.synced").exists() for path in (older, newest)] == [True, False]
    wait_for_exit_record(newest)
    logged = [row for row in history(newest) if "lim/curve" not in row]
    lines = [json.loads(x) for x in (directory / "metrics.jsonl").read_text().splitlines()]
    assert len(logged) == len(lines)
    for row, line in zip(logged, lines, strict=True):
        assert {key: row[key] for key in line} == line
        speeds = [key for key in row if key.startswith("efficiency/")]
        assert len(speeds) == (3 if "train/loss" in line else 0)
    (run,) = [r.run for r in read_wandb_file(newest) if r.WhichOneof("record_type") == "run"]
    assert run.run_group == "of-a-sweep"


def test_kill_9_in_the_evaluation_loses_no_batch_that_was_kept(root, config, uninterrupted):
    directory = root / "evaluation"
    dying = {"HYLORADA_FAULT": "inside_evaluation:3", "TEST_KEEP_SECONDS": "0"}
    assert killed(run_to_end(config, directory, **dying))
    kept = json.loads((directory / ".evaluation.partial-perplexity").read_text())
    assert kept["done"]["blocks"]["batches_done"] == 3
    assert run_here(config, directory) == 0
    assert outcome(directory) == uninterrupted
    assert not list(directory.glob(".evaluation*"))


@pytest.mark.parametrize("seed", thinned(range(6), 6, often=SLOW, seldom=LONG))
def test_kill_9_at_random_times(root, config, uninterrupted, seed):
    directory = root / f"random-{seed}"
    delays = random.Random(seed)
    for _ in range(4):
        process = launch(config, directory)
        process.join(delays.uniform(0.1, 3.0))
        process.kill()
        process.join()
    assert run_to_end(config, directory) == 0
    assert outcome(directory) == uninterrupted


@pytest.mark.parametrize(
    "point",
    [
        "inside_text:1:SIGTERM",
        "inside_evaluation:2:SIGTERM",
        *slow("mid_step:3:SIGTERM", "before_record:0:SIGHUP"),  # the first: in the accumulation
        *on_request("before_checkpoint:4:SIGTERM", "before_evaluation:0:SIGINT"),
    ],
)
def test_a_signal_at_any_point_then_the_same_command_gives_the_same_bytes(
    root, uninterrupted, point, tmp_path
):
    """Text that nobody has tokenised yet, a base that nobody has measured."""
    config = make_config(
        root, **CHANGES, dataset__cache_dir=str(tmp_path / "tokens"), output_root=str(tmp_path)
    )
    directory = tmp_path / "run"
    number = signal.Signals[point.rpartition(":")[2]]
    assert run_to_end(config, directory, HYLORADA_FAULT=point) == 128 + number
    record = result(directory)
    assert (record["status"], number.name in record["error"]) == ("interrupted", True)
    assert not list((tmp_path / "tokens").glob("*.tmp-*"))
    assert run_here(config, directory) == 0
    assert outcome(directory) == uninterrupted


class OwnGroup(Into):
    """A group of processes of its own, as a shell makes one for a command."""

    def __call__(self):
        os.setsid()
        super().__call__()


@pytest.mark.slow
def test_a_signal_to_all_processes_of_a_sweep(root, uninterrupted, tmp_path):
    """Of `launcher=processes`, by which cells run side by side: each saves its own."""
    words = [
        "-m",
        "seed=0,1",
        "launcher=processes",
        *words_of_a_run(root, f"train.max_steps={ENDLESS}"),
    ]
    words = [w for w in words if not w.startswith("output_root=")] + [f"output_root={tmp_path}"]

    sweep = start("train", words, OwnGroup(tmp_path / "out", tmp_path / "err"))

    def under_way():
        return [p.parent for p in tmp_path.glob("main/*/metrics.jsonl") if p.stat().st_size > 300]

    wait_until(lambda: len(under_way()) == 2 or not sweep.is_alive())
    cells = under_way()
    assert len(cells) == 2, (tmp_path / "err").read_text()
    workers = [int((cell / ".lock-owner").read_text().split()[1]) for cell in cells]
    os.killpg(sweep.pid, signal.SIGTERM)
    wait_until(lambda: all((cell / "result.json").exists() for cell in cells))
    # Started by multiprocessing it would wait for joblib's idle workers, which a command lets go.
    os.killpg(sweep.pid, signal.SIGKILL)
    finish(sweep)
    wait_until(lambda: all(gone(pid) for pid in workers))  # nor do they stay when it is killed
    assert [result(cell)["status"] for cell in cells] == ["interrupted"] * 2
    assert all(list((cell / "checkpoints").glob("step-*")) for cell in cells)


@pytest.mark.parametrize("count", [*slow(3), *on_request(8)])
def test_starts_in_one_moment_are_one_run_or_are_refused(root, config, uninterrupted, count):
    directory = root / f"at-once-{count}"
    started = [launch(config, directory) for _ in range(count)]
    codes = [finish(process) for process in started]
    assert codes.count(0) >= 1
    assert set(codes) <= {0, 6}
    assert outcome(directory) == uninterrupted
    # Other seeds: as many runs, and none has anything of another.
    configs = [make_config(root, **CHANGES, seed=seed, group="seeds") for seed in range(count)]
    directories = [root / f"seed-{seed}-of-{count}" for seed in range(count)]
    started = [launch(c, d) for c, d in zip(configs, directories, strict=True)]
    assert [finish(process) for process in started] == [0] * count
    assert outcome(directories[0]) == uninterrupted
    assert len({outcome(d)["metrics.jsonl"] for d in directories}) == count


@pytest.mark.slow
def test_memory_that_runs_out_halves_the_micro_batch_in_training_and_evaluation(root, tmp_path):
    changes = {
        **CHANGES, "train__micro_batch_size": 4, "train__gradient_accumulation_steps": 1,
        "eval__perplexity__batch_size": 3,
    }  # fmt: skip
    config = make_config(root, **changes)
    assert run_to_end(config, tmp_path / "whole") == 0
    assert "micro_batch_size" not in result(tmp_path / "whole")["training"]
    assert run_to_end(config, tmp_path / "halved", TEST_FITS="1") == 0
    assert result(tmp_path / "halved")["training"]["micro_batch_size"] == 1
    log = (tmp_path / "halved" / "run.log").read_text()
    assert "out of memory with micro-batches of 4 sequences; continuing with 2" in log
    found = [result(tmp_path / name) for name in ("whole", "halved")]
    assert found[0]["training"]["tokens"] == found[1]["training"]["tokens"]
    values = [record["metrics"]["eval/ppl"]["value"] for record in found]
    assert values[0] == pytest.approx(values[1], rel=1e-2)  # dropout draws other numbers
    assert values[0] != values[1]
    # Killed behind the halving, it goes on with what fitted.
    killing = {"TEST_FITS": "1", "HYLORADA_FAULT": "after_step:7"}
    assert killed(run_to_end(config, tmp_path / "killed", **killing))
    assert run_to_end(config, tmp_path / "killed", TEST_FITS="1") == 0
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "halved")
    # One sequence alone does not fit: exit 5, with what may help training.
    assert run_to_end(config, tmp_path / "none", TEST_FITS="0") == 5


def stopped_by(config, directory, number, **environment):
    """The exit code of a run that gets the signal, from outside, when two of its steps are done.

    It halts itself after them: its ten steps are done so quickly that it could be at its end before
    this process looks.
    """
    process = launch(config, directory, HYLORADA_FAULT="after_step:2:SIGSTOP", **environment)
    lines = directory / "metrics.jsonl"

    def is_so_far():
        return (lines.exists() and '"step": 2,' in lines.read_text()) or not process.is_alive()

    def has_ended():  # told to go on, it may not even have halted yet
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)
        return not process.is_alive()

    wait_until(is_so_far)
    os.kill(process.pid, number)
    wait_until(has_ended)
    return finish(process)


# SIGUSR1 is that of the next test but one.
@pytest.mark.parametrize(
    "number", [*slow(signal.SIGTERM, signal.SIGHUP), *on_request(signal.SIGINT, signal.SIGUSR1)]
)
def test_a_signal_saves_says_so_and_continues_exactly(root, config, uninterrupted, number):
    directory = root / f"signal-{number}"
    assert stopped_by(config, directory, number) == 128 + number
    record = result(directory)
    assert record["status"] == "interrupted"
    assert signal.Signals(number).name in record["error"]
    assert run_here(config, directory) == 0
    assert outcome(directory) == uninterrupted
    assert result(directory)["status"] == "ok"


def fake_scontrol(folder, body):
    """A program of that name, first on the path, that notes the words it was given."""
    folder.mkdir()
    program = folder / "scontrol"
    program.write_text(
        f'#!/bin/sh\nfor word in "$@"; do echo "$word"; done > {folder}/words\n{body}\n'
    )
    program.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "77"}


def stopped_under_slurm(config, directory, number, **environment):
    assert stopped_by(config, directory, number, **environment) == 128 + number
    return (directory / "run.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGUSR1, *on_request(signal.SIGUSR2)])
def test_slurm_is_asked_to_start_the_job_again_which_then_goes_on(
    root, config, uninterrupted, number
):
    directory, scontrol = root / f"slurm-{number}", root / f"slurm-programs-{number}"
    # As SLURM does: the job that is to start again is ended, before its scontrol has returned.
    environment = fake_scontrol(scontrol, "kill -TERM $PPID; exit 0")
    log = stopped_under_slurm(config, directory, number, **environment)
    assert (scontrol / "words").read_text().splitlines() == ["requeue", "77"]
    assert "SLURM starts job 77 again" in log
    assert result(directory)["status"] == "interrupted"
    # As SLURM would: the same command.
    assert run_here(config, directory) == 0
    assert outcome(directory) == uninterrupted


@pytest.mark.slow
def test_slurm_is_asked_for_no_other_reason_and_its_refusal_is_a_warning(root, config):
    directory, scontrol = root / "slurm-no", root / "slurm-programs-no"
    environment = fake_scontrol(scontrol, "echo 'Requested operation is disabled' >&2; exit 1")
    log = stopped_under_slurm(config, directory, signal.SIGTERM, **environment)
    assert not (scontrol / "words").exists()
    array = {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3"}
    log = stopped_under_slurm(config, root / "slurm-array", signal.SIGUSR1, **environment, **array)
    assert (scontrol / "words").read_text().splitlines() == ["requeue", "70_3"]
    assert "scontrol requeue 70_3 failed (Requested operation is disabled)" in log
    log = stopped_under_slurm(
        config, root / "slurm-gone", signal.SIGUSR1, PATH="/nowhere", SLURM_JOB_ID="5"
    )
    assert "scontrol requeue 5 failed ([Errno 2] No such file or directory" in log
    assert run_here(config, root / "slurm-gone") == 0


def test_damaged_newest_checkpoint_the_previous_one_gives_the_same_bytes(
    root, config, uninterrupted
):
    directory = root / "damaged"
    assert killed(run_to_end(config, directory, HYLORADA_FAULT="after_step:9"))
    path = directory / "checkpoints" / "step-00000008" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert run_here(config, directory) == 0
    assert outcome(directory) == uninterrupted
    assert ".bad-step-00000008" in checkpoints(directory)
    assert "is damaged" in (directory / "run.log").read_text()


def test_all_checkpoints_damaged_is_exit_3_and_never_a_silent_fresh_start(root, config):
    directory = root / "hopeless"
    assert killed(run_to_end(config, directory, HYLORADA_FAULT="after_step:9"))
    for path in (directory / "checkpoints").glob("step-*/state.json"):
        path.unlink()
    for _ in range(2):
        assert run_here(config, directory) == 3
    record = result(directory)
    assert record["status"] == "failed"
    assert "resume=never" in record["error"]


def test_resume_must_without_a_checkpoint_is_exit_3(root):
    config = make_config(root, **CHANGES, resume="must")
    assert run_here(config, root / "must") == 3
    assert "resume=must" in result(root / "must")["error"]


def test_other_settings_are_refused_by_name_and_harmless_ones_pass(root, config, uninterrupted):
    directory = root / "changed"
    assert killed(run_to_end(config, directory, HYLORADA_FAULT="after_step:5"))
    assert run_here(make_config(root, **CHANGES, train__lr=0.5, seed=1), directory) == 2
    error = result(directory)["error"]
    assert "seed was 0, is 1" in error
    assert "train.lr was 0.01, is 0.5" in error
    harmless = {
        "train__save_every": 1, "train__keep_checkpoints": 3, "group": "other",
        "dataset__path": f"{root}/./texts/", "eval__harness__limit": 3,
    }  # fmt: skip
    assert run_here(make_config(root, **CHANGES, **harmless), directory) == 0
    assert outcome(directory) == uninterrupted


@pytest.mark.slow
def test_resume_never_starts_afresh_and_keeps_the_earlier_attempt(root, config, uninterrupted):
    directory = root / "afresh"
    assert killed(run_to_end(config, directory, HYLORADA_FAULT="after_step:5"))
    assert run_here(make_config(root, **CHANGES, resume="never"), directory) == 0
    assert outcome(directory) == uninterrupted
    assert checkpoints(directory / "earlier-1") == ["step-00000004"]


@pytest.mark.slow
def test_a_full_disk_is_exit_6_and_after_room_is_made_the_bytes_are_the_same(
    root, config, uninterrupted, tmp_path
):
    """The run's folder is a disk of its own, which its second checkpoint does not fit on."""
    need_mounts()
    directory = tmp_path / "run"
    directory.mkdir()
    whole = sum(p.stat().st_size for p in (root / "whole").rglob("*") if p.is_file())
    assert run_to_end(config, directory, TEST_SMALL_DISK=str(whole // 2)) == 6
    error = (tmp_path / "run.err").read_text()
    assert re.search(r"the disk is full or over its quota \(free \d\.\d MiB", error), error
    # What the small disk held went with it; on the large one the run is as any other.
    assert run_here(config, directory) == 0
    assert outcome(directory) == uninterrupted


@pytest.mark.slow
def test_a_limit_on_files_is_exit_6_and_without_it_the_bytes_are_the_same(
    root, config, uninterrupted
):
    directory = root / "full"
    assert killed(run_to_end(config, directory, HYLORADA_FAULT="after_step:5"))
    largest = max(p.stat().st_size for p in directory.rglob("*.safetensors"))
    assert run_to_end(config, directory, TEST_LARGEST_FILE=str(largest - 1)) == 6
    error = result(directory)["error"]
    assert re.search(r"than this process may make a file \(ulimit -f: 0\.\d MiB\)", error), error
    assert "the disk is full" not in error
    assert checkpoints(directory) == ["step-00000004"]
    assert run_here(config, directory) == 0
    assert outcome(directory) == uninterrupted


def test_seconds_add_up_over_attempts_and_stay_out_of_metrics(root, config, uninterrupted):
    assert b"second" not in uninterrupted["metrics.jsonl"]
    timing = [json.loads(x) for x in (root / "whole" / "timing.jsonl").read_text().splitlines()]
    assert [row["step"] for row in timing] == list(range(1, STEPS + 1))
    total = sum(row["seconds"] for row in timing)
    assert result(root / "whole")["training"]["seconds"] == pytest.approx(total)


def test_what_cannot_be_continued_is_told_before_anything_is_read_or_measured(
    root, config, uninterrupted
):
    directory = root / "told"
    assert killed(run_to_end(config, directory, HYLORADA_FAULT="after_step:5"))
    shutil.rmtree(root / "outputs" / ".cache")
    lines = (directory / "metrics.jsonl").read_bytes()
    (directory / "metrics.jsonl").write_bytes(lines[:100])
    assert run_here(config, directory) == 3
    assert "changed by hand" in result(directory)["error"]
    (directory / "metrics.jsonl").write_bytes(lines.replace(b"1", b"2", 1))
    assert run_here(config, directory) == 3
    assert "since the checkpoint" in result(directory)["error"]
    (directory / "metrics.jsonl").write_bytes(lines)
    (directory / "checkpoints" / "step-00000004" / "MANIFEST.json").unlink()
    assert run_here(config, directory) == 3
    assert "no usable checkpoint" in result(directory)["error"]
    assert not (root / "outputs" / ".cache").exists()
