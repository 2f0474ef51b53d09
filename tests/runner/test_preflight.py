"""In which order a run is refused: settings before the model, the model before its weights, weights
before text is tokenised or anything is measured.

What was not reached is proven by what lies there: weights whose bytes are damaged, and a cache of
tokens and of the base's measurements that stays empty.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.families import CONFIGS
from helpers.tiny_runs import LENGTH, make_config, make_model_folder, make_texts, result
from helpers.unreadable import no_permission
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hylorada import config as configs
from hylorada.errors import ConfigError, DataError, DiskError, HyloradaError
from hylorada.runner import preflight as module
from hylorada.runner.earlier_attempt import check_start
from hylorada.runner.evaluate import evaluate_run
from hylorada.runner.preflight import Preflight
from hylorada.runner.run import run

COMMANDS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preflight")
    make_model_folder(folder / "model")
    make_texts(folder / "texts")
    return folder


@pytest.fixture
def damaged(root, tmp_path):
    """The model with half of its file of weights."""
    folder = shutil.copytree(root / "model", tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    return folder


def base_of(root, folder, config, rows=None):
    """A random model of some architecture with the tokenizer of `root`."""
    shutil.copytree(root / "model", folder)
    config.vocab_size = rows or 257
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


def plain(**changes):
    """LoRA alone, so that a change is the only reason."""
    off = dict.fromkeys(("position_bias", "landmark", "s2_attn"), "false")
    return {
        "method__train_embeddings": "false",
        "method__train_norms": "false",
        **{f"method__{name}__enabled": value for name, value in off.items()},
        **changes,
    }


# What a run cannot be -> a change that asks for it, the error and a part of what it says. Weights
# are damaged in all of them.
REFUSED = {
    "no such module": (
        {"method__lora__target_modules": ["c_attn", "nope"]}, ConfigError, "no module nope",
    ),
    "an adapter on the head": (
        {"method__lora__target_modules": ["lm_head"]}, ConfigError, "leave the head out",
    ),
    "RoPE on a model without it": (
        {"method__position_range__rope_type": "linear"}, ConfigError, "no rotary",
    ),
    "DoRA with a position bias": (
        {"method__lora__use_dora": True, "method__position_bias__enabled": "true"},
        ConfigError, "DoRA and the position bias",
    ),
    "a learning rate for what the length leaves out": (
        {"method__landmark__enabled": "auto", "train__lr_scale__landmark": 2.0},
        ConfigError, "lr_scale.landmark=2 has no effect",
    ),
    "prompts that never fit": (
        {"eval__lost_in_middle__enabled": True}, DataError, "not even two uuid pairs fit",
    ),
    "prompts of so many items": (
        {"eval__lost_in_middle__enabled": True, "eval__lost_in_middle__items": 20},
        DataError, f"more than the window of {LENGTH}",
    ),
    "a training task that does not fit": ({"train__task": "retrieval"}, DataError, "6 pairs"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_model_or_the_tokenizer_tells_is_said_before_its_weights(
    root, damaged, tmp_path, what
):
    changes, error, said = REFUSED[what]
    config = make_config(
        root, **plain(model__path=str(damaged), dataset__cache_dir=str(tmp_path / "cache")),
        output_root=str(tmp_path / "out"),
    )  # fmt: skip
    for key, value in changes.items():
        config = make_config_like(config, key, value)
    with pytest.raises(error, match=said) as caught:
        run(config)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "out" / ".cache").exists()
    record = json.loads(next((tmp_path / "out").rglob("result.json")).read_text())
    assert (record["status"], record["error"]) == ("failed", str(caught.value))


def make_config_like(config, key, value):
    *path, last = key.split("__")
    target = config
    for name in path:
        target = getattr(target, name)
    assert hasattr(target, last), key
    setattr(target, last, value)
    return config


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused(root, tmp_path):
    small = base_of(root, tmp_path / "small", CONFIGS["llama"](64), rows=200)
    (tmp_path / "small" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="257 tokens, the model embeds 200"):
        Preflight().check(make_config(root, **plain(model__path=small)))
    with pytest.raises(ConfigError, match="257 tokens, the model embeds 200"):
        Preflight().check(make_config(root, model__path=small), trains=False)


def test_rope_out_of_reach_is_refused_without_weights(root, tmp_path):
    llama = base_of(root, tmp_path / "llama", CONFIGS["llama"](64))
    (tmp_path / "llama" / "model.safetensors").write_bytes(b"")
    wanted = plain(model__path=llama, length__max_length=320)
    with pytest.raises(ConfigError, match="2 x 64 trained positions reach 128"):
        Preflight().check(make_config(root, **wanted, method__position_range__rope_factor=2.0))
    with pytest.raises(DataError, match="damaged"):
        Preflight().check(make_config(root, **wanted, method__position_range__rope_factor=5.0))


def test_headers_of_weights_are_looked_at_before_text_is_tokenised(root, damaged, tmp_path):
    config = make_config(
        root, model__path=str(damaged), dataset__cache_dir=str(tmp_path / "cache"),
        output_root=str(tmp_path),
    )  # fmt: skip
    with pytest.raises(DataError, match=r"model\.safetensors is damaged"):
        run(config)
    assert not (tmp_path / "cache").exists()


def test_weights_that_may_not_be_read_are_called_that(root, tmp_path):
    shutil.copytree(root / "model", tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    no_permission(weights)
    with pytest.raises(DataError, match=r"model\.safetensors cannot be read \(Permission denied"):
        Preflight().check(make_config(root, **plain(model__path=str(tmp_path / "model"))))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_files_of_a_model_that_may_not_be_read_are_called_that(root, tmp_path, name):
    shutil.copytree(root / "model", tmp_path / "model")
    no_permission(tmp_path / "model" / name)
    with pytest.raises(DataError, match=rf"/{name} cannot be read \(Permission denied\); make it"):
        Preflight().check(make_config(root, **plain(model__path=str(tmp_path / "model"))))


@pytest.mark.parametrize("key", ["output_root", "dataset__cache_dir"])
def test_a_run_that_would_write_into_its_own_text_is_refused(root, tmp_path, key):
    texts = root / "texts"
    inside = make_config(root, **{key: str(texts / "runs")})
    with pytest.raises(ConfigError, match=f"{key.replace('__', '.')}=.* lies in dataset.path"):
        check_start(inside, tmp_path / "run")
    for apart in (root / "texts-runs", texts / ".runs"):  # beside it, or hidden and so not read
        check_start(make_config(root, **{key: str(apart)}), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors, key: tensors.pop(key), "its weights lack 1 tensor of GPT2LMHeadModel"),
        (lambda tensors, key: tensors.update({key: tensors[key][:-1].clone()}), "another shape"),
    ],
)
def test_tensors_are_missed_by_the_headers_alone(root, tmp_path, change, said):
    folder = shutil.copytree(root / "model", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    change(tensors, "transformer.h.1.mlp.c_fc.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = make_config(root, model__path=str(folder))
    for trains in (True, False):
        with pytest.raises(DataError, match=said):
            Preflight().check(config, trains=trains)


def test_a_model_without_safetensors_is_told_before_text_is_tokenised(root, tmp_path):
    folder = shutil.copytree(root / "model", tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(DataError, match="no safetensors weights"):
        Preflight().check(make_config(root, model__path=str(folder)))
    (folder / "other.safetensors").write_bytes(b"")  # nothing that would be loaded
    shutil.copy(root / "model" / "model.safetensors", folder)
    Preflight().check(make_config(root, model__path=str(folder)))


def test_what_the_check_itself_cannot_do_refuses_nothing(root, monkeypatch):
    """A model that cannot be built without weights, and a bug of ours in a sweep."""

    def fail(*_, **__):
        raise NotImplementedError("Cannot copy out of meta tensor")

    with monkeypatch.context() as patch:
        patch.setattr(module.AutoModelForCausalLM, "from_config", fail)
        Preflight().check(make_config(root))
    with monkeypatch.context() as patch:
        patch.setattr(module.AutoModelForCausalLM, "from_pretrained", fail)
        Preflight().check(make_config(root))
    monkeypatch.setattr(module.Preflight, "check", fail)
    assert module.refused_cells({"a": make_config(root)}, here=True) == {}


@pytest.mark.slow
def test_a_later_measurement_is_refused_before_weights_too(root, tmp_path):
    folder = shutil.copytree(root / "model", tmp_path / "model")
    config = make_config(root, model__path=str(folder), train__max_steps=1)
    record = run(config, tmp_path / "run")
    (folder / "model.safetensors").write_bytes(b"")
    config.eval.lost_in_middle.enabled = True
    with pytest.raises(DataError, match="not even two uuid pairs fit"):
        evaluate_run(tmp_path / "run", config)
    assert result(tmp_path / "run") == record


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_that_is_missing_is_known_before_another_is_tokenised(root, tmp_path, split):
    texts = shutil.copytree(root / "texts", tmp_path / "texts")
    shutil.rmtree(texts / split)
    config = make_config(
        root, dataset__path=str(texts), train__eval_every=2,
        dataset__cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    with pytest.raises(DataError, match=f"no file of the {split} split"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "cache").exists()


def test_too_few_blocks_are_known_before_weights_are_read(root, tmp_path):
    """Bytes of weights that no header betrays: the run would train on them."""
    words = " ".join(["alpha"] * 200)
    texts = shutil.copytree(root / "texts", tmp_path / "texts")
    for path in (texts / "train").iterdir():
        path.write_text(words)  # 1199 bytes; with a space before each word one token less a word
    seen = []
    for length, said in ((4096, "not one block of 4096 tokens"), (1210, "not one block of 1210")):
        wanted = plain(length__max_length=length, dataset__path=str(texts))
        config = make_config(root, **wanted, output_root=str(tmp_path))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("hylorada.runner.run.load_backbone", lambda *_: seen.append("weights"))
            with pytest.raises(DataError, match=said):
                run(config)
        if length == 4096:  # fewer bytes than tokens: known before a sweep starts
            with pytest.raises(DataError, match=said):
                Preflight().check(config)
        else:
            Preflight().check(config)
    assert not seen
    assert not (tmp_path / ".cache").exists()


def test_a_whole_split_that_is_only_a_part_is_known_before_weights_are_read(root, tmp_path):
    changes = {"eval__perplexity__conventions": ["word"], "eval__perplexity__max_tokens": 100}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hylorada.runner.run.load_backbone", None)
        with pytest.raises(ConfigError, match="word is a number of the whole split"):
            run(make_config(root, **changes, output_root=str(tmp_path)))
        gain = {"eval__context_gain__enabled": True, "eval__context_gain__targets": 8}
        long = plain(length__max_length=2048, eval__context_gain__contexts=[900, 1900])
        with pytest.raises(DataError, match=r"no document of \d+ tokens in the test split"):
            run(make_config(root, **gain, **long, output_root=str(tmp_path)))


def test_what_a_gate_refuses_is_known_before_the_base_is_measured(root, tmp_path):
    config = make_config(root, method__landmark__pooling="sequence_mean", output_root=str(tmp_path))
    with pytest.raises(HyloradaError, match="causality"):
        run(config)
    assert not (tmp_path / ".cache").exists()


def test_what_several_runs_share_is_looked_at_once(root, monkeypatch):
    seen = []
    real = module.open_base
    monkeypatch.setattr(module, "open_base", lambda m: seen.append(m.path) or real(m))
    checks = Preflight()
    for seed in (0, 1):
        checks.check(make_config(root, seed=seed))
    checks.check(make_config(root, method__lora__r=2))
    for _ in range(2):  # a refusal, too
        with pytest.raises(DataError):
            checks.check(make_config(root, model__path=str(root / "none")))
    assert seen == [str(root / "model"), str(root / "none")]


# --- without torch --------------------------------------------------------------------------------


# Words, exit code and a part of what is said.
TOLD_EARLY = {
    "resume=must": (3, "has no checkpoint to continue from"),
    "integrity.probe_length=5": (2, "the gate needs 12 at least"),
    "length=512 integrity.probe_length=600": (2, "more than length.max_length"),
    "dataset=longbench dataset.path=.": (3, "LongBench is a test set and has no train split"),
    "method=baseline dataset=longbench dataset.path=. dataset.tasks=[treck]": (2, "trec"),
    "eval.harness.tasks=[longbench_treck]": (2, "did you mean longbench_trec?"),
    "output_root=file": (6, "cannot be written (Not a directory)"),
}


def test_what_needs_no_model_is_said_without_torch(tmp_path):
    (tmp_path / "file").write_text("")
    code = (
        "import sys\nfrom hylorada import cli\n"
        f"for words in {list(TOLD_EARLY)!r}:\n"
        "    print(cli.train(words.split()), 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        check=True,
    )  # fmt: skip
    expected = TOLD_EARLY.values()
    assert done.stdout.splitlines() == [f"{code} False" for code, _ in expected]
    for line, (_, said) in zip(done.stderr.splitlines(), expected, strict=True):
        assert said in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_another_machine_needs_no_device_of_this_one(root, monkeypatch):
    config = make_config(root, device="cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA device"):
        Preflight().check(config)
    Preflight().check(config, here=False)


def test_a_parent_that_cannot_be_written_is_refused(root, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(DiskError, match="Permission denied"):
        check_start(configs.RunConfig(), tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_a_sweep_tells_what_cannot_run_first_and_runs_the_rest(root, tmp_path):
    words = [
        "-m", f"model={root / 'model'}", "dataset=local", f"dataset.path={root / 'texts'}",
        "length=512", "length.max_length=96", "method.lora.target_modules=[c_attn],[nope]",
        "method=lora", "train.max_steps=1", "eval=quick", "track=off",
        f"dataset.cache_dir={tmp_path}",
    ]  # fmt: skip
    done = subprocess.run(
        [COMMANDS / "hylorada-train", *words], cwd=tmp_path, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert "no module nope" in lines[0]
    assert "2 cells: 1 run, 0 done already, 1 failed" in done.stderr
    records = [json.loads(p.read_text()) for p in tmp_path.rglob("result.json")]
    assert sorted(record["status"] for record in records) == ["failed", "ok"]
    assert len(list((tmp_path / "outputs").rglob("run.log"))) == 2
