"""Against the real W&B client, offline; a tracker that fails must not be noticed by the run."""

from __future__ import annotations

import logging
import socket
import time

import pytest
from wandb_files import history, read_wandb_file, summary, wait_for_exit_record

from hylorada.config import TrackConfig
from hylorada.runner import tracking
from hylorada.runner.tracking import Tracker

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


def test_offline_writes_wandb_files_that_hold_the_numbers(tmp_path, quiet_home, monkeypatch, capfd):
    monkeypatch.setenv("MY_SECRET", "canary-canary")
    tracker = Tracker(
        TrackConfig("offline", project="p", tags=["t"]),
        tmp_path, "the-name", {"seed": 7, "path": "canary-canary"},
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


def test_a_continued_run_keeps_its_id(tmp_path, quiet_home):
    for _ in range(2):
        Tracker(TrackConfig("offline"), tmp_path, "n", {}).finish(0)
        time.sleep(1.1)  # W&B names directories by the second
    first, second = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert first.name == second.name


def test_off_writes_nothing(tmp_path):
    tracker = Tracker(TrackConfig("off"), tmp_path, "n", {})
    tracker.log(LINES[0])
    tracker.finish(0)
    assert not list(tmp_path.iterdir())


def test_no_key_is_one_warning(tmp_path, quiet_home, caplog, monkeypatch):
    with caplog.at_level(logging.WARNING):
        tracker = Tracker(TrackConfig("wandb"), tmp_path, "n", {})
        for line in LINES:
            tracker.log(line)
        tracker.finish(0)
    assert len([r for r in caplog.records if r.name.startswith("hylorada")]) == 1
    assert "track=wandb stopped at start" in caplog.text
    assert "the run goes on" in caplog.text


@pytest.mark.slow
def test_a_server_that_never_answers_costs_15_seconds_at_most(
    tmp_path, quiet_home, caplog, monkeypatch
):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        started = time.monotonic()
        tracker = Tracker(TrackConfig("wandb"), tmp_path, "n", {})
        assert time.monotonic() - started < 15.5
        tracker.log(LINES[0])
        tracker.finish(0)
    assert len([r for r in caplog.records if r.name.startswith("hylorada")]) == 1


class Backend:
    def __init__(self, failing):
        self.failing, self.calls = failing, []

    def __getattr__(self, name):
        def call(*_):
            self.calls.append(name)
            if name == self.failing == "finish":
                time.sleep(30)
            if name == self.failing:
                raise OSError("the service died")

        return call


@pytest.mark.parametrize("failing", ["log", "summary"])
def test_after_the_first_failure_it_is_silent(tmp_path, monkeypatch, caplog, failing):
    backend = Backend(failing)
    monkeypatch.setattr(tracking, "_start_wandb", lambda *_: backend)
    tracker = Tracker(TrackConfig("offline"), tmp_path, "n", {})
    for _ in range(2):
        tracker.log(LINES[0])
        tracker.summary({"a": 1.0})
    tracker.finish(0)
    assert backend.calls[-1] == failing
    assert [r.levelname for r in caplog.records] == ["WARNING"]


def test_finish_is_bounded(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tracking, "_start_wandb", lambda *_: Backend("finish"))
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 0.2)
    tracker = Tracker(TrackConfig("offline"), tmp_path, "n", {})
    started = time.monotonic()
    tracker.finish(0)
    assert time.monotonic() - started < 5
    assert "no answer within" in caplog.text


def test_start_is_bounded_and_may_exit(tmp_path, monkeypatch, caplog):
    def leave(*_):
        raise SystemExit(1)

    monkeypatch.setattr(tracking, "_start_wandb", leave)
    Tracker(TrackConfig("offline"), tmp_path, "n", {}).log(LINES[0])
    assert "SystemExit" in caplog.text


def test_tensorboard_that_is_not_installed_is_a_warning_that_says_how(
    tmp_path, monkeypatch, caplog
):
    def missing(name):
        raise tracking.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(tracking.importlib.metadata, "version", missing)
    Tracker(TrackConfig("tensorboard"), tmp_path, "n", {}).log(LINES[0])
    assert "pip install hylorada[tensorboard]" in caplog.text


def test_tensorboard_writes_the_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = Tracker(TrackConfig("tensorboard"), tmp_path, "n", {"seed": 7})
    for line in LINES:
        tracker.log(line)
    tracker.finish(0)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 2.5), (3, 1.25)]
