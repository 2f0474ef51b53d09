"""`hylorada-export`: adapters and whole models for processes that know nothing of this package."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import torch
from helpers.tiny_runs import make_config, make_model_folder, make_texts
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, MixtralConfig
from transformers import MixtralForCausalLM as Mixtral

from hylorada import cli
from hylorada.architecture import anatomy
from hylorada.config import ModelConfig
from hylorada.errors import ConfigError, DataError, IntegrityError
from hylorada.loading.backbone import load_backbone
from hylorada.loading.finished_run import load_run
from hylorada.runner import export as room
from hylorada.runner.export import export
from hylorada.runner.run import run
from hylorada.settings.fingerprint import run_name

SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
OFF = {
    "integrity__enabled": False,
    "method__position_bias__enabled": "false",
    "method__landmark__enabled": "false",
    "method__s2_attn__enabled": "false",
    "method__train_embeddings": "false",
    "method__train_norms": "false",
}
# What a run has beyond plain LoRA, on which base, at which length.
MERGEABLE = {
    "plain": ("model", 64, {}),
    "dora": ("model", 64, {"method__lora__use_dora": True, "method__lora__init": "kaiming"}),
    "longer": (
        "model", 160,
        {"method__train_embeddings": "true", "method__train_norms": "true",
         "method__s2_attn__enabled": "true"},
    ),
    "rope": ("llama", 160, {"method__train_norms": "true"}),
    "experts": ("mixtral", 64, {"method__lora__lora_dropout": 0.0}),
    "baseline": ("llama", 160, {"method__lora__enabled": False}),
}  # fmt: skip
# Neither this package nor peft is there.
ELSEWHERE = """
import json, sys
sys.modules["hylorada"] = sys.modules["peft"] = None
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder, length in json.loads(sys.argv[1]):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert AutoTokenizer.from_pretrained(folder)("ab")["input_ids"]
    ids = (torch.arange(length) * 5 % 250)[None]
    with torch.no_grad():
        save_file({"logits": model(ids).logits}, folder + "/found.safetensors")
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    make_texts(folder / "texts")
    for name in ("model", "llama", "mixtral"):
        make_model_folder(folder / name)
    vocabulary = json.loads((folder / "model" / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    small = {**SMALL, "vocab_size": vocabulary}
    LlamaForCausalLM(LlamaConfig(**small)).save_pretrained(folder / "llama")
    Mixtral(
        MixtralConfig(**small, num_local_experts=4, num_experts_per_tok=2, sliding_window=None)
    ).save_pretrained(folder / "mixtral")
    return folder


def finished(root, model, length, changes, **more):
    config = make_config(
        root,
        **{
            **OFF,
            "train__max_steps": 2,
            "train__micro_batch_size": 1,
            "train__lr": 0.05,
            "length__max_length": length,
            "eval__perplexity__conventions": ["blocks"],
            "eval__perplexity__max_blocks": 1,
            **changes,
            **more,
        },
    )
    config.model = ModelConfig(f"tiny-{model}", str(root / model))
    run(config)
    return root / "outputs" / "main" / run_name(config)


class Runs(dict):
    """Each is made when it is first asked for."""

    def __init__(self, root):
        super().__init__()
        self.root = root

    def __missing__(self, name):
        self[name] = finished(self.root, *MERGEABLE[name])
        return self[name]


@pytest.fixture(scope="module")
def runs(root):
    return Runs(root)


def ids_of(length):
    return (torch.arange(length) * 5 % 250)[None]


@pytest.mark.slow
def test_a_merged_folder_is_the_model_of_the_run_to_transformers_alone(runs, tmp_path):
    places = []
    for name in MERGEABLE:
        folder = export(runs[name], tmp_path / name, merge=True)
        assert folder == tmp_path / name
        places.append([str(folder), MERGEABLE[name][1]])
    subprocess.run([sys.executable, "-c", ELSEWHERE, json.dumps(places)], check=True)
    for name, directory in runs.items():
        length = MERGEABLE[name][1]
        with torch.no_grad():
            expected = load_run(directory, device="cpu")(ids_of(length)).logits
        found = load_file(tmp_path / name / "found.safetensors")["logits"]
        assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max())), name
        if name != "baseline":
            base = load_backbone(ModelConfig("b", str(directory.parents[2] / MERGEABLE[name][0])),
                                 torch.device("cpu")).model  # fmt: skip
            with torch.no_grad():
                bare = base(ids_of(64)).logits
            assert (found[:, :64] - bare).abs().max() > 1e-3 * float(bare.abs().max()), name
        text = (tmp_path / name / "config.json").read_text()
        assert "s2_" not in text
        assert str(directory.parents[2]) not in text
        card = ModelCard.load(tmp_path / name / "README.md")
        assert card.data.library_name == "transformers"
        assert str(directory.parents[2]) not in card.content


def test_a_merged_folder_remembers_the_length_that_it_was_trained_on(runs, tmp_path):
    for name in ("longer", "rope"):
        folder = export(runs[name], tmp_path / name, merge=True)
        base = load_backbone(ModelConfig("merged", str(folder)), torch.device("cpu"))
        assert base.trained_length == anatomy.trained_length(base.model.config) == 160


def test_an_exported_adapter_is_that_of_the_run_with_its_card(runs, tmp_path):
    for name, plain in (("plain", True), ("longer", False)):
        folder = export(runs[name], tmp_path / name)
        assert sorted(path.name for path in folder.iterdir()) == [
            "README.md", "adapter_config.json", "adapter_model.safetensors",
        ]  # fmt: skip
        before = load_file(runs[name] / "adapter" / "adapter_model.safetensors")
        after = load_file(folder / "adapter_model.safetensors")
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
        settings = json.loads((folder / "adapter_config.json").read_text())
        assert (settings["peft_type"] == "LORA") == plain
        assert settings["base_model_name_or_path"] == "tiny-model"
        assert (folder / "README.md").read_text() == (
            runs[name] / "adapter" / "README.md"
        ).read_text()


