"""`model.trained_length` in whole runs, and runs on what an earlier run left, merged."""

import json
import shutil

import pytest
import torch
from helpers.families import tokens
from helpers.tiny_runs import LENGTH, make_config, make_model_folder, make_texts
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hylorada.architecture import anatomy
from hylorada.config import ModelConfig
from hylorada.errors import ConfigError
from hylorada.loading.backbone import load_backbone
from hylorada.loading.finished_run import load_run
from hylorada.runner.evaluate import evaluate_run
from hylorada.runner.run import run

CPU = torch.device("cpu")
COUNT = 64


@pytest.fixture
def root(tmp_path):
    make_texts(tmp_path / "texts")
    make_model_folder(tmp_path / "model")
    return tmp_path


@pytest.fixture
def scaled(root):
    """A Llama whose config says linear, factor 2, 64 positions: trained on 64 tokens, or on 128."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=257, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=COUNT,
            rope_parameters={"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0},
        )
    )  # fmt: skip
    folder = shutil.copytree(root / "model", root / "scaled")
    model.save_pretrained(folder)
    return folder


def settings(root, folder, **changes):
    changes = {
        "model__path": str(folder), "train__max_steps": 1, "method__train_embeddings": "auto",
        "method__s2_attn__enabled": "false", **changes,
    }  # fmt: skip
    return make_config(root, **changes)


def test_without_it_both_readings_are_named_before_weights_are_read(root, scaled, monkeypatch):
    from hylorada.runner import run as module

    monkeypatch.setattr(module, "load_backbone", None)
    words = r"model\.trained_length=64 or model\.trained_length=128"
    with pytest.raises(ConfigError, match=words) as caught:
        run(settings(root, scaled), root / "run")
    assert caught.value.exit_code == 2


def test_trained_on_more_than_the_run_needs_nothing_is_extended(root, scaled):
    record = run(settings(root, scaled, model__trained_length=128), root / "run")
    assert record["provenance"]["base_model_trained_length"] == 128
    assert record["position_range"]["kind"] == "none"


def test_trained_on_less_it_is_scaled_further(root, scaled):
    record = run(settings(root, scaled, model__trained_length=64), root / "run")
    assert record["provenance"]["base_model_trained_length"] == 64
    assert record["position_range"] == {
        "kind": "rope", "from": 64, "to": 128, "factor": 2.0, "type": "linear"
    }  # fmt: skip
    model = load_run(root / "run", device="cpu")
    (_, rotary), *_ = anatomy.rotary_modules(model)
    plain = 5000.0 ** (-torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(rotary.inv_freq, plain / 4)
    assert model(tokens(1, LENGTH)).logits.isfinite().all()
    # Measured again: the same model, so the same number.
    config = settings(root, scaled, model__trained_length=64)
    config.eval.perplexity.conventions = ["blocks"]
    again = evaluate_run(root / "run", config)
    assert again["metrics"]["eval/ppl"] == record["metrics"]["eval/ppl"]


def merged(root, name, **changes):
    """The folder of a run of the length's end, merged into its base."""
    config = settings(
        root, root / "model", method__position_bias__enabled="false",
        method__landmark__enabled="false", method__train_embeddings="true", **changes,
    )  # fmt: skip
    run(config, root / name)
    model = load_run(root / name, device="cpu")
    expected = model(tokens(1, LENGTH)).logits
    folder = root / f"{name}-merged"
    model.merge_and_unload().save_pretrained(folder)
    AutoTokenizer.from_pretrained(root / "model").save_pretrained(folder)
    return folder, expected


@pytest.mark.slow
@pytest.mark.parametrize("written", ["now", "before the length was kept"])
def test_a_merged_run_is_measured_and_extended_again(root, written):
    folder, expected = merged(root, "first")
    if written != "now":
        path = folder / "config.json"
        config = json.loads(path.read_text())
        del config["hylorada_trained_length"]
        config["hylorada_range"] = {
            "kind": "learned", "from": COUNT, "to": LENGTH, "factor": 1.5, "type": "interpolate"
        }  # fmt: skip
        path.write_text(json.dumps(config))
    backbone = load_backbone(ModelConfig("m", str(folder)), CPU)
    assert backbone.trained_length == LENGTH
    torch.testing.assert_close(
        backbone.model(tokens(1, LENGTH)).logits, expected, rtol=1e-4, atol=1e-4
    )
    same = run(settings(root, folder), root / "same")  # at the length it was trained at
    assert same["position_range"]["kind"] == "none"
    longer = settings(root, folder, length__max_length=2 * LENGTH)
    record = run(longer, root / "longer")
    assert record["position_range"]["from"] == LENGTH
    assert record["position_range"]["to"] == 2 * LENGTH
    assert record["provenance"]["base_model_trained_length"] == LENGTH
    assert load_run(root / "longer", device="cpu")(tokens(1, 2 * LENGTH)).logits.isfinite().all()


def test_more_than_the_embeddings_have_rows_is_refused(root):
    config = settings(
        root, root / "model", model__trained_length=100, length__max_length=2 * LENGTH
    )
    with pytest.raises(ConfigError, match=r"has position embeddings for 64 tokens"):
        run(config, root / "run")
