"""Whole runs on a GPU: what the record says, going on, the same bits in the strict mode."""

import pytest
from helpers.tiny_runs import (
    killed,
    make_config,
    make_model_folder,
    make_texts,
    outcome,
    result,
    run_to_end,
)

from hylorada.errors import ConfigError
from hylorada.runner.run import run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    make_model_folder(folder / "model")
    make_texts(folder / "texts")
    return folder


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_with_every_component(root, tmp_path, precision):
    record = run(make_config(root, device="cuda", train__precision=precision), tmp_path / "run")
    training = record["training"]
    assert (record["status"], record["integrity"]["ok"]) == ("ok", True)
    assert (training["device"], training["precision"]) == ("cuda", precision)
    assert training["peak_memory_of"] == "device"
    assert 0 < training["peak_memory_bytes"] <= training["peak_memory_reserved_bytes"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_strict_runs_end_with_the_same_bytes_killed_or_not(root, tmp_path, precision):
    changes = {"train__deterministic": True, "train__precision": precision, "device": "cuda"}
    config = make_config(root, **changes)
    assert run_to_end(config, tmp_path / "whole") == 0
    assert killed(run_to_end(config, tmp_path / "cut", HYLORADA_FAULT="after_step:7"))
    assert run_to_end(config, tmp_path / "cut") == 0
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_a_checkpoint_of_a_gpu_goes_on_there_or_says_where_it_went(root, tmp_path):
    config = make_config(root, train__precision="fp32")  # device: auto
    assert killed(run_to_end(config, tmp_path / "run", HYLORADA_FAULT="after_step:7"))
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    assert run_to_end(config, tmp_path / "run", **hidden) == ConfigError.exit_code
    assert run_to_end(make_config(root, train__precision="fp32", resume_on="any"),
                      tmp_path / "run", **hidden) == 0  # fmt: skip
    kinds = [h["device"] for h in result(tmp_path / "run")["provenance"]["hardware_in_order"]]
    assert kinds == ["cuda", "cpu"]
