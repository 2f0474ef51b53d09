"""The model card that a run leaves beside its adapter."""

from __future__ import annotations

import getpass
import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from helpers.tiny_runs import (
    killed,
    make_config,
    make_model_folder,
    make_texts,
    result,
    run_here,
    run_to_end,
)
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from hylorada.loading.finished_run import load_run
from hylorada.records.model_card import model_card
from hylorada.runner.evaluate import evaluate_run
from hylorada.runner.run import run
from hylorada.settings.fingerprint import run_name

PLAIN = {
    "length__max_length": 64,
    "method__name": "lora",
    "method__position_bias__enabled": "false",
    "method__landmark__enabled": "false",
    "method__s2_attn__enabled": "false",
    "method__train_embeddings": "false",
    "method__train_norms": "false",
}
SECRET = "hf_AbCdEfGhIjKlMnOpQrSt"
# Runs the program of a card and keeps its logits.
AFTER = """
import torch
from safetensors.torch import save_file
with torch.no_grad():
    save_file({"logits": model(torch.arange(1, 40)[None]).logits}, "logits.safetensors")
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    make_model_folder(folder / "model")
    make_texts(folder / "texts")
    return folder


def settings(root, **changes):
    return make_config(root, **{"train__max_steps": 2, "train__micro_batch_size": 1, **changes})


def finished(root, **changes):
    config = settings(root, **changes)
    record = run(config)
    return config, record, root / "outputs" / "main" / run_name(config)


@pytest.fixture(scope="module")
def own(root):
    changes = {
        "length__max_length": 320,
        "eval__lost_in_middle__enabled": True,
        "eval__lost_in_middle__key_style": "hex",
        "eval__lost_in_middle__examples": 3,
        "dataset__name": f"texts {SECRET}",
    }
    return finished(root, **changes)


@pytest.fixture(scope="module")
def plain(root):
    return finished(root, **PLAIN)


def card(directory):
    return (directory / "adapter" / "README.md").read_text()


def test_it_says_what_the_record_says(own):
    _, record, directory = own
    text = card(directory)
    assert text == model_card(record, directory / "adapter")
    header = ModelCard(text).data.to_dict()
    assert header == {
        "base_model": "tiny-random",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["hylorada", "long-context"],
    }
    for key in ("base_model_sha256", "base_model_config_sha256"):
        assert record["provenance"][key] in text
    ppl, before = record["metrics"]["eval/ppl"], record["base"]["extended"]["eval/ppl"]
    assert (
        f"| `eval/ppl` | {ppl['value']:.4g} | {before['value']:.4g} | perplexity, non-overlapping "
        f"windows, test split, window 320, {ppl['tokens']:,} tokens |"
    ) in text
    depth = record["metrics"]["lim/accuracy@0.5"]
    assert f"| {depth['value']:.4g} [{depth['low']:.4g}, {depth['high']:.4g}] |" in text
    for name in record["metrics"]:
        assert f"| `{name}` |" in text
    for count in record["parameters"]["by_group"].values():
        assert f"| {count:,} |" in text
    assert "scale alpha / sqrt(r), dropout 0.1; A started with orthonormal rows" in text
    assert "made for 320 positions (learned: interpolate)" in text
    assert f"{record['training']['tokens']:,} tokens in 2 steps" in text
    assert "seed 0" in text
    assert "passed these checks: position_range" in text
    assert "license" not in text


def test_it_has_no_path_no_user_and_no_secret(own, plain, root):
    for _, _, directory in (own, plain):
        text = card(directory)
        assert str(root) not in text
        assert not re.search(r"(^|[\s\"`(])[/~][\w.]+/", text)
        assert SECRET not in text
        assert getpass.getuser() not in re.findall(r"\w+", text)
        assert "More Information Needed" not in text


@pytest.mark.slow
@pytest.mark.parametrize("which", ["own", "plain"])
def test_its_program_loads_the_adapter(which, root, request, tmp_path):
    """In a process of its own, in which this package is there only where the card asks for it."""
    _, _, directory = request.getfixturevalue(which)
    text = card(directory)
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert ("import hylorada" in program) == (which == "own")
    shutil.copytree(root / "model", tmp_path / "tiny-random")
    shutil.copytree(directory / "adapter", tmp_path / "adapter")
    without = "" if which == "own" else 'import sys\nsys.modules["hylorada"] = None\n'
    subprocess.run(
        [sys.executable, "-c", without + program + AFTER],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    found = load_file(tmp_path / "logits.safetensors")["logits"]
    with torch.no_grad():
        expected = load_run(directory, device="cpu")(torch.arange(1, 40)[None]).logits
    assert torch.equal(found, expected)


def test_a_plain_adapter_is_pefts_own_and_its_run_goes_on_as_any_other(plain, root):
    config, record, directory = plain
    saved = json.loads((directory / "adapter" / "adapter_config.json").read_text())
    assert saved["peft_type"] == "LORA"
    assert record["integrity"]["checks"]["save_load"]["ok"]
    assert ModelCard(card(directory)).data.tags == ["hylorada", "long-context", "lora"]
    again = evaluate_run(directory, config)
    assert again["metrics"]["eval/ppl"]["value"] == pytest.approx(
        record["metrics"]["eval/ppl"]["value"], rel=1e-5
    )


def test_new_numbers_reach_the_card(own, root):
    config, _, directory = own
    before = card(directory)
    config.eval.lost_in_middle.depths = [0.0, 0.125, 1.0]
    record = evaluate_run(directory, config)
    assert "`lim/accuracy@0.125`" not in before
    assert "`lim/accuracy@0.125`" in card(directory)
    assert card(directory) == model_card(record, directory / "adapter")


@pytest.mark.slow
@pytest.mark.parametrize("point", ["before_evaluation", "before_record"])
def test_a_kill_between_leaves_a_run_that_the_same_command_finishes(root, point):
    config, directory = settings(root, **PLAIN, seed=7), root / f"killed-{point}"
    assert killed(run_to_end(config, directory, HYLORADA_FAULT=f"{point}:0"))
    assert (directory / "adapter" / "README.md").exists() == (point == "before_record")
    assert run_here(config, directory) == 0
    assert card(directory) == model_card(result(directory), directory / "adapter")


def test_how_far_it_reaches_is_what_became_of_the_range_and_not_what_was_asked(own):
    _, record, directory = own
    for kind, of, told in (
        ("none", "none", "the base's own range"), ("rope", "yarn", "RoPE: yarn")
    ):  # fmt: skip
        record = json.loads(json.dumps(record))
        record["position_range"] |= {"kind": kind, "type": of}
        assert f"made for 320 positions ({told})" in model_card(record, directory / "adapter")


def test_a_base_from_the_hub_is_named_and_pinned(own):
    _, record, directory = own
    record = json.loads(json.dumps(record))
    record["config"]["model"] |= {"path": "openai-community/gpt2", "revision": "607a30d"}
    text = model_card(record, directory / "adapter")
    assert ModelCard(text).data.base_model == "openai-community/gpt2"
    assert 'from_pretrained(base, dtype="float32", revision="607a30d")' in text
    assert "revision 607a30d" in text


def test_a_base_in_a_folder_that_nobody_named_is_called_by_the_folder(own):
    _, record, directory = own
    record = json.loads(json.dumps(record))
    for path in ("/home/alice/models/mine", "./models/mine", "~/mine"):
        record["model"] = record["config"]["model"]["path"] = path
        record["config"]["model"]["name"] = path
        text = model_card(record, directory / "adapter")
        assert ModelCard(text).data.base_model == "mine"
        assert "alice" not in text
        assert path not in text


def test_numbers_that_are_not_finite_are_words(own):
    _, record, directory = own
    record = json.loads(json.dumps(record))
    record["metrics"]["eval/ppl"]["value"] = None
    assert "| `eval/ppl` | not finite |" in model_card(record, directory / "adapter")
