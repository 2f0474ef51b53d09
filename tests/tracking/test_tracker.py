"""Against the real W&B client, offline; a tracker that fails must not be noticed by the run."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import socket
import subprocess
import sys
import threading
import time

import pytest
from helpers.patience import wait_long_for_trackers
from helpers.wandb_files import history, read_wandb_file, summary, wait_for_exit_record

from hylorada.config import RunConfig, TrackConfig
from hylorada.errors import ConfigError
from hylorada.settings.run import check_settings
from hylorada.tracking import tracker as tracking
from hylorada.tracking import wandb_backend
from hylorada.tracking.tracker import Tracker
from hylorada.tracking.trackers import offline

LINES = [
    {"step": 1, "train/loss": 2.5, "train/tokens": 4095},
    {"step": 2, "train/skipped": "loss is nan"},
    {"step": 3, "train/loss": 1.25, "train/tokens": 8190},
]


@pytest.fixture
def quiet_home(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "home" / "config"))
    (tmp_path / "home").mkdir()


@pytest.fixture
def patient(monkeypatch):
    """What starts and ends well may take its time."""
    wait_long_for_trackers(monkeypatch)


def test_offline_writes_wandb_files_that_hold_the_numbers(
    tmp_path, quiet_home, patient, monkeypatch, capfd
):
    monkeypatch.setenv("MY_SECRET", "canary-canary")
    tracker = Tracker(
        TrackConfig("offline", project="p", tags=["t"]),
        tmp_path, "the-name", {"seed": 7, "path": "canary-canary"}, "the-group",
    )  # fmt: skip
    for line in LINES:
        tracker.log(line)
    tracker.summary({"eval/ppl": 12.5, "note": "words are left out"})
    tracker.finish(0)

    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    wait_for_exit_record(path)
    found = history(path)
    assert [(row["step"], row.get("train/loss")) for row in found] == [
        (1, 2.5),
        (2, None),
        (3, 1.25),
    ]
    records = list(read_wandb_file(path))
    run = next(r.run for r in records if r.WhichOneof("record_type") == "run")
    assert (run.display_name, run.project, list(run.tags)) == ("the-name", "p", ["t"])
    assert run.run_group == "the-group"
    assert (run.host, run.git.commit) == ("", "")
    config = {item.key: item.value_json for item in run.config.update}
    assert config["seed"] == "7"
    found = summary(path)
    assert found["eval/ppl"] == 12.5
    assert "note" not in found

    assert capfd.readouterr() == ("", "")
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert b"canary" not in file.read_bytes(), file
            assert "metadata" not in file.name  # command line, host, user, packages


def write_lines(path, *lines, torn=""):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)


def test_the_newest_folder_of_a_continued_run_holds_the_whole_run(tmp_path, quiet_home, patient):
    """The first attempt logged 1, 2 and 3, was killed, and goes on from the checkpoint after 2."""
    settings = TrackConfig("offline")
    first = Tracker(settings, tmp_path, "n", {})
    for line in LINES:
        first.log(line)
    first.finish(1)
    time.sleep(1.1)  # W&B names directories by the second
    write_lines(tmp_path / "metrics.jsonl", *LINES, torn='{"step": 4')
    timing = [{"step": n, "seconds": 0.5, "tokens": 1000, "peak_memory_bytes": n << 20}
              for n in (1, 2, 3)]  # fmt: skip
    write_lines(tmp_path / "timing.jsonl", *timing)
    kept = sum(len(json.dumps(line)) + 1 for line in LINES[:2])
    second = Tracker(settings, tmp_path, "n", {})
    second.replay(
        tmp_path,
        {"metrics_bytes": kept, "timing_bytes": (tmp_path / "timing.jsonl").stat().st_size},
    )
    second.log({"step": 3, "train/loss": 1.0})
    second.finish(0)

    older, newest = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert older.name == newest.name  # one id
    wait_for_exit_record(newest)
    found = history(newest)
    assert [(row["step"], row.get("train/loss")) for row in found] == [
        (1, 2.5), (2, None), (3, 1.0),
    ]  # fmt: skip
    assert found[0]["efficiency/step_seconds"] == 0.5
    assert found[0]["efficiency/tokens_per_second"] == 2000
    assert found[1]["efficiency/peak_memory_mib"] == 2
    # W&B itself passes over the older folder.
    listed = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", "--dry-run", *map(str, (older, newest))],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    said = listed.stdout + listed.stderr
    assert "Would sync 1 run(s)" in said
    assert newest.parent.name in said
    assert older.parent.name not in said


def test_what_was_written_in_an_earlier_attempt_is_all_replayed_without_a_limit(
    tmp_path, quiet_home, patient
):
    write_lines(tmp_path / "metrics.jsonl", *LINES, {"step": 3, "eval/ppl": 7.0}, torn='{"st')
    tracker = Tracker(TrackConfig("offline"), tmp_path, "n", {})
    tracker.replay(tmp_path, {})
    tracker.finish(0)
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    wait_for_exit_record(path)
    assert [row["step"] for row in history(path)] == [1, 2, 3, 3]
    assert history(path)[-1]["eval/ppl"] == 7.0
    assert not list(tmp_path.rglob("*.synced"))


def test_a_history_that_cannot_be_read_costs_the_tracker_alone(
    tmp_path, quiet_home, patient, caplog
):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nchanged by hand\n')
    tracker = Tracker(TrackConfig("offline"), tmp_path, "n", {})
    tracker.replay(tmp_path, {})
    tracker.finish(0)
    assert "track=offline stopped at replay" in caplog.text


def test_off_writes_nothing(tmp_path):
    tracker = Tracker(TrackConfig("off"), tmp_path, "n", {})
    tracker.log(LINES[0])
    tracker.finish(0)
    assert not list(tmp_path.iterdir())


def test_an_unknown_tracker_is_refused_with_the_nearest():
    with pytest.raises(
        ConfigError, match="'tensorbord'; choose offline, tensorboard, wandb or off"
    ):
        check_settings(RunConfig(track=TrackConfig("tensorbord")))


def test_no_key_is_one_warning(tmp_path, quiet_home, patient, caplog):
    with caplog.at_level(logging.WARNING):
        tracker = Tracker(TrackConfig("wandb"), tmp_path, "n", {})
        for line in LINES:
            tracker.log(line)
        tracker.finish(0)
    assert len([r for r in caplog.records if r.name.startswith("hylorada")]) == 1
    assert "track=wandb stopped at start" in caplog.text
    assert "the run goes on" in caplog.text


@pytest.fixture
def limits(monkeypatch):
    """The limits, in seconds, of all waits for a tracker."""
    asked, wait = [], tracking._Calls.wait

    def noting(self, seconds):
        asked.append(seconds)
        return wait(self, seconds)

    monkeypatch.setattr(tracking._Calls, "wait", noting)
    return asked


@pytest.mark.long
def test_a_server_that_never_answers_is_waited_for_once(
    tmp_path, quiet_home, caplog, monkeypatch, limits
):
    """It is silent for as long as the test goes on: what is not given up does not end."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        tracker = Tracker(TrackConfig("wandb"), tmp_path, "n", {})
        assert not tracker.active
        tracker.log(LINES[0])
        tracker.finish(0)
    assert len([r for r in caplog.records if r.name.startswith("hylorada")]) == 1
    assert limits == [tracking.START_SECONDS]
    assert wandb_backend.START_SECONDS < tracking.START_SECONDS < 15


