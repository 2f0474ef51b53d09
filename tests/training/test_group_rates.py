"""Which parameters have a learning rate of their own, and that one for nothing is refused."""

from __future__ import annotations

import pytest
import torch
from helpers.families import make_model

from hylorada.config import LrScaleConfig, MethodConfig
from hylorada.errors import ConfigError
from hylorada.methods import HyloradaConfig, adapt
from hylorada.methods.peft_methods import attach_peft_method
from hylorada.training.group_rates import rates_by_name

ALL = LrScaleConfig(
    lora_A=2.0, lora_B=3.0, position_bias=5.0, landmark=7.0, embeddings=11.0, norms=13.0
)
WHOLE = {
    "position_bias_enabled": True, "landmark_enabled": True, "train_norms": True,
    "train_embeddings": True,
}  # fmt: skip


def of_name(name: str) -> float:
    """The oracle: by the names that GPT-2 and the adapter give their parameters."""
    known = {
        "lora_A": 2.0, "lora_B": 3.0, "lora_position_bias": 5.0, "lora_landmark": 7.0, "wpe": 11.0,
        "ln_": 13.0,
    }  # fmt: skip
    return next(rate for part, rate in known.items() if part in name)


def with_peft(**settings: object) -> torch.nn.Module:
    method = MethodConfig(peft=dict(settings), train_embeddings="false", train_norms="true")
    method.lora.enabled = False
    return attach_peft_method(make_model("gpt2"), method, 64).model


def test_each_parameter_of_the_method_has_the_rate_of_its_group() -> None:
    model = adapt(make_model("gpt2"), HyloradaConfig(**WHOLE))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert rates_by_name(model, ALL) == {name: of_name(name) for name in trained}
    biases = rates_by_name(model, LrScaleConfig(position_bias=50.0))
    assert set(biases.values()) == {50.0}
    assert list(biases) == [name for name in trained if "lora_position_bias" in name] != []
    assert rates_by_name(model, LrScaleConfig()) == {}


@pytest.mark.parametrize("group", ["position_bias", "landmark", "embeddings", "norms"])
def test_a_rate_for_what_does_not_train_is_refused(group: str) -> None:
    model = adapt(make_model("gpt2"), HyloradaConfig())
    with pytest.raises(ConfigError, match=rf"lr_scale\.{group}=2 .*trained: lora_A, lora_B\)"):
        rates_by_name(model, LrScaleConfig(**{group: 2.0}))


def test_dora_keeps_its_magnitudes_at_the_base_rate() -> None:
    model = adapt(make_model("llama"), HyloradaConfig(use_dora=True))
    rates = rates_by_name(model, LrScaleConfig(lora_A=2.0, lora_B=3.0))
    apart = [n for n, p in model.named_parameters() if p.requires_grad and n not in rates]
    assert apart
    assert all("lora_magnitude_vector" in name for name in apart)


def test_of_other_methods_of_peft_what_there_is_has_a_rate() -> None:
    ia3 = with_peft(peft_type="IA3")
    norms = rates_by_name(ia3, LrScaleConfig(norms=4.0))
    assert norms
    assert all("ln_" in name for name in norms)
    with pytest.raises(ConfigError, match=r"lora_B=16 has no effect.*\(trained: norms\)"):
        rates_by_name(ia3, LrScaleConfig(lora_B=16.0))
    halves = rates_by_name(with_peft(peft_type="LORA"), LrScaleConfig(lora_B=16.0))
    assert halves
    assert all(".lora_B." in name for name in halves)
