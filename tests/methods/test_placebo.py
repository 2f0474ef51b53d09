"""A placebo is attached and does nothing; the gate proves it, and takes no other for one."""

from __future__ import annotations

import pytest
import torch
from helpers.families import VOCAB, make_model, tokens
from methods.test_integrity import assert_refused

from hylorada.config import MethodConfig
from hylorada.errors import ConfigError
from hylorada.methods import HyloradaConfig, adapt, check_integrity
from hylorada.methods.adaptive_rule import from_method
from hylorada.methods.attach import load_adapter

LONG = 67


def attached(family="gpt2", **options):
    config = HyloradaConfig(r=3, max_length=LONG, **options)
    return adapt(make_model(family), config, LONG, seed=0)


def both(**options):
    return {"position_bias_enabled": True, "landmark_enabled": True, **options}


def shake(model):
    """Other values for all that trains, the same for what both models have."""
    generator = torch.Generator()
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                generator.manual_seed(sum(name.encode()))
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_it_computes_what_the_method_without_its_components_computes(family, training):
    nested, placebo, real = (
        shake(attached(family, **options)).train(training)
        for options in ({}, both(placebo=True), both())
    )
    ids, logits = tokens(2, LONG), []
    for model in (nested, placebo, real):
        torch.manual_seed(0)  # gpt2 keeps its dropout
        logits.append(model(input_ids=ids, use_cache=False).logits)
        logits[-1].float().logsumexp(-1).sum().backward()
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])  # the components do act where they may
    own = dict(placebo.named_parameters())
    for name, parameter in nested.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter.grad, own[name].grad), name
    inert = [p for name, p in own.items() if "position_bias" in name or "landmark" in name]
    assert len(inert) == 6
    assert not any(p.grad.any() for p in inert)


def test_it_draws_the_same_lora():
    nested, placebo = attached(), attached(**both(placebo=True))
    own = dict(placebo.named_parameters())
    for name, parameter in nested.named_parameters():
        assert torch.equal(parameter, own[name]), name
    assert own["base_model.lora_landmark.default.W_g"].any()  # drawn as that of the real one


@pytest.mark.parametrize(
    "parts", [both(), {"landmark_enabled": True}, {"position_bias_enabled": True}]
)
def test_the_gate_proves_that_it_is_inert(parts):
    report = check_integrity(attached(**parts, placebo=True), VOCAB, LONG)
    report.raise_if_failed()
    check = report.checks["placebo"]
    assert (check.ok, check.value, check.skipped) == (True, 0.0, "")
    assert "bit for bit" in check.detail
    assert "but those of the placebo" in report.checks["gradient_coverage"].detail
    assert "placebo" not in check_integrity(attached(**parts), VOCAB, LONG).checks


@pytest.mark.parametrize("part", ["position_bias", "landmark"])
def test_one_that_acts_is_refused(part):
    model = attached(**both(placebo=True))
    getattr(model.base_model, f"lora_{part}")["default"].placebo = False
    assert_refused(check_integrity(model, VOCAB, LONG), "placebo", "moves the logits by")


@pytest.mark.parametrize("part", ["position_bias", "landmark"])
def test_a_component_that_does_nothing_and_is_not_called_a_placebo_is_refused(part):
    model = attached(**both())
    getattr(model.base_model, f"lora_{part}")["default"].placebo = True
    assert_refused(check_integrity(model, VOCAB, LONG), "no_op", "attached but never applied")


def test_it_is_one_after_saving_and_loading(tmp_path):
    model = shake(attached(**both(placebo=True))).eval()
    model.save_pretrained(tmp_path)
    loaded = load_adapter(make_model("gpt2"), tmp_path).eval()
    assert loaded.peft_config["default"].placebo
    nested, ids = shake(attached()).eval(), tokens(1, LONG)
    with torch.no_grad():
        first, second, third = (m(input_ids=ids).logits for m in (model, loaded, nested))
    assert torch.equal(first, second)
    assert torch.equal(first, third)


def test_one_without_a_component_to_rest_is_refused():
    method = MethodConfig(placebo=True)  # both follow the length, and are off at 67 tokens
    with pytest.raises(ConfigError, match="placebo=true has no effect at 67 tokens"):
        from_method(method, LONG, make_model("gpt2").config)
    assert from_method(method, 2048, make_model("gpt2").config).placebo
