"""The installed `hylorada-eval`, in processes of its own, on the embedded model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.marks import on_request
from helpers.tiny_runs import result
from peft import LoraConfig, get_peft_model

from hylorada.config import ModelConfig
from hylorada.loading.backbone import load_backbone

pytestmark = pytest.mark.slow

SMALL = [
    "length=512", "eval=quick", "eval.perplexity.max_blocks=2", "track=off",
    "dataset.max_documents=3",
]  # fmt: skip
RETRIEVAL = [
    "eval.lost_in_middle.enabled=true", "eval.lost_in_middle.key_style=hex",
    "eval.lost_in_middle.examples=10", "eval.lost_in_middle.depths=[0,0.5,1]",
    "eval.short_context.max_blocks=0",  # between the perplexity and the prompts
]  # fmt: skip
PROMPTS = 30


def start(name: str, folder: Path, *words: str, **variables: str) -> subprocess.Popen[str]:
    """An installed command; what a terminal would show lies beside the folder's runs."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen(
        [Path(sys.executable).with_name(name), *words],
        cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def done(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert "Warning" not in err
    return out, err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("eval-command")


@pytest.fixture(scope="module")
def run(folder):
    """A finished run of two steps."""
    words = [*SMALL, "method=lora", "train.max_steps=2", "train.micro_batch_size=1"]
    out, _ = done(start("hylorada-train", folder, *words, f"dataset.cache_dir={folder}/cache"))
    return folder / out.splitlines()[-1]


@pytest.fixture(scope="module")
def evaluated(folder, run):
    """The run, evaluated without an interruption: its directory, and both outputs."""
    directory = copied(run, "evaluated")
    return directory, *done(start("hylorada-eval", folder, f"run={directory}", *RETRIEVAL))


def copied(run: Path, name: str) -> Path:
    # Beside the run, so that the base's measurements are shared.
    return Path(shutil.copytree(run, run.with_name(name)))


def test_it_prints_the_numbers_and_adds_them_to_the_record(run, evaluated):
    directory, out, _ = evaluated
    before, record = result(run), result(directory)
    assert record["metrics"]["lim/accuracy"]["prompts"] == PROMPTS
    assert record["base"]["extended"]["lim/accuracy"]["prompts"] == PROMPTS
    assert record["metrics"]["eval/ppl"]["value"] == pytest.approx(
        before["metrics"]["eval/ppl"]["value"], rel=1e-5
    )
    (entry,) = record["evaluations"]
    assert entry["text"] == record["provenance"]["dataset"]["test"]
    assert entry["text"] == "stdlib test, the first 3 documents"
    assert "lora, 2 steps" in out
    assert f"{record['metrics']['lim/accuracy']['value']:.1%}" in out
    assert f"{record['metrics']['eval/ppl']['value']:.3f}" in out
    assert out.splitlines()[-1] == f"added to {directory / 'result.json'}"
    assert not list(directory.glob(".evaluation*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, *on_request(signal.SIGINT)])
def test_a_signal_keeps_the_record_and_the_same_command_continues(folder, run, evaluated, number):
    directory = copied(run, f"stopped-{number}")
    before = (directory / "result.json").read_bytes()
    # It halts itself after twenty prompts of thirty, and goes on with the signal.
    halting = {"HYLORADA_FAULT": "inside_evaluation:20:SIGSTOP"}
    process = start("hylorada-eval", folder, f"run={directory}", *RETRIEVAL, **halting)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert list(directory.glob(".evaluation-*.partial.parts"))  # perplexity is measured
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    out, err = done(process, 128 + number)
    assert out == ""
    name = signal.Signals(number).name
    assert err.splitlines()[-1] == (
        f"hylorada-eval: error: stopped by {name}; run the same command again to continue"
    )
    assert (directory / "result.json").read_bytes() == before
    (partial,) = directory.glob(".evaluation-*.partial-lost_in_middle")
    assert 0 < len(json.loads(partial.read_text())["done"]) < PROMPTS

    out, err = done(start("hylorada-eval", folder, f"run={directory}", *RETRIEVAL))
    assert "lora, blocks" not in err  # not measured twice
    uninterrupted, shown, _ = evaluated
    for part in ("metrics", "base"):
        assert result(directory)[part] == result(uninterrupted)[part]
    assert out.splitlines()[:-1] == shown.splitlines()[:-1]
    assert not list(directory.glob(".evaluation*"))


def test_a_plain_peft_adapter_is_measured_on_the_base_that_is_named(folder, run):
    base = load_backbone(ModelConfig(), torch.device("cpu")).model
    plain = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    model = get_peft_model(base, plain)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(str(folder / "plain"), save_embedding_layers=False)  # no hub
    words = ["adapter=plain", "model=tiny", *SMALL, f"dataset.cache_dir={folder}/cache"]
    out, _ = done(start("hylorada-eval", folder, *words))
    directory = folder / out.splitlines()[-1].removeprefix("record: ")
    record = result(directory.parent)
    assert (record["status"], record["method"]) == ("ok", "adapter-plain")
    assert record["config"]["method"]["peft_type"] == "LORA"
    found = record["metrics"]["eval/ppl"]["value"]
    assert f"{found:.3f}" in out
    assert found != record["base"]["extended"]["eval/ppl"]["value"]
    assert record["base"] == result(run)["base"]  # the same base, of the same cache
