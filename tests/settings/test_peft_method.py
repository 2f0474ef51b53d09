"""`method.peft`: what is refused before peft, or torch, is imported."""

from __future__ import annotations

import pytest

from hylorada.config import LoraConfig, MethodConfig
from hylorada.errors import ConfigError
from hylorada.settings.peft_method import check_peft, peft_types


def method(**changes):
    settings = {"name": "mine", "lora": LoraConfig(enabled=False), "peft": {"peft_type": "VERA"}}
    return MethodConfig(**{**settings, **changes})


def test_right_settings_pass_and_none_are_needed():
    check_peft(method())
    check_peft(method(peft={"peft_type": "LOHA", "rank_pattern": {}}))  # of LycorisConfig
    check_peft(MethodConfig())


def with_switch(name):
    settings = method()
    getattr(settings, name).enabled = "true"
    return settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (method(peft={"r": 8}), "method.peft has no peft_type"),
        (method(peft={"peft_type": "VERRA"}), "'VERRA', which is no method .* did you mean VERA"),
        (method(peft={"peft_type": "vera"}), "'vera', which is no method .* did you mean VERA"),
        (method(peft={"peft_type": "VERA", "rr": 4}), "VeraConfig has no such key; did you mean r"),
        (method(peft={"peft_type": "LOHA", "zz": 4}), "LoHaConfig has no such key; it has alpha,"),
        (method(peft={"peft_type": "zzz"}), "it has PROMPT_TUNING,"),
        (method(lora=LoraConfig()), "method.lora.enabled is true; set it to false"),
        (method(name="baseline"), "give it a name, as in method.name=vera"),
        (method(lora=LoraConfig(enabled=False, r=4)), r"method.lora.r=4 has no effect"),
        (with_switch("landmark"), "method.landmark.enabled=true has no effect with method.peft"),
        (with_switch("s2_attn"), "method.s2_attn.enabled=true has no effect"),
    ],
)
def test_what_cannot_be_is_one_line(settings, words):
    with pytest.raises(ConfigError, match=words) as caught:
        check_peft(settings)
    assert "\n" not in str(caught.value)


def test_the_presets_name_methods_that_there_are():
    assert {"VERA", "IA3", "LOHA"} <= set(peft_types())
