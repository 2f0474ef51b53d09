"""The Python interface called with values of another kind: one line that says what to use."""

from __future__ import annotations

import math

import pytest
from helpers.families import VOCAB, make_model

import hylorada
from hylorada.errors import ConfigError
from hylorada.methods.integrity.probe import vocabulary_size

ODD = (None, "a", "", -1, 1.5, math.nan, math.inf, 10**30, True, [], {}, object(), b"x", (1,))


def _refused(call, *names: str) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    assert "; " in message, "no remedy"
    for name in names:
        assert name in message
    return message


@pytest.mark.parametrize("value", ODD)
def test_a_number_of_another_kind_is_one_line(value):
    for name in ("r", "position_buckets", "num_landmarks", "max_length", "base_trained_length"):
        _refused(lambda name=name: hylorada.HyloradaConfig(**{name: value}), name)
    for_length = hylorada.HyloradaConfig.for_length
    _refused(lambda: for_length(value, trained_length=1024), "max_length")
    _refused(lambda: for_length(4096, trained_length=value), "trained_length")


@pytest.mark.parametrize("value", [None, "no", 1, 0])
def test_a_switch_is_true_or_false(value):
    for name in ("placebo", "use_rslora", "use_dora", "s2_in_evaluation"):
        _refused(lambda name=name: hylorada.HyloradaConfig(**{name: value}), name, "True or False")


@pytest.mark.parametrize(("fields", "message"), [
    ({"lora_alpha": 0}, "lora_alpha is 0; use a number above 0"),
    ({"lora_alpha": "16"}, "lora_alpha is '16'; use a finite number"),
    ({"lora_dropout": 1.0}, "lora_dropout is 1.0; use a share"),
    ({"rope_scaling_factor": math.nan}, "rope_scaling_factor is nan; use a finite number"),
    ({"s2_full_heads": None}, "s2_full_heads is None; use a finite number"),
    ({"target_modules": 3}, "target_modules is 3; use a list of names"),
    ({"target_modules": ["c_attn", 1]}, "use a list of names"),
    ({"rank_pattern": ["c_attn"]}, "rank_pattern is ['c_attn']; use a dict"),
    ({"bias": True}, "bias is True; use one of none, all, lora_only"),
    ({"placebo": True}, "placebo has no effect without"),
    ({"layers_to_transform": [0]}, "layers_to_transform"),  # peft's own words
])  # fmt: skip
def test_a_field_of_another_kind_is_one_line(fields, message):
    with pytest.raises(ConfigError) as caught:
        hylorada.HyloradaConfig(**fields)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_adapt_is_called_with():
    base, config = make_model("gpt2"), hylorada.HyloradaConfig()
    for value in (*ODD, type(base), config, base.transformer.h[0]):
        _refused(lambda value=value: hylorada.adapt(value, config), "base_model is ")
    for value in (*ODD, hylorada.HyloradaConfig, base):
        _refused(lambda value=value: hylorada.adapt(base, value), "config is ")
    for value in ODD[1:]:
        _refused(lambda value=value: hylorada.adapt(base, config, value), "max_length")
    for value in ("a", 1.5, math.nan, True, [], 10**30):
        _refused(lambda value=value: hylorada.adapt(base, config, seed=value), "seed")
    assert not hasattr(base, "peft_config")


def test_a_longer_range_without_a_length_to_reach_is_refused():
    for fields in ({"rope_scaling_factor": 4.0}, {"rope_scaling_type": "yarn"}):
        config = hylorada.HyloradaConfig(**fields)
        _refused(lambda c=config: hylorada.adapt(make_model("llama"), c), "without max_length")


def test_modules_that_the_model_has_not_are_one_line():
    config = hylorada.HyloradaConfig(target_modules=["no_such_module"])
    with pytest.raises(ConfigError, match="no_such_module"):
        hylorada.adapt(make_model("gpt2"), config)


def test_what_the_gate_is_called_with():
    model, gate = make_model("gpt2"), hylorada.check_integrity
    for value in ODD:
        _refused(lambda value=value: gate(value, VOCAB, 64), "model is ")
        _refused(lambda value=value: gate(model, VOCAB, value), "max_length")
    for value in ("a", -1, 1.5, None, True):
        _refused(lambda value=value: gate(model, VOCAB, 64, probe_length=value), "probe_length")
        _refused(lambda value=value: gate(model, VOCAB, 64, seed=value), "seed")
    for value in ("bf16", True, 1):
        _refused(lambda value=value: gate(model, VOCAB, 64, autocast=value), "autocast")
        _refused(lambda value=value: gate(model, VOCAB, 64, saved=value), "saved")
    for value in ("no", None, 1):
        _refused(lambda value=value: gate(model, VOCAB, 64, allow_leak=value), "allow_leak")
        _refused(lambda value=value: gate(model, VOCAB, 64, packed=value), "packed")


def test_a_name_is_no_tokenizer():
    for value in ("gpt2", None, 1.5, [], 0, 1, True):
        _refused(lambda value=value: vocabulary_size(make_model("gpt2"), value), "tokenizer")


def test_a_path_is_text_or_a_path(tmp_path):
    long = "a" * 5000
    for value in (None, 1, 1.5, [str(tmp_path)], b"outputs", "a\0b", long):
        _refused(lambda value=value: hylorada.load_run(value), "load_run: path")
        _refused(lambda value=value: hylorada.records_as_rows(value), "records_as_rows: a folder")
    for folders in ((), ("",)):
        _refused(lambda folders=folders: hylorada.records_as_rows(*folders), "no folder")


def test_a_device_that_is_none_is_refused_before_anything_is_read(tmp_path):
    for value in ("gpu", "cuda:1", "", None, 0):
        _refused(lambda value=value: hylorada.load_run(tmp_path, value), "device")
