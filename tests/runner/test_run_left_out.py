"""A whole run on a model that cannot have every component: the log and the record say so."""

from __future__ import annotations

import logging

import pytest
from helpers.architectures import make_zoo_model
from helpers.tiny_runs import LENGTH, make_config, make_model_folder, make_texts

from hylorada.errors import ConfigError
from hylorada.methods import adaptive_rule
from hylorada.runner.run import run

AUTO = {
    f"method__{part}": "auto"
    for part in (
        "position_bias__enabled", "landmark__enabled", "s2_attn__enabled", "train_norms",
        "train_embeddings",
    )
}  # fmt: skip


def root_with(family, folder):
    make_texts(folder / "texts")
    make_zoo_model(family).save_pretrained(make_model_folder(folder / "model"))
    return folder


def settings(root, **changes):
    return make_config(
        root,
        **{"train__max_steps": 2, "eval__perplexity__conventions": ["blocks"], **AUTO, **changes},
    )


@pytest.fixture
def short_thresholds(monkeypatch):
    """Every component is on by the rule at the length of these runs."""
    monkeypatch.setattr(adaptive_rule, "LONG_CONTEXT", LENGTH)
    monkeypatch.setattr(adaptive_rule, "VERY_LONG_CONTEXT", LENGTH)


def test_what_is_left_out_stands_in_the_log_and_in_the_record(tmp_path, caplog, short_thresholds):
    root = root_with("olmo", tmp_path)
    with caplog.at_level(logging.INFO, "hylorada"):
        record = run(settings(root))
    assert record["status"] == "ok"
    reason = "the norms of OlmoForCausalLM have no parameters to train"
    assert record["left_out"]["train_norms"] == reason
    assert f"left out: train_norms, because {reason}" in caplog.messages
    assert set(record["left_out"]) == {"train_norms", "train_embeddings"}
    assert set(record["parameters"]["by_group"]) == {"lora", "position_bias", "landmark"}


def test_by_hand_it_is_refused(tmp_path, short_thresholds):
    root = root_with("olmo", tmp_path)
    with pytest.raises(ConfigError, match=r"no parameters to train; set method\.train_norms=false"):
        run(settings(root, method__train_norms="true"))


def test_a_range_that_needs_no_extension_is_said_too(tmp_path, short_thresholds):
    root = root_with("mistral, window", tmp_path)
    record = run(settings(root, method__s2_attn__enabled="false"))
    assert "see 16 tokens, fewer than it was trained on" in record["left_out"]["position_range"]