class Backend:
    def __init__(self, failing):
        self.failing, self.calls = failing, []

    def __getattr__(self, name):
        def call(*_):
            self.calls.append(name)
            if name == self.failing:
                raise OSError("the service died")

        return call


@pytest.mark.parametrize("failing", ["log", "summary"])
def test_after_the_first_failure_it_is_silent(tmp_path, monkeypatch, caplog, failing):
    backend = Backend(failing)
    monkeypatch.setattr(offline, "Backend", lambda *_: backend)
    tracker = Tracker(TrackConfig("offline"), tmp_path, "n", {})
    for _ in range(2):
        tracker.log(LINES[0])
        tracker.summary({"a": 1.0})
    tracker.finish(0)
    assert [call for call in backend.calls if call != "abandon"][-1] == failing
    assert [r.levelname for r in caplog.records] == ["WARNING"]


def test_finish_returns_while_the_tracker_hangs(tmp_path, monkeypatch, caplog, limits):
    released, ended = threading.Event(), []

    class Hanging(Backend):
        def finish(self, exit_code):
            released.wait(60)  # so that a wait without a limit fails, and does not hang
            ended.append(exit_code)

    monkeypatch.setattr(offline, "Backend", lambda *_: Hanging(""))
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 0.2)
    tracker = Tracker(TrackConfig("offline"), tmp_path, "n", {})
    tracker.finish(0)
    assert not ended
    released.set()
    assert limits == [tracking.START_SECONDS, 0.2]
    assert "no answer within" in caplog.text


def test_a_tracker_that_exits_is_a_warning(tmp_path, monkeypatch, caplog):
    class Leaving(Backend):
        def start(self):
            raise SystemExit(1)

    monkeypatch.setattr(offline, "Backend", lambda *_: Leaving(""))
    Tracker(TrackConfig("offline"), tmp_path, "n", {}).log(LINES[0])
    assert "SystemExit" in caplog.text


def test_tensorboard_that_is_not_installed_is_a_warning_that_says_how(
    tmp_path, monkeypatch, caplog
):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    Tracker(TrackConfig("tensorboard"), tmp_path, "n", {}).log(LINES[0])
    assert "pip install hylorada[tensorboard]" in caplog.text


def points(folder, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_writes_the_numbers(tmp_path, patient):
    tracker = Tracker(TrackConfig("tensorboard"), tmp_path, "n", {"seed": 7})
    for line in LINES:
        tracker.log(line, {"step": line["step"], "seconds": 0.5, "tokens": 1000})
    tracker.finish(0)
    assert points(tmp_path, "train/loss") == [(1, 2.5), (3, 1.25)]
    assert points(tmp_path, "efficiency/tokens_per_second") == [(n, 2000.0) for n in (1, 2, 3)]


def test_tensorboard_shows_a_continued_run_once(tmp_path, patient):
    first = Tracker(TrackConfig("tensorboard"), tmp_path, "n", {})
    for line in LINES:
        first.log(line)
    first.finish(1)
    time.sleep(1.1)  # it names files by the second
    write_lines(tmp_path / "metrics.jsonl", *LINES[:2])
    second = Tracker(TrackConfig("tensorboard"), tmp_path, "n", {})
    second.replay(tmp_path, {})
    second.log({"step": 3, "train/loss": 1.0})
    second.finish(0)
    assert len(list(tmp_path.glob("tensorboard/events*"))) == 2
    assert points(tmp_path, "train/loss") == [(1, 2.5), (3, 1.0)]
