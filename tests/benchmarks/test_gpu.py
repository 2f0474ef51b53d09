"""The GPU script, rehearsed on a processor: every kind of row, and what becomes of a bad cell."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"
# One row of each kind; the others run the same code with other parameters.
KINDS = (
    "0/,1/s2/9-3,1/leak,1/loss/some/512,1/frozen/gpt2/bf16/ckpt,1/landmarks,1/decode,1/candidates,"
    "1/gate/gpt2/bf16,1/resume,1/run,2a/step/llama1b/8k,2a/profile/gpt2/8k/hyl,2a/loop,2a/fits,"
    "2a/part/loss/512,2a/part/position_bias,2a/part/adamw,2a/part/rms_norm,2a/part/cast,"
    "2b/step/gpt2/64k,2b/windows,2b/ranking/4k,3/books/16k"
)


def gpu(*words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def rehearsed(out, *words):
    done = gpu("--device", "cpu", "--tiny", "--deadline-s", 1e6, "--out", out, *words)
    assert out.is_file(), done.stderr[-2000:]
    made = rows(out)
    wrong = [(row["key"], row.get("trace") or row.get("error")) for row in made if not row["ok"]]
    assert not wrong, wrong
    assert done.returncode == 0, done.stderr[-2000:]
    return made


def keys(*words):
    listed = gpu("--list", *words)
    assert listed.returncode == 0, listed.stderr
    return listed.stdout.split()


@pytest.mark.slow
def test_a_rehearsal_gives_a_row_of_every_kind(tmp_path):
    made = rehearsed(tmp_path / "rows.jsonl", "--no-suite", "--only", KINDS)
    by_key = {row["key"]: row for row in made}
    assert len(by_key) == len(made) > 50
    for row in made:
        assert {"key", "ok", "seconds", "t", "device", "torch", "cudnn", "git"} <= set(row)
    assert by_key["1/s2/9-3/layers/fp32"]["kernels"]
    assert by_key["1/leak/gpt2/plain"]["off"] == 0 < by_key["1/leak/gpt2/plain"]["moves_elsewhere"]
    assert by_key["1/resume/strict"]["equal_bits"]
    step = by_key["2a/step/llama1b/8k/hyl"]
    assert {"ms", "wall_ms", "iqr_ms", "spread", "ratio", "peak_mib", "floor_ms"} <= set(step)
    assert (step["of"], by_key["2a/step/llama1b/8k/peft"]["ratio"]) == ("peft", 1)
    lora, hyl = (by_key[f"3/books/16k/{arm}"] for arm in ("lora", "hyl"))
    assert lora["equal_at_step"] == hyl["equal_at_step"] == min(lora["steps"], hyl["steps"])


@pytest.mark.long
def test_the_whole_rehearsal_gives_every_row_that_a_gpu_gives(tmp_path):
    made = rehearsed(tmp_path / "rows.jsonl")
    planned = keys()
    assert len(planned) == len(set(planned)) > 140
    assert sorted(row["key"] for row in made) == sorted(planned) == sorted(keys("--tiny"))
    again = gpu("--device", "cpu", "--tiny", "--out", tmp_path / "rows.jsonl")
    assert "0 rows" in again.stdout


def test_without_a_gpu_it_says_how_to_rehearse(tmp_path):
    refused = gpu("--out", tmp_path / "rows.jsonl")
    assert refused.returncode == 2
    assert refused.stderr.strip().endswith("rehearse with --device cpu --tiny")


@pytest.fixture
def made_of(monkeypatch, tmp_path):
    """Runs cells by (key, what happens); gives back their rows."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    rows = importlib.import_module("gpu_parts.rows")

    def go(cells, seconds=1000.0, retry=False):
        kept = rows.Rows(tmp_path / "rows.jsonl", [], {"device": "none"}, retry)
        wanted = [rows.Cell("1", names, cost, call) for names, cost, call in cells]
        return rows.run(wanted, kept, time.monotonic() + seconds, lambda: None)

    return go


def found(*names):
    return lambda keys: ((key, {"value": 1}) for key in keys if key in names)


def broken(keys):
    yield keys[0], {"value": 1}
    raise ValueError("no such kernel")


def endless(keys):
    while True:
        time.sleep(0.01)
    yield


def test_what_fails_is_a_row_and_the_others_go_on(made_of):
    cells = [(["a", "b"], 1.0, broken), (["c"], -3.3, endless), (["d", "e"], 1.0, found("d"))]
    made = {row["key"]: row for row in made_of(cells)}
    assert [row["ok"] for row in made.values()] == [True, False, False, True, False]
    assert made["1/b"]["error"] == "ValueError: no such kernel"
    assert "rehearsal" not in made["1/b"]["trace"]
    assert made["1/c"]["error"] == "its time box ended"
    assert made["1/e"]["error"] == "the cell gave no such row"
    # Errors are not tried again but on request; what is there is never made again.
    assert made_of(cells) == []
    assert [row["key"] for row in made_of([(["e", "d"], 1.0, found("e"))], retry=True)] == ["1/e"]


def test_what_does_not_fit_the_time_is_left_for_the_next_call(made_of, tmp_path):
    cells = [(["long"], 900.0, found("long")), (["short"], 1.0, found("short"))]
    assert [row["key"] for row in made_of(cells, seconds=500.0)] == ["1/short"]
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"key": "1/long", "ok": tr')  # the machine went away
    assert [row["key"] for row in made_of(cells)] == ["1/long"]
    assert made_of(cells) == []
