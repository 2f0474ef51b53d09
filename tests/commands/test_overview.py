"""A sweep while it goes, by the files of its cells; and cells in two processes, for real."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.marks import on_request, slow
from helpers.records import nothing_measured
from helpers.tiny_runs import make_model_folder, make_texts, result
from rich.console import Console

from hylorada.commands.overview import Overview
from hylorada.config import RunConfig
from hylorada.process.beside import available_cores


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def cells(root: Path, count: int) -> dict[str, RunConfig]:
    found = {}
    for seed in range(count):
        config = RunConfig(seed=seed)
        config.method.name = "lora" if seed % 2 == 0 else "hylorada"
        (root / str(seed)).mkdir()
        found[str(root / str(seed))] = config
    return found


def begin(directory: str) -> None:
    (Path(directory) / "run.log").write_text("begun")


def end(directory: str, config: RunConfig, **changes: object) -> None:
    record = {**nothing_measured(config), **changes}
    record.pop("sha256", None)
    (Path(directory) / "result.json").write_text(json.dumps(record))


def overview(runs: dict[str, RunConfig], jobs: int = 1, **shown: object):
    clock, stream = Clock(), io.StringIO()
    console = Console(file=stream, width=100, highlight=False, **shown)
    return Overview(runs, 1, 1, jobs, console, clock), clock, stream


def test_a_line_for_each_cell_that_ends_with_the_time_that_is_left(tmp_path):
    runs = cells(tmp_path, 4)
    view, clock, stream = overview(runs)
    first, second, third, _ = runs
    begin(first)
    view.look()
    clock.now = 60
    view.look()
    assert stream.getvalue() == ""
    assert str(view._view()).splitlines()[0] == "  lora 4k seed 0  1 min"
    ppl = {"eval/ppl": {"value": 54.3}}
    end(first, runs[first], metrics=ppl)
    view.look()
    # Two more of its kind are not known better: 3 cells of 60 s.
    assert stream.getvalue() == (
        "[3/6] lora 4k seed 0: PPL, blocks 54.300, 1 min; about 3 min left\n"
    )
    begin(second)
    view.look()
    clock.now = 70
    end(second, runs[second], status="diverged", error="three steps in a row")
    begin(third)
    view.look()
    assert stream.getvalue().splitlines()[1] == (
        "[4/6] hylorada 4k seed 1: diverged: three steps in a row; about 2 min left"
    )
    clock.now = 90
    view.look()
    assert [path.name for path in view.running()] == ["2"]
    assert str(view._view()).splitlines() == [
        "  lora 4k seed 2  20 s",
        "6 cells: 2 done, 1 running, 2 failed; about 1 min 40 s left",
    ]


def test_two_side_by_side_take_half_of_the_time(tmp_path):
    runs = cells(tmp_path, 5)
    view, clock, stream = overview(runs, jobs=2)
    first = next(iter(runs))
    begin(first)
    view.look()
    clock.now = 30
    end(first, runs[first])
    view.look()
    assert stream.getvalue().endswith("about 1 min left\n")


def test_what_an_earlier_attempt_left_is_no_end(tmp_path):
    runs = cells(tmp_path, 1)
    (directory,) = runs
    begin(directory)
    end(directory, runs[directory], status="failed", error="disk")
    view, _, stream = overview(runs)
    view.look()
    assert stream.getvalue() == ""
    assert view.running() == []


@pytest.mark.parametrize("terminal", [True, False])
def test_the_view_is_for_a_terminal_and_goes_when_all_is_done(tmp_path, terminal, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    runs = cells(tmp_path, 1)
    (directory,) = runs
    view, _, stream = overview(runs, force_terminal=terminal)
    begin(directory)
    with view.watching():
        if terminal:
            while "1 running" not in stream.getvalue():
                time.sleep(0.05)
        end(directory, runs[directory])
    shown = stream.getvalue()
    assert shown.count("[3/3] lora 4k seed 0") == 1
    assert ("cells:" in shown) == terminal
    assert ("\x1b[?25h" in shown) == terminal  # the cursor is back


def words(root: Path, *more: str) -> list[str]:
    return [
        "model=./model", "dataset=local", f"dataset.path={root / 'texts'}", "length=96",
        f"dataset.cache_dir={root / 'cache'}", "eval=quick", "track=off", "train.max_steps=3",
        "method=lora", "-m", *more,
    ]  # fmt: skip


def started(root: Path, *more: str, **environment: str) -> subprocess.Popen[str]:
    code = "import sys; from hylorada.cli import train; sys.exit(train())"
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "")
    env = {k: v for k, v in os.environ.items() if k not in threads}
    return subprocess.Popen(
        [sys.executable, "-c", code, *words(root, *more)], cwd=root, text=True,
        env={**env, "HF_HUB_OFFLINE": "1", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def records(root: Path) -> dict[int, dict]:
    found = (result(path.parent) for path in (root / "outputs").glob("*/*/result.json"))
    return {record["seed"]: record for record in found}


@pytest.fixture
def root(tmp_path):
    make_model_folder(tmp_path / "model")
    make_texts(tmp_path / "texts")
    return tmp_path


@pytest.mark.parametrize("launcher", [*slow("processes"), *on_request("submitit_local")])
def test_cells_in_two_processes(root, launcher):
    plugin = {"processes": "joblib", "submitit_local": "submitit"}[launcher]
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher")
    process = started(root, f"launcher={launcher}", "seed=0,1,2")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert len(out.splitlines()) == 3
    assert "3 cells: 3 run, 0 done already, 0 failed" in err
    found = records(root)
    assert sorted(found) == [0, 1, 2]
    ended = [line for line in err.splitlines() if line.startswith("[")]
    places = [line.partition("]")[0] for line in ended if "seed" in line]
    assert places == ["[1/3", "[2/3", "[3/3"]
    if launcher == "processes":
        share = max(1, available_cores() // 2)
        assert [r["provenance"]["threads"] for r in found.values()] == [share] * 3
        assert "loss" not in err  # the cells themselves are silent


@pytest.mark.long
def test_a_cell_that_fails_beside_others_stops_none_and_leaves_its_traceback(root):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    process = started(
        root, "launcher=processes", "train.lr=1e-3,1e30", "seed=0,1", "train.max_grad_norm=0",
        "train.max_nonfinite_steps=1", "integrity.enabled=false",
    )  # fmt: skip
    _, err = process.communicate(timeout=600)
    assert process.returncode == 4, err
    assert "4 cells: 2 run, 0 done already, 2 failed" in err
    paths = (root / "outputs").glob("*/*/result.json")
    by_rate = {path: json.loads(path.read_text()) for path in paths}
    assert sorted(r["status"] for r in by_rate.values()) == ["diverged", "diverged", "ok", "ok"]
    for path, record in by_rate.items():
        assert ("Traceback" in (path.parent / "run.log").read_text()) == (
            record["status"] == "diverged"
        )
    code = "import sys; from hylorada.cli import report; sys.exit(report())"
    table = subprocess.run(
        [sys.executable, "-c", code, "outputs"], cwd=root, capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert "diverged" in table.stdout


@pytest.mark.long
def test_a_signal_ends_both_processes_where_they_can_go_on(root):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    more = ("launcher=processes", "seed=0,1,2", "train.max_steps=4000", "train.save_every=0")
    process = started(root, *more)
    outputs = root / "outputs"
    while len(list(outputs.glob("*/*/timing.jsonl"))) < 2:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    assert "stopping: each run saves its state" in err
    found = records(root)
    assert sorted(record["status"] for record in found.values()) == ["interrupted"] * 2
    assert len(list(outputs.glob("*/*/checkpoints/step-*"))) == 2
