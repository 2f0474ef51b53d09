"""PoSE as a whole run: it trains otherwise than full rows, and a killed run ends with its bytes."""

from __future__ import annotations

import json

import pytest
from helpers.tiny_runs import (
    killed,
    make_config,
    make_model_folder,
    make_texts,
    outcome,
    result,
    run_here,
    run_to_end,
)

from hylorada.errors import ConfigError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("skipped")
    make_model_folder(folder / "model")
    make_texts(folder / "texts")
    return folder


def losses(directory):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


@pytest.mark.slow
def test_it_acts_and_a_killed_run_ends_with_the_same_bytes(root):
    off = {"method__s2_attn__enabled": "false"}
    on = {**off, "method__skipped_positions__enabled": True}
    assert run_here(make_config(root, **on), root / "whole") == 0
    assert run_here(make_config(root, **off), root / "full-rows") == 0
    assert losses(root / "whole")[0] != losses(root / "full-rows")[0]
    assert result(root / "whole")["integrity"]["ok"]
    # Two rows of 48 tokens in a block of 96, each with one token that nothing predicts.
    steps, blocks = 10, 4
    assert result(root / "whole")["training"]["tokens"] == steps * blocks * 2 * 47
    config = make_config(root, **on)
    assert killed(run_to_end(config, root / "killed", HYLORADA_FAULT="after_step:7"))
    assert run_here(config, root / "killed") == 0
    assert outcome(root / "killed") == outcome(root / "whole")


def test_within_the_trained_length_it_is_refused(root):
    from hylorada.runner.preflight import Preflight

    config = make_config(
        root,
        method__s2_attn__enabled="false",
        method__train_embeddings="false",
        method__skipped_positions__enabled=True,
        length__max_length=64,
    )
    with pytest.raises(ConfigError, match=r"no effect: length\.max_length is 64"):
        Preflight().check(config)
