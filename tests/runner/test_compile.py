"""`train.compile=layers`: the layers ran compiled, and a run continues to the same bytes."""

import json
import re

import pytest
from helpers.tiny_runs import (
    finish,
    killed,
    launch,
    make_config,
    make_model_folder,
    make_texts,
    outcome,
)

from hylorada.errors import ConfigError
from hylorada.runner.preflight import Preflight
from hylorada.runner.run import run


@pytest.fixture
def root(tmp_path):
    make_model_folder(tmp_path / "model")
    make_texts(tmp_path / "texts")
    return tmp_path


@pytest.mark.long
def test_a_run_compiles_its_layers_and_continues_to_the_same_bytes(root):
    alone = {f"method__{part}": "false" for part in ("train_embeddings", "train_norms")}
    for part in ("position_bias", "landmark", "s2_attn"):
        alone[f"method__{part}__enabled"] = "false"
    config = make_config(
        root, train__compile="layers", train__max_steps=4, train__save_every=2,
        train__eval_every=3, **alone,
    )  # fmt: skip
    assert config.method.lora.lora_dropout > 0  # compiled layers draw what the model's own draw
    assert finish(launch(config, root / "whole"), 900) == 0
    told = re.search(
        r"compiled layers: (\d+) graphs, which ran (\d+) times",
        (root / "whole" / "run.log").read_text(),
    )
    graphs, calls = map(int, told.groups())
    # one without a gradient of its input and one with; two layers, two micro-batches a step, four
    # steps; what is measured between them is not compiled
    assert (graphs, calls) == (2, 2 * 2 * 4)
    probed = json.loads((root / "whole" / "integrity.json").read_text())["probed"]
    assert probed["in_place"]["kernels"].endswith("layers compiled")

    assert killed(finish(launch(config, root / "cut", HYLORADA_FAULT="after_step:3"), 900))
    assert finish(launch(config, root / "cut"), 900) == 0
    assert outcome(root / "cut") == outcome(root / "whole")


def test_without_a_compiler_a_run_is_refused_before_weights_are_read(root, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    config = make_config(root, train__compile="layers")
    with pytest.raises(ConfigError, match=r"train\.compile=layers needs a C\+\+ compiler"):
        run(config, root / "refused")
    assert json.loads((root / "refused" / "result.json").read_text())["status"] != "ok"
    Preflight().check(config, trains=False)  # measuring compiles nothing
    Preflight().check(make_config(root))
