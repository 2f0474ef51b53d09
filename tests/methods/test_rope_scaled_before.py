"""Models that come scaled, scaled once more: against transformers' own with the whole factor."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.families import CONFIGS, ROPE_FAMILIES, make_model, tokens
from transformers import AutoModelForCausalLM

from hylorada.architecture.anatomy import rotary_modules, trained_length
from hylorada.errors import ConfigError
from hylorada.methods import HyloradaConfig, adapt, check_integrity
from hylorada.methods.position_range import extend_range, restore_range

COUNT = 64  # positions, by the config
SCALINGS = {
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "yarn, by transformers' default": {"rope_type": "yarn", "factor": 4.0},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "dynamic": {"factor": 4.0},
    "longrope": {
        "short_factor": [1.0] * 4, "long_factor": [1.0, 1.5, 2.0, 3.0],
        "original_max_position_embeddings": 16,
    },
}  # fmt: skip


def scaled(name, told=0, family="llama", **changes):
    """A model with weights that the scaling does not change, built by transformers."""
    config = CONFIGS[family](COUNT)
    scaling = {"rope_type": name, **SCALINGS[name], **changes}
    config.rope_parameters = {**config.rope_parameters, **scaling}
    if told:
        config.hylorada_trained_length = told
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(make_model(family, COUNT).state_dict())
    return model.eval()


def logits(model, length):
    with torch.no_grad():
        return model(tokens(1, length), use_cache=False).logits


@pytest.mark.parametrize("family", ROPE_FAMILIES)
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("linear", 64),  # the positions are counted after the scaling
        ("linear", 256),  # before
        ("yarn", 64),
        ("yarn, by transformers' default", 256),
        ("llama3", 64),
        ("llama3", 100),
        ("dynamic", 256),
    ],
)
def test_trained_with_its_scaling_the_factors_are_multiplied(name, told, family):
    length = 2 * told + 1  # three times
    model, before = (scaled(name, told, family) for _ in range(2))
    assert trained_length(model.config) == told
    report = extend_range(model, length)
    want = scaled(name, family=family, factor=3 * SCALINGS[name]["factor"])
    assert torch.equal(logits(model, length), logits(want, length))
    assert not torch.equal(logits(model, length), logits(before, length))
    assert (report.kind, report.from_length, report.factor) == ("rope", told, 3.0)
    assert trained_length(model.config) == told
    assert torch.equal(logits(model, 9), logits(want, 9))


def test_linear_frequencies_are_divided_by_both_factors():
    model = scaled("linear", 256)
    plain = [m.inv_freq for _, m in rotary_modules(make_model("llama", COUNT))]
    extend_range(model, 512)
    for (_, module), frequencies in zip(rotary_modules(model), plain, strict=True):
        torch.testing.assert_close(module.inv_freq, frequencies / (4 * 2))


@pytest.mark.parametrize("rope_type", ["auto", "linear", "yarn", "dynamic"])
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("yarn", 16),
        ("yarn, by transformers' default", 64),
        ("llama3", 16),
        ("dynamic", 64),
        ("longrope", 16),
    ],
)
def test_trained_before_it_was_scaled_the_scaling_is_replaced(name, told, rope_type):
    length = 2 * told + 1
    model = scaled(name, told)
    report = extend_range(model, length, rope_type=rope_type)
    want = make_model("llama", COUNT)
    want.config.hylorada_trained_length = told
    extend_range(want, length, rope_type=rope_type)
    assert torch.equal(logits(model, length), logits(want, length))
    assert report.factor == 3.0


@pytest.mark.parametrize("name", SCALINGS)
def test_within_the_trained_length_the_model_stays_as_its_makers_scaled_it(name):
    model, before = (scaled(name, 48) for _ in range(2))
    config = model.config.to_dict()
    assert extend_range(model, 48).kind == "none"
    assert model.config.to_dict() == config
    assert torch.equal(logits(model, 48), logits(before, 48))


@pytest.mark.parametrize(
    ("name", "first", "second", "words"),
    [
        ("linear", 64, 256, "if its 64 positions are counted after the scaling"),
        ("yarn", 16, 64, "trained on 16 tokens and scaled since"),
        ("yarn, by transformers' default", 64, 256, "trained on 64 tokens and scaled since"),
        ("llama3", 16, 64, "trained on 16 tokens and scaled since"),
        ("dynamic", 64, 256, "trained on 64 tokens and scaled since"),
        ("longrope", 16, 64, "trained on 16 tokens and scaled since"),
    ],
)
def test_both_readings_are_named(name, first, second, words):
    model = scaled(name)
    config = model.config.to_dict()
    with pytest.raises(ConfigError, match=words) as caught:
        extend_range(model, 300)
    line = str(caught.value)
    assert f"model.trained_length={first} or model.trained_length={second}" in line
    assert "comes scaled already" in line
    assert "\n" not in line
    assert model.config.to_dict() == config
    for told in {first, second} - ({64} if name == "longrope" else set()):
        chosen = scaled(name, told)
        extend_range(chosen, 300)
        assert logits(chosen, 300).isfinite().all()


def test_what_cannot_be_scaled_further():
    with pytest.raises(ConfigError, match="rope_type=longrope, which has no factor"):
        extend_range(scaled("longrope", 64), 100)
    with pytest.raises(ConfigError, match="was trained with rope_type=linear and can only be"):
        extend_range(scaled("linear", 64), 100, rope_type="yarn")
    assert extend_range(scaled("longrope", 64), 100, rope_type="none").kind == "none"


@pytest.mark.parametrize(("name", "told"), [("linear", 256), ("llama3", 64), ("yarn", 16)])
def test_undone_it_is_as_it_came(name, told):
    model, before = (scaled(name, told) for _ in range(2))
    report = extend_range(model, 2 * told + 1)
    restore_range(model, report)
    assert model.config.to_dict() == before.config.to_dict()
    assert torch.equal(logits(model, told), logits(before, told))


@pytest.mark.parametrize(("name", "told"), [("linear", 64), ("llama3", 64), ("dynamic", 256)])
def test_the_gate_passes_a_model_scaled_further(name, told):
    model = adapt(scaled(name, told), HyloradaConfig(r=2, max_length=2 * told), 2 * told)
    report = check_integrity(model, 97, max_length=2 * told)
    assert report.ok, report


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("gpt2", {}),
        ("opt", {"learned_init": "tile"}),
        ("llama", {}),
        ("llama", {"rope_scaling_type": "yarn"}),
        ("qwen2", {"rope_scaling_type": "dynamic"}),
    ],
)
def test_a_merged_run_is_extended_again_from_what_it_was_trained_at(family, options, tmp_path):
    """Merged, saved, read, extended and merged once more: each step from the length before."""
    model = make_model(family, COUNT)
    for length in (150, 400):
        before = trained_length(model.config)
        config = HyloradaConfig(r=2, max_length=length, **options)
        adapted = adapt(model, config, length, seed=0)
        assert adapted.base_model.range_report.from_length == before
        with torch.no_grad():
            for p in adapted.parameters():
                if p.requires_grad:
                    p.add_(torch.randn_like(p) * 0.02)
        merged = adapted.merge_and_unload()
        assert not hasattr(merged.config, "hylorada_range")
        assert trained_length(merged.config) == length
        expected = logits(merged, length)
        merged.save_pretrained(tmp_path / str(length))
        model = AutoModelForCausalLM.from_pretrained(tmp_path / str(length)).eval()
        assert torch.equal(logits(model, length), expected)
        assert trained_length(model.config) == length
        assert extend_range(copy.deepcopy(model), length).kind == "none"
