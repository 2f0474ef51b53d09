"""`method.peft` as a configuration of peft: right ones arrive, wrong ones are one true line."""

from __future__ import annotations

import pytest
from helpers.peft_types import peft_types, type_config

from hylorada.errors import ConfigError
from hylorada.methods.peft_settings import peft_config


def test_settings_arrive_in_the_configuration_of_the_method():
    config = peft_config({"peft_type": "VERA", "r": 8, "target_modules": ["q_proj"]})
    assert (type(config).__name__, config.r, config.target_modules) == (
        "VeraConfig", 8, {"q_proj"},
    )  # fmt: skip
    assert config.task_type == "CAUSAL_LM"


@pytest.mark.parametrize("name", [n for n in peft_types() if n not in ("POLY", "ADALORA")])
def test_the_values_of_every_method_are_of_its_types(name):
    """What stands in a configuration of peft may be written as a setting."""
    if name.startswith("HYLORADA"):
        return
    config = type_config(name, "llama")
    plain = {"str": str, "int": int, "float": float, "bool": bool, "list": list}
    settings = {
        key: value
        for key, value in config.to_dict().items()
        if type(value) in plain.values()
        and key not in ("task_type", "peft_type", "inference_mode", "peft_version")
    }
    again = peft_config({"peft_type": name, **settings})
    assert {key: getattr(again, key) for key in settings} == {
        key: getattr(config, key) for key in settings
    }


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "VERRA"}, "'VERRA', which is no method of this peft; did you mean VERA"),
        ({"peft_type": "VERA", "rr": 1}, "VeraConfig has no such key; did you mean r"),
        ({"peft_type": "IA3", "r": 8}, "method.peft.r: peft's IA3Config has no such key"),
        ({"peft_type": "VERA", "r": "8"}, "method.peft.r is '8'; .* takes a whole number"),
        ({"peft_type": "VERA", "r": 1.5}, "method.peft.r is 1.5"),
        ({"peft_type": "VERA", "r": True}, "method.peft.r is True"),
        ({"peft_type": "VERA", "target_modules": 3}, "takes a list or a text or null"),
        ({"peft_type": "VERA", "target_modules": [3]}, "target_modules is"),
        ({"peft_type": "VERA", "task_type": "SEQ_CLS"}, "task_type follows from the run"),
        (
            {"peft_type": "IA3", "target_modules": ["a"], "feedforward_modules": ["b"]},
            r"method.peft \(IA3\): `feedforward_modules` should be a subset",
        ),
        ({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4}, "PREFIX_TUNING puts virtual"),
        ({"peft_type": "POLY"}, "POLY needs to be told the task of each text"),
        ({"peft_type": "LORA", "alora_invocation_tokens": [1]}, "activated LoRA is switched on"),
        ({"peft_type": "ADALORA", "total_step": 9, "tfinal": 1}, "ADALORA gives its ranks away by"),
        ({"peft_type": "HYLORADA"}, "HYLORADA is this project's own method"),
    ],
)
def test_what_cannot_be_is_one_line(settings, words):
    with pytest.raises(ConfigError, match=words) as caught:
        peft_config(settings)
    assert "\n" not in str(caught.value)
