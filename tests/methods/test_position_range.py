"""Longer position ranges: rows interpolated by hand, frequencies against transformers' own."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from helpers.families import CONFIGS, FAMILIES, LEARNED_FAMILIES, ROPE_FAMILIES, make_model, tokens
from transformers import AutoModelForCausalLM

from hylorada.architecture.anatomy import position_embedding, rotary_modules, trained_length
from hylorada.errors import ConfigError
from hylorada.methods.position_range import extend_range, restore_range

SHORT = 64
LONG = 150  # 2.3 times: the factor is 3


def _logits(model, length=SHORT):
    with torch.no_grad():
        return model(tokens(2, length)).logits


@pytest.mark.parametrize("family", LEARNED_FAMILIES)
def test_interpolated_rows_are_those_computed_one_by_one(family):
    model = make_model(family, SHORT)
    name, before, offset = position_embedding(model)
    before = before.weight.detach().clone()
    report = extend_range(model, LONG)
    after = position_embedding(model)[1]
    assert after.num_embeddings == LONG + offset == after.weight.shape[0]
    assert torch.equal(after.weight[:offset], before[:offset])
    for i in range(LONG):
        where = i * (SHORT - 1) / (LONG - 1)
        j = min(int(where), SHORT - 2)
        row = before[offset + j] + (where - j) * (before[offset + j + 1] - before[offset + j])
        # fp32 rounding of a weight that the oracle computes in double
        assert (after.weight[offset + i] - row).abs().max() <= 1e-6
    assert (report.kind, report.from_length, report.to_length) == ("learned", SHORT, LONG)
    assert report.type == "interpolate"
    assert name in dict(model.named_modules())
    assert _logits(model, LONG).isfinite().all()


@pytest.mark.parametrize("family", LEARNED_FAMILIES)
def test_tiled_rows_leave_short_prompts_exact(family):
    model = make_model(family, SHORT)
    before = _logits(model)
    extend_range(model, LONG, learned_init="tile")
    assert torch.equal(_logits(model), before)
    _, embedding, offset = position_embedding(model)
    rows = embedding.weight[offset:]
    assert torch.equal(rows[SHORT : 2 * SHORT], rows[:SHORT])


def test_rows_are_interpolated_in_float32_for_a_bfloat16_model():
    exact, rounded = make_model("gpt2", SHORT), make_model("gpt2", SHORT).to(torch.bfloat16)
    with torch.no_grad():
        exact.transformer.wpe.weight.copy_(rounded.transformer.wpe.weight)
    extend_range(exact, LONG)
    extend_range(rounded, LONG)
    want = exact.transformer.wpe.weight.to(torch.bfloat16)
    assert torch.equal(rounded.transformer.wpe.weight, want)


@pytest.mark.parametrize("rope_type", ["linear", "yarn", "dynamic"])
@pytest.mark.parametrize("family", ROPE_FAMILIES)
def test_rope_equals_a_model_built_with_the_setting(family, rope_type):
    model = make_model(family, SHORT)
    plain = [m.inv_freq.clone() for _, m in rotary_modules(model)]
    config = CONFIGS[family](SHORT)
    config.rope_parameters = {**config.rope_parameters, "rope_type": rope_type, "factor": 3.0}
    if rope_type == "yarn":
        config.rope_parameters["original_max_position_embeddings"] = SHORT
    if rope_type != "dynamic":
        config.max_position_embeddings = 3 * SHORT
    want = AutoModelForCausalLM.from_config(config)
    want.load_state_dict(model.state_dict())
    report = extend_range(model, LONG, rope_type=rope_type)
    assert torch.equal(_logits(model, LONG), _logits(want.eval(), LONG))
    changed = [
        not torch.equal(m.inv_freq, p)
        for (_, m), p in zip(rotary_modules(model), plain, strict=True)
    ]
    assert all(changed)  # dynamic: it has run beyond its threshold by now
    assert (report.kind, report.type, report.factor) == ("rope", rope_type, 3.0)
    assert model.config.max_position_embeddings == config.max_position_embeddings


def test_automatic_rope_is_linear_to_8k_and_yarn_beyond():
    types = {}
    for length in (2048, 8192, 8193):
        model = make_model("llama", 1024)
        report = extend_range(model, length)
        types[length] = (report.type, report.factor)
    assert types == {2048: ("linear", 2.0), 8192: ("linear", 8.0), 8193: ("yarn", 9.0)}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_trained_length_stays_known(family):
    model = make_model(family, SHORT)
    extend_range(model, LONG)
    assert trained_length(model.config) == SHORT
    assert model.config.max_position_embeddings >= LONG


@pytest.mark.parametrize("family", FAMILIES)
def test_within_the_trained_length_nothing_happens(family):
    model = make_model(family, SHORT)
    config, weights = model.config.to_dict(), copy.deepcopy(model.state_dict())
    report = extend_range(model, SHORT)
    assert report.kind == "none"
    assert model.config.to_dict() == config
    assert all(torch.equal(w, weights[n]) for n, w in model.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_extending_twice_is_extending_once(family):
    model = make_model(family, SHORT)
    extend_range(model, LONG)
    logits, config = _logits(model, LONG), model.config.to_dict()
    assert extend_range(model, LONG).kind == "none"
    assert extend_range(model, LONG - 10).kind == "none"
    assert model.config.to_dict() == config
    assert torch.equal(_logits(model, LONG), logits)
    with pytest.raises(ConfigError, match="already extended from 64"):
        extend_range(model, 10 * LONG)


@pytest.mark.parametrize("family", FAMILIES)
def test_restoring_gives_the_model_back(family):
    model = make_model(family, SHORT)
    logits, config = _logits(model), model.config.to_dict()
    parameters = dict(model.named_parameters())
    report = extend_range(model, LONG)
    assert not torch.equal(_logits(model), logits)
    restore_range(model, report)
    assert model.config.to_dict() == config
    assert torch.equal(_logits(model), logits)
    assert all(p is parameters[n] for n, p in model.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_an_extended_model_survives_saving(family, tmp_path):
    model = make_model(family, SHORT)
    report = extend_range(model, LONG)
    json.dumps(report.to_dict())
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(_logits(again, LONG), _logits(model, LONG))
    assert trained_length(again.config) == SHORT


def test_rope_may_be_left_alone():
    model = make_model("llama", SHORT)
    before = _logits(model)
    assert extend_range(model, LONG, rope_type="none").kind == "none"
    assert torch.equal(_logits(model), before)


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        (
            "gpt2",
            {"rope_type": "linear"},
            "has no rotary position embedding; RoPE scaling does not",
        ),
        ("opt", {"rope_factor": 4.0}, "has no rotary position embedding"),
        ("gpt2", {"learned_init": "random"}, "not one of interpolate, tile, by_parts"),
        ("llama", {"rope_type": "ntk"}, "not one of auto, linear, yarn, dynamic, none"),
        ("llama", {"rope_factor": 2.0}, "reach 128, not max_length 150"),
        ("llama", {"rope_factor": 0.5}, "would shorten"),
        ("llama", {"rope_factor": 3.0, "rope_type": "none"}, "has no effect"),
        ("llama", {"max_length": 0}, "at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(family, options, words):
    model = make_model(family, SHORT)
    config = model.config.to_dict()
    with pytest.raises(ConfigError, match=words) as error:
        extend_range(model, **{"max_length": LONG, **options})
    assert "\n" not in str(error.value)
    assert model.config.to_dict() == config


def test_a_rotary_module_that_ignores_its_config_is_refused():
    model = make_model("llama", SHORT)

    class Stubborn(type(model.model.rotary_emb)):
        def __init__(self, config):
            config = copy.deepcopy(config)
            config.rope_parameters["rope_type"] = "default"
            super().__init__(config)

    model.model.rotary_emb = Stubborn(model.config)
    config = model.config.to_dict()
    with pytest.raises(ConfigError, match="does not follow the RoPE scaling"):
        extend_range(model, LONG)
    assert model.config.to_dict() == config
