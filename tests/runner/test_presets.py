"""Every preset of conf/method in a real run of two steps, on a GPT-2 and on a Llama."""

from __future__ import annotations

import pytest
from helpers.marks import LONG, SLOW
from helpers.preset_runs import composed, make_root

from hylorada import compose
from hylorada.errors import ConfigError, IntegrityError
from hylorada.runner.run import run

PRESETS = sorted(file.stem for file in (compose.conf_dir() / "method").glob("*.yaml"))
# What a preset cannot have on an architecture, or is refused for on purpose.
REFUSED = {
    ("loha", "gpt2"): (ConfigError, r"method.peft \(LOHA\) on GPT2LMHeadModel: .*Conv1D"),
    ("rslora_embeddings", "llama"): (ConfigError, "no learned position embeddings to train"),
}
LEAKS = "hylorada_leaky_landmark"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("presets"))


def cases():
    """Each preset on one of the two in CI, in turn."""
    for number, preset in enumerate(PRESETS):
        for family in ("gpt2", "llama"):
            in_turn = (number % 2 == 0) == (family == "gpt2")
            yield pytest.param(preset, family, marks=SLOW if in_turn else LONG)


@pytest.mark.parametrize(("preset", "family"), cases())
def test_a_preset_runs_and_leaves_a_whole_record(root, tmp_path, preset, family):
    config = composed(root, family, f"method={preset}")
    expected = REFUSED.get((preset, family))
    if preset == LEAKS:  # its landmarks are on from 2048 tokens by themselves
        config.method.landmark.enabled = "true"
        expected = (IntegrityError, "reads the future")
    if expected:
        with pytest.raises(expected[0], match=expected[1]):
            run(config, tmp_path / "run")
        return
    record = run(config, tmp_path / "run")
    assert (record["status"], record["method"]) == ("ok", preset)
    assert record["position_range"]["to"] >= config.length.max_length
    assert record["metrics"]["eval/ppl"]["value"] > 1
    assert record["base"]["extended"]["eval/ppl"]["value"] > 1
    trains = preset != "baseline"
    assert (record["parameters"]["trainable"] > 0) == trains
    assert "other" not in record["parameters"]["by_group"]
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file() == trains
    assert record["training"]["steps"] == (2 if trains else 0)
    assert record["integrity"]["ok"]
