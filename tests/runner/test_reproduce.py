"""`make` once more: what is done costs no run, what was killed is finished, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import Into, run_command, words_of_a_run
from helpers.tiny_runs import killed, make_model_folder, make_texts

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed"),
    pytest.mark.skipif(not (BIN / "hylorada-train").exists(), reason="its commands are elsewhere"),
]
OVERLAY = """\
# @package _global_
experiment: t1_mine
group: tables
hydra:
  sweeper:
    params:
      method: lora,rslora
"""


def test_a_second_make_runs_nothing_and_what_was_killed_is_finished(tmp_path: Path) -> None:
    make_model_folder(tmp_path / "model")
    make_texts(tmp_path / "texts")
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/t1_mine.yaml").write_text(OVERLAY)
    shutil.copy(ROOT / "Makefile", tmp_path)
    own = ["--config-dir", f"{tmp_path}/conf"]
    words = [w for w in words_of_a_run(tmp_path) if not w.startswith(("method=", "output_root="))]

    def make() -> subprocess.CompletedProcess[str]:
        # Under `make test` a child make inherits MAKEFLAGS.
        env = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
        env |= {"HF_HUB_OFFLINE": "1", "WORDS": " ".join([*words, *own])}
        command = ["make", "-o", "setup", "table-t1", f"BIN={BIN}"]
        return subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600, check=False
        )

    cell = [*words, *own, "experiment=t1_mine", "method=rslora", "train.save_every=1"]
    cell += ["-m", f"output_root={tmp_path}/outputs"]
    streams = Into(tmp_path / "out", tmp_path / "err")
    assert killed(run_command("train", cell, streams, HYLORADA_FAULT="after_step:2"))
    (stopped,) = (tmp_path / "outputs/tables").glob("rslora-*")
    assert not (stopped / "result.json").exists()

    first = make()
    assert first.returncode == 0, first.stderr
    assert "2 cells: 2 run, 0 done already, 0 failed" in first.stderr
    assert "continuing from step 2" in (stopped / "run.log").read_text()
    records = sorted((tmp_path / "outputs/tables").glob("*/result.json"))
    assert len(records) == 2
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in records}

    again = make()
    assert again.returncode == 0, again.stderr
    assert "2 cells: 0 run, 2 done already, 0 failed" in again.stderr
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in records} == before
    assert (tmp_path / "outputs/tables/report/report.html").is_file()
