"""Whole runs on bases whose logits are more than their head: measured rightly, or refused first."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.tiny_runs import make_config, make_model_folder, make_texts
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hylorada.errors import ConfigError
from hylorada.runner.evaluate_adapter import evaluate_adapter
from hylorada.runner.run import run

TEXT = "alpha beta gamma delta alpha beta"  # one block, so that the model's own loss is the oracle


@pytest.fixture
def root(tmp_path):
    make_model_folder(tmp_path / "model")
    for split in ("train", "validation", "test"):
        (make_texts(tmp_path / "texts") / split / "0.txt").write_text(
            TEXT * (20 - 19 * (split == "test"))
        )
    (tmp_path / "texts" / "test" / "1.txt").unlink()
    return tmp_path


def base(root, kind, **settings):
    """A base of another architecture with the byte tokenizer."""
    size = len(AutoTokenizer.from_pretrained(root / "model"))
    config = AutoConfig.for_model(
        kind, vocab_size=size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, pad_token_id=0, bos_token_id=0,
        eos_token_id=0, **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.normal_(0.0, 0.3)
    (root / "model" / "model.safetensors").unlink()
    model.save_pretrained(root / "model")
    return model


def settings(root, **changes):
    config = make_config(root, length__max_length=40, train__max_steps=2, **changes)
    config.model.attn_implementation = "eager"  # Gemma 2 has nothing else
    config.eval.perplexity.conventions = ["blocks"]
    method = config.method
    method.position_bias.enabled = method.landmark.enabled = method.s2_attn.enabled = "false"
    method.train_embeddings = method.train_norms = "false"
    return config


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("granite", {"logits_scaling": 6.0, "num_key_value_heads": 2}),
        ("gemma2", {"final_logit_softcapping": 4.0, "num_key_value_heads": 2, "head_dim": 8}),
    ],
)
def test_a_run_measures_and_trains_the_models_own_loss(root, kind, options):
    model = base(root, kind, **options)
    ids = AutoTokenizer.from_pretrained(root / "model")(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        own = math.exp(model(input_ids=ids, labels=ids).loss.item())
    record = run(settings(root), root / "run")
    assert record["base"]["extended"]["eval/ppl"]["value"] == pytest.approx(own, rel=1e-5)
    assert record["status"] == "ok"
    folder = root / "foreign"
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    measured = evaluate_adapter(folder, settings(root))
    assert measured["metrics"]["eval/ppl"]["value"] == pytest.approx(own, rel=1e-5)


def test_a_base_with_another_function_is_refused_before_anything_is_measured(root):
    model = base(root, "modernbert-decoder", cls_token_id=0, sep_token_id=0)
    with pytest.raises(ConfigError, match="not its backbone's hidden states") as caught:
        run(settings(root), root / "run")
    assert caught.value.exit_code == 2
    assert not (root / "outputs" / ".cache").exists()
    folder = root / "foreign"
    get_peft_model(model, LoraConfig(r=2, target_modules=["Wo"])).save_pretrained(folder)
    with pytest.raises(ConfigError, match="not its backbone's hidden states"):
        evaluate_adapter(folder, settings(root))
    assert not (root / "outputs" / ".cache").exists()
