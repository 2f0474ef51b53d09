"""A whole run on a mixture of experts: the log and the record say how much of it is adapted."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from helpers.tiny_runs import make_config, make_model_folder, make_texts
from safetensors.torch import load_file
from transformers import MixtralConfig, MixtralForCausalLM

from hylorada.loading.finished_run import load_run
from hylorada.records.schema import record_flaws
from hylorada.runner.run import run
from hylorada.settings.fingerprint import run_name


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    make_texts(folder / "texts")
    make_model_folder(folder / "model")
    vocabulary = json.loads((folder / "model" / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    MixtralForCausalLM(
        MixtralConfig(
            vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
            num_experts_per_tok=2, max_position_embeddings=96, sliding_window=None,
            bos_token_id=0, eos_token_id=0,
        )
    ).save_pretrained(folder / "model")  # fmt: skip
    return folder


def settings(root, **changes):
    return make_config(
        root,
        **{
            "train__max_steps": 3,
            "eval__perplexity__conventions": ["blocks"],
            "method__position_bias__enabled": "false",
            "method__landmark__enabled": "false",
            "method__s2_attn__enabled": "false",
            "method__train_embeddings": "false",
            "method__train_norms": "false",
            "method__lora__lora_dropout": 0.0,
            # Whether later tokens move a mixture by rounding is not what is asked here.
            "integrity__enabled": False,
            **changes,
        },
    )


def test_experts_train_are_saved_and_stand_in_the_record(root, caplog):
    config = settings(root)
    with caplog.at_level(logging.INFO, "hylorada"):
        record = run(config)
    experts = record["parameters"]["experts"]
    assert experts["adapted"] == 1.0
    assert list(record_flaws(record, whole=True)) == []
    assert experts["note"] == "experts are adapted: 85% of the decoder layers' parameters"
    assert experts["note"] in caplog.messages
    directory = root / "outputs" / "main" / run_name(config)
    tensors = load_file(directory / "adapter" / "adapter_model.safetensors")
    moved = [name for name, t in tensors.items() if ".experts." in name and "lora_B" in name]
    assert len(moved) == 4
    assert all(tensors[name].any() for name in moved)
    assert load_run(directory, device="cpu").base_model.model.config.model_type == "mixtral"


def test_experts_that_stay_out_are_said_once(root, caplog):
    with caplog.at_level(logging.INFO, "hylorada"):
        record = run(settings(root, method__lora__lora_dropout=0.1))
    note = record["parameters"]["experts"]["note"]
    assert note == (
        "experts are not adapted: 85% of the decoder layers' parameters (peft's LoRA on experts "
        "has no dropout)"
    )
    assert caplog.messages.count(note) == 1
