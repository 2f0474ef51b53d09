"""R1 to R3: whatever stops a run, the same command ends with the bytes of one never stopped."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time

import pytest
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
    run_to_end,
)
from helpers.wandb_files import history, read_wandb_file, wait_for_exit_record

# Every component trains, dropout draws from the generator, and the validation split is measured
# between the steps.
CHANGES = {"train__eval_every": 3}


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


def test_an_uninterrupted_run_is_itself_reproducible(root, config, uninterrupted):
    assert run_to_end(config, root / "again") == 0
    assert outcome(root / "again") == uninterrupted


def slowly(*values):
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.mark.parametrize(
    "point",
    [
        "after_step:7",
        "inside_checkpoint:8",
        "before_record:0",
        *slowly(
            "mid_step:1",  # before there is a checkpoint
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
    assert run_to_end(config, directory) == 0
    assert outcome(directory) == uninterrupted
    assert result(directory)["status"] == "ok"
    assert checkpoints(directory) == ["step-00000008", f"step-{STEPS:08d}"]


@pytest.mark.slow
def test_the_newest_tracker_file_of_a_killed_run_holds_all_of_it(root, uninterrupted):
    config = make_config(root, track__kind="offline", group="of-a-sweep", **CHANGES)
    directory = root / "tracked"
    assert killed(run_to_end(config, directory, HYLORADA_FAULT="after_step:7"))
    assert run_to_end(config, directory) == 0
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
    assert run_to_end(config, directory) == 0
    assert outcome(directory) == uninterrupted
    assert not list(directory.glob(".evaluation*"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
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


def wait_for_step(directory, step):
    for _ in range(1200):
        path = directory / "metrics.jsonl"
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"{directory} did not reach step {step}")


@pytest.mark.parametrize("number", [signal.SIGTERM, *slowly(signal.SIGINT, signal.SIGUSR1)])
def test_a_signal_saves_says_so_and_continues_exactly(root, config, uninterrupted, number):
    directory = root / f"signal-{number}"
    process = launch(config, directory)
    wait_for_step(directory, 2)
    os.kill(process.pid, number)
    assert finish(process) == 128 + number
    record = result(directory)
    assert record["status"] == "interrupted"
    assert signal.Signals(number).name in record["error"]
    assert run_to_end(config, directory) == 0
    assert outcome(directory) == uninterrupted
    assert result(directory)["status"] == "ok"


def test_damaged_newest_checkpoint_the_previous_one_gives_the_same_bytes(
    root, config, uninterrupted
):
    directory = root / "damaged"
    assert killed(run_to_end(config, directory, HYLORADA_FAULT="after_step:9"))
    path = directory / "checkpoints" / "step-00000008" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert run_to_end(config, directory) == 0
    assert outcome(directory) == uninterrupted
    assert ".bad-step-00000008" in checkpoints(directory)
    assert "is damaged" in (directory / "run.log").read_text()


def test_all_checkpoints_damaged_is_exit_3_and_never_a_silent_fresh_start(root, config):
    directory = root / "hopeless"
    assert killed(run_to_end(config, directory, HYLORADA_FAULT="after_step:9"))
    for path in (directory / "checkpoints").glob("step-*/state.json"):
        path.unlink()
    for _ in range(2):
        assert run_to_end(config, directory) == 3
    record = result(directory)
    assert record["status"] == "failed"
    assert "resume=never" in record["error"]


def test_resume_must_without_a_checkpoint_is_exit_3(root):
    config = make_config(root, **CHANGES, resume="must")
    assert run_to_end(config, root / "must") == 3
    assert "resume=must" in result(root / "must")["error"]


def test_other_settings_are_refused_by_name_and_harmless_ones_pass(root, config, uninterrupted):
    directory = root / "changed"
    assert killed(run_to_end(config, directory, HYLORADA_FAULT="after_step:5"))
    assert run_to_end(make_config(root, **CHANGES, train__lr=0.5, seed=1), directory) == 2
    error = result(directory)["error"]
    assert "seed was 0, is 1" in error
    assert "train.lr was 0.01, is 0.5" in error
    harmless = {
        "train__save_every": 1, "train__keep_checkpoints": 3, "group": "other",
        "dataset__path": f"{root}/./texts/", "eval__harness__limit": 3,
    }  # fmt: skip
    assert run_to_end(make_config(root, **CHANGES, **harmless), directory) == 0
    assert outcome(directory) == uninterrupted


@pytest.mark.slow
def test_resume_never_starts_afresh_and_keeps_the_earlier_attempt(root, config, uninterrupted):
    directory = root / "afresh"
    assert killed(run_to_end(config, directory, HYLORADA_FAULT="after_step:5"))
    assert run_to_end(make_config(root, **CHANGES, resume="never"), directory) == 0
    assert outcome(directory) == uninterrupted
    assert checkpoints(directory / "earlier-1") == ["step-00000004"]


@pytest.mark.slow
def test_a_full_disk_is_exit_6_and_after_room_is_made_the_bytes_are_the_same(
    root, config, uninterrupted
):
    directory = root / "full"
    assert killed(run_to_end(config, directory, HYLORADA_FAULT="after_step:5"))
    largest = max(p.stat().st_size for p in directory.rglob("*.safetensors"))
    assert run_to_end(config, directory, TEST_LARGEST_FILE=str(largest - 1)) == 6
    record = result(directory)
    assert "the disk is full" in record["error"]
    assert "needs" in record["error"]
    assert checkpoints(directory) == ["step-00000004"]
    assert run_to_end(config, directory) == 0
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
    assert run_to_end(config, directory) == 3
    assert "changed by hand" in result(directory)["error"]
    (directory / "metrics.jsonl").write_bytes(lines.replace(b"1", b"2", 1))
    assert run_to_end(config, directory) == 3
    assert "since the checkpoint" in result(directory)["error"]
    (directory / "metrics.jsonl").write_bytes(lines)
    (directory / "checkpoints" / "step-00000004" / "MANIFEST.json").unlink()
    assert run_to_end(config, directory) == 3
    assert "no usable checkpoint" in result(directory)["error"]
    assert not (root / "outputs" / ".cache").exists()
