"""The gate on adapters of other methods: right ones pass, and what is said of them is true."""

from __future__ import annotations

import pytest
import torch
import torch.utils.cpp_extension  # BOFT does, late, and fails where somebody has distutils by then
from helpers.families import VOCAB, make_model
from helpers.marks import LONG, SLOW
from helpers.peft_types import NOT_ON_GPT2, peft_types, type_config
from peft import (
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)

from hylorada.errors import ConfigError
from hylorada.methods import check_integrity

TRAINED = 64
NO_IDENTITY = {"C3A", "DEFT", "FOURIERFT", "FROD", "HRA", "OSF", "UNILORA", "VBLORA"}


def gate(config, family="llama"):
    torch.manual_seed(0)
    return check_integrity(get_peft_model(make_model(family, TRAINED), config), VOCAB, TRAINED)


def cases():
    for name in peft_types():
        for family in ("llama", "gpt2"):
            if (
                name in ("POLY", "LILY")
                or name.startswith("HYLORADA")
                or (family == "gpt2" and name in NOT_ON_GPT2)
            ):
                continue
            yield pytest.param(name, family, marks=SLOW if family == "llama" else LONG)


@pytest.mark.parametrize(("name", "family"), cases())
def test_an_adapter_of_any_method_passes(name, family):
    report = gate(type_config(name, family), family)
    assert report.ok, [report.checks[failed] for failed in report.failed]
    identity = report.checks["identity_at_start"]
    if identity.skipped:
        assert name in NO_IDENTITY
        assert identity.skipped.startswith(f"{name} with these settings does not start as the")
    assert not report.checks["no_op"].skipped
    assert sum(report.parameters.values()) > 0
    assert report.parameters.keys() == {name.lower()}


@pytest.mark.parametrize("name", ["IA3", "VERA"])
def test_an_adapter_of_another_method_that_is_not_applied_is_caught(name):
    torch.manual_seed(0)
    model = get_peft_model(make_model("llama", TRAINED), type_config(name, "llama"))
    for module in model.get_base_model().modules():
        if hasattr(module, "base_layer"):
            module.forward = module.base_layer.forward
    report = check_integrity(model, VOCAB, TRAINED)
    assert {"no_op", "gradient_coverage"} <= set(report.failed)
    assert f"changing the parameters of {name.lower()} moves the logits by 0" in (
        report.checks["no_op"].detail
    )


def test_an_adapter_that_mixes_all_tokens_reads_the_future():
    """peft's Lily weighs its experts by the mean over the batch and over all tokens."""
    report = gate(type_config("LILY", "llama"))
    assert {"causality", "rows"} <= set(report.failed)
    assert "reads the future" in report.checks["causality"].detail


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
            "PREFIX_TUNING puts virt",
        ),
        (
            PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
            "PROMPT_TUNING puts virt",
        ),
        (type_config("POLY", "llama"), "POLY cannot be run on token ids alone .*task_ids"),
    ],
)
def test_what_cannot_be_asked_is_said(config, words):
    with pytest.raises(ConfigError, match=words):
        gate(config)


@pytest.mark.parametrize(
    ("options", "identity"),
    [
        ({"init_lora_weights": "gaussian"}, ""),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa starts with another B"),
        ({"init_lora_weights": "olora"}, "init_lora_weights=olora starts with another B"),
        ({"init_lora_weights": False}, "init_lora_weights=False starts with another B"),
        ({"use_dora": True}, "DoRA divides by a norm"),
        ({"lora_bias": True}, ""),
        ({"trainable_token_indices": [1, 2]}, ""),
        ({"target_modules": ["embed_tokens", "q_proj"]}, ""),
        ({"bias": "all"}, ""),
    ],
)
@pytest.mark.parametrize(
    "family", [pytest.param("llama", marks=SLOW), pytest.param("gpt2", marks=LONG)]
)
def test_variants_of_lora_pass(options, identity, family):
    if family == "gpt2" and options.get("init_lora_weights") == "olora":
        pytest.skip("peft's own olora does not run on Conv1D")
    names = {"q_proj": "c_attn", "embed_tokens": "wte"} if family == "gpt2" else {}
    targets = [names.get(n, n) for n in options.get("target_modules", ["q_proj"])]
    report = gate(
        LoraConfig(r=4, task_type="CAUSAL_LM", **{**options, "target_modules": targets}), family
    )
    assert report.ok, [report.checks[failed] for failed in report.failed]
    assert report.checks["identity_at_start"].skipped.startswith(identity)
    assert bool(report.checks["identity_at_start"].skipped) == bool(identity)


def test_a_change_of_the_base_is_no_fault_of_saving():
    report = gate(LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="pissa"))
    assert report.checks["save_load"].skipped.startswith("init_lora_weights=pissa has changed the")