def test_an_adapter_of_an_earlier_version_is_exported_in_the_form_that_loads_elsewhere(
    runs, tmp_path
):
    directory = tmp_path / "old"
    shutil.copytree(runs["plain"], directory)
    path = directory / "adapter" / "adapter_config.json"
    old = {**json.loads(path.read_text()), "peft_type": "HYLORADA", "max_length": 64}
    path.write_text(json.dumps(old))
    record = json.loads((directory / "result.json").read_text())
    del record["files"], record["sha256"]  # which records did not have then
    (directory / "result.json").write_text(json.dumps(record))
    folder = export(directory, tmp_path / "new")
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORA"


@pytest.mark.parametrize(("changes", "reason"), [
    ({"method__position_bias__enabled": "true"}, "its position bias scales the update"),
    ({"method__landmark__enabled": "true"}, "its landmarks are added by what each text contains"),
    ({"method__s2_attn__enabled": "true", "method__s2_attn__in_evaluation": True},
     "it attends in segments in evaluation too"),
])  # fmt: skip
def test_what_weights_cannot_hold_is_refused_before_any_weight_is_read(
    root, tmp_path, monkeypatch, changes, reason
):
    directory = finished(root, "model", 96, changes)
    monkeypatch.setattr(room, "load_finished", None)
    with pytest.raises(ConfigError, match=reason) as caught:
        export(directory, tmp_path / "new", merge=True)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_what_does_not_compute_the_same_gets_no_name(runs, tmp_path, monkeypatch):
    read = room._read_back

    def other(folder):
        model = read(folder)
        with torch.no_grad():
            next(model.parameters())[::2] *= 1.01
        return model

    monkeypatch.setattr(room, "_read_back", other)
    with pytest.raises(IntegrityError, match="computes different logits") as caught:
        export(runs["plain"], tmp_path / "new", merge=True)
    assert caught.value.exit_code == 7
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(runs, tmp_path):
    folder = tmp_path / "there"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    for merge in (False, True):
        with pytest.raises(ConfigError, match="already there; nothing is overwritten"):
            export(runs["plain"], folder, merge=merge)
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    assert not list(tmp_path.glob(".*"))


def test_what_is_no_finished_run_or_has_no_adapter_is_one_line(runs, root, tmp_path):
    with pytest.raises(DataError, match=r"no result\.json here"):
        export(tmp_path, tmp_path / "new")
    with pytest.raises(ConfigError, match="trains no adapter; merge=true"):
        export(runs["baseline"], tmp_path / "new")
    broken = tmp_path / "broken"
    shutil.copytree(runs["plain"], broken)
    weights = broken / "adapter" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(DataError, match="does not match its sha256"):
        export(broken, tmp_path / "new", merge=True)
    assert not (tmp_path / "new").exists()


def command(*words, **environment):
    code = "import sys; from hylorada.cli import export; sys.exit(export())"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        text=True, capture_output=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_a_killed_export_leaves_no_folder_and_the_same_command_writes_it(runs, tmp_path):
    words = (f"run={runs['plain']}", f"to={tmp_path / 'my model'}", "merge=true")
    done = command(*words, HYLORADA_FAULT="before_export:0")
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".my model.partial"]
    done = command(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path / 'my model'}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["my model"]
    assert AutoTokenizer.from_pretrained(tmp_path / "my model").vocab_size == 257
    again = command(*words)
    assert again.returncode == 2
    assert again.stderr.startswith("hylorada-export: error: to=")


@pytest.mark.parametrize(("words", "code", "message"), [
    ([], 2, "name the run to export: run=DIRECTORY"),
    (["run="], 2, "run=: give it once, with a value"),
    (["run=a", "run=b"], 2, "run=: give it once"),
    (["run=a", "merge=maybe"], 2, "merge=maybe: use true or false"),
    (["run=a", "merg=true"], 2, "merg=true: not an argument of this command; did you mean merge?"),
    (["a"], 2, "a: not an argument of this command; see hylorada-export --help"),
    (["--merge", "run=a"], 2, "--merge; arguments have no dashes, as in merge="),
    (["--quiet"], 2, "unrecognized arguments: --quiet; see --help"),
    (["run=/nowhere"], 3, "run=/nowhere: there is no such directory"),
])  # fmt: skip
def test_words_of_the_command(words, code, message, capsys):
    assert cli.export(words) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("hylorada-export: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_the_command_has_help_a_version_and_a_script(capsys):
    assert cli.export(["--help"]) == 0
    assert "merge=true" in capsys.readouterr().out
    assert cli.export(["--version"]) == 0
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    module, _, name = project["project"]["scripts"]["hylorada-export"].partition(":")
    assert getattr(import_module(module), name) is cli.export


def test_a_4_bit_run_is_not_merged(runs, tmp_path, monkeypatch):
    record = json.loads((runs["plain"] / "result.json").read_text())
    record["config"]["model"]["quantization"] = "nf4"
    monkeypatch.setattr("hylorada.runner.export.finished_record", lambda *_: record)
    with pytest.raises(ConfigError, match="merge=true is not exact for a 4-bit base"):
        export(runs["plain"], tmp_path / "new", merge=True)
    with pytest.raises(ConfigError, match="4-bit layers are for CUDA devices"):  # nor read here
        export(runs["plain"], tmp_path / "new")
