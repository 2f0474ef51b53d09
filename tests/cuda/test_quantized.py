"""A base in 4 bits on a GPU: what is packed, a whole run, what is known of it afterwards."""

import pytest
import torch
from helpers.tiny_runs import (
    killed,
    make_config,
    make_model_folder,
    make_texts,
    outcome,
    result,
    run_to_end,
)

from hylorada import load_run
from hylorada.config import ModelConfig
from hylorada.errors import ConfigError
from hylorada.loading.backbone import load_backbone, parameter_count
from hylorada.runner.export import export
from hylorada.runner.run import run

bnb = pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    make_model_folder(folder / "model")
    make_texts(folder / "texts")
    return folder


def config_of(root, **changes):
    return make_config(root, model__quantization="nf4", device="cuda", **changes)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_layers_below_the_head_are_packed_and_near_those_of_the_files(root, device, precision):
    plain = load_backbone(ModelConfig("m", str(root / "model")), device, "fp32")
    base = load_backbone(
        ModelConfig("m", str(root / "model"), quantization="nf4"), device, precision
    )
    packed = [m for m in base.model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert len(packed) == 8  # four in each of two layers
    assert parameter_count(base.model) == parameter_count(plain.model)
    off = (base.logits.float() - plain.logits).norm() / plain.logits.norm()
    assert 0 < off < 0.3
    again = load_backbone(
        ModelConfig("m", str(root / "model"), quantization="nf4"), device, precision
    )
    assert again.identity == base.identity != plain.identity
    assert torch.equal(again.logits, base.logits)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_with_every_component(root, tmp_path, precision):
    record = run(config_of(root, train__precision=precision), tmp_path / "run")
    assert (record["status"], record["integrity"]["ok"]) == ("ok", True)
    assert record["provenance"]["base_model_quantization"] == "nf4"
    load_run(tmp_path / "run", "cuda")
    export(tmp_path / "run", tmp_path / "exported")
    with pytest.raises(ConfigError, match="merge=true is not exact for a 4-bit base"):
        export(tmp_path / "run", tmp_path / "merged", merge=True)


def test_a_killed_run_goes_on_to_the_same_bytes(root, tmp_path):
    config = config_of(root, train__deterministic=True)
    assert run_to_end(config, tmp_path / "whole") == 0
    assert killed(run_to_end(config, tmp_path / "cut", HYLORADA_FAULT="after_step:7"))
    assert run_to_end(config, tmp_path / "cut") == 0
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    assert result(tmp_path / "cut")["status"] == "ok"
