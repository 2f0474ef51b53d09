"""What is written to may go: no run and no sweep ends, no number changes. A hangup saves."""

from __future__ import annotations

import json

import pytest
from helpers.commands import (
    Head,
    HungUp,
    HungUpUnderNohup,
    Into,
    closed,
    run_command,
    words_of_a_run,
)
from helpers.marks import on_request, slow
from helpers.tiny_runs import make_model_folder, make_texts


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("terminal")
    make_model_folder(folder / "model")
    make_texts(folder / "texts")
    return folder


def directories(root, group):
    return sorted((root / "outputs" / group).glob("lora-*"))


@pytest.mark.parametrize(
    "lost",
    [
        *slow(Head(1), HungUpUnderNohup(3), closed),
        *on_request(Into("/dev/full", "/dev/full"), Head(0), Head(4)),
    ],
    ids=lambda lost: getattr(lost, "__name__", None)
    or f"{type(lost).__name__}-{getattr(lost, 'lines', '')}",
)  # fmt: skip
def test_a_sweep_goes_on_to_its_end(root, request, lost):
    group = request.node.callspec.id.replace("-", "_")
    words = words_of_a_run(root, f"group={group}", "seed=0,1", "integrity.enabled=true")
    assert run_command("train", ["-m", *words], lost) == 0
    found = directories(root, group)
    assert len(found) == 2
    for directory in found:
        assert json.loads((directory / "result.json").read_text())["status"] == "ok"
        assert (directory / "adapter" / "adapter_model.safetensors").is_file()
    logged = [(directory / "run.log").read_text() for directory in found]
    assert all("integrity: passed" in text for text in logged)
    if lost is not closed:
        assert "the terminal is gone" in "".join(logged)
    # The same bytes as with a terminal.
    words = words_of_a_run(root, "group=shown", "seed=0")
    assert run_command("train", words, Into(root / "out", root / "err")) == 0
    (shown,) = directories(root, "shown")
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
        assert (found[0] / name).read_bytes() == (shown / name).read_bytes()


def test_a_terminal_that_is_closed_saves_and_the_same_command_goes_on(root):
    words = words_of_a_run(root, "group=closed", "seed=0", "train.max_steps=4000")
    begun = "lora at "  # the line before the gate
    assert run_command("train", words, HungUp(begun)) == 129
    (directory,) = directories(root, "closed")
    record = json.loads((directory / "result.json").read_text())
    assert record["status"] == "interrupted"
    assert record["error"] == "stopped by SIGHUP; run the same command again to continue"
    assert "SIGHUP" in (directory / "run.log").read_text()


@pytest.mark.slow
def test_a_real_shell_and_head(root):
    import shlex
    import subprocess
    import sys

    words = words_of_a_run(root, "group=shell", "seed=0,1")
    program = [sys.executable, "-c", "from hylorada.cli import train; raise SystemExit(train())"]
    line = f"{shlex.join([*program, '-m', *words])} 2>&1 | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.splitlines()[-1] == "0"
    assert done.stderr == ""
    statuses = [json.loads((d / "result.json").read_text()) for d in directories(root, "shell")]
    assert [record["status"] for record in statuses] == ["ok", "ok"]


@pytest.mark.slow
def test_the_other_commands_end_well_too(root):
    words = words_of_a_run(root, "group=measured")
    assert run_command("train", words, Into(root / "out", root / "err")) == 0
    (directory,) = directories(root, "measured")
    assert run_command("eval", [f"run={directory}"], Head(1)) == 0
    assert len(json.loads((directory / "result.json").read_text())["evaluations"]) == 1
    assert run_command("report", [str(directory)], Head(1)) == 0
    assert (directory / "report" / "report.html").is_file()
    assert run_command("train", ["--help"], Head(1)) == 0
