"""What a model cannot have: left out by the rule, with the reason, and refused by hand."""

from __future__ import annotations

import pytest
import torch
from helpers.architectures import make_zoo_model
from helpers.families import FAMILIES, make_model

from hylorada.architecture import anatomy
from hylorada.errors import ConfigError
from hylorada.methods import HyloradaConfig, adapt
from hylorada.methods.placement import resolve
from hylorada.methods.position_flow import position_flow

LENGTH = 64
COMPONENTS = {
    "position_bias": "position_bias_enabled",
    "landmark": "landmark_enabled",
    "s2_attn": "s2_attn_enabled",
    "train_norms": "train_norms",
}


def by_rule(**more):
    on = dict.fromkeys(COMPONENTS.values(), True)
    return HyloradaConfig(
        max_length=LENGTH, s2_group_size=16, chosen_by_rule=list(on), **{**on, **more}
    )


CANNOT = [
    ("olmo", "train_norms", "the norms of OlmoForCausalLM have no parameters"),
    ("mistral, window", "s2_attn", "limits attention to a window of 16 tokens"),
    ("gemma2", "s2_attn", "window of 16 tokens"),
    ("vaultgemma, soft cap", "s2_attn", "caps its attention scores"),
    ("llama4_text", "s2_attn", "chunks of 8192 tokens"),
    ("falcon", "s2_attn", "no attention of FalconForCausalLM goes through"),
    ("minimax", "s2_attn", "a sliding window"),  # seen only when it runs
    ("bloom", "position_bias", "no attention layer of BloomForCausalLM is given position_ids"),
    ("bloom", "landmark", "no attention layer of BloomForCausalLM is given position_ids"),
    ("mamba", "landmark", "no attention layer of MambaForCausalLM is given position_ids"),
    ("qwen3_next", "position_bias", "runs without attention that is given position_ids"),
    ("deepseek_v3", "position_bias", "works on other tokens than its attention"),
    ("bert, decoder", "landmark", "no attention layer"),
    ("bamba", "landmark", "continues with a cache the positions of its beginning"),
    ("opt, projected", "landmark", None),
    ("qwen2_moe", "s2_attn", None),  # its config has a window of 0 tokens, which no layer uses
    ("qwen3_next", "landmark", None),
    ("got_ocr2", "s2_attn", None),
]


def zoo(family):
    if family != "vaultgemma, soft cap":
        return make_zoo_model(family)
    model = make_zoo_model("vaultgemma")
    model.config.layer_types = ["full_attention"] * 2
    model.config.sliding_window = None
    return model


@pytest.mark.parametrize(("family", "component", "words"), CANNOT)
def test_left_out_by_the_rule_and_refused_by_hand(family, component, words):
    model = zoo(family)
    config = resolve(by_rule(), model)
    if words is None:
        assert component not in config.left_out
        assert getattr(config, COMPONENTS[component])
        return
    assert words in config.left_out[component]
    assert not getattr(config, COMPONENTS[component])
    others = [switch for switch in COMPONENTS.values() if switch != COMPONENTS[component]]
    by_hand = by_rule()
    by_hand.chosen_by_rule = others
    with pytest.raises(ConfigError, match=f"{component}: .* set method.{component}") as error:
        adapt(model, by_hand)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_left_out_of_the_six_families(family):
    config = resolve(by_rule(), make_model(family))
    assert config.left_out == {}
    assert all(getattr(config, switch) for switch in COMPONENTS.values())


def test_without_weights_only_what_needs_none_is_said():
    with torch.device("meta"):
        model = make_zoo_model("olmo")
    assert set(resolve(by_rule(), model).left_out) == {"train_norms"}


def test_an_adapter_stays_off_layers_that_are_never_called():
    model = make_zoo_model("jamba")
    config = HyloradaConfig(max_length=LENGTH)
    resolved = resolve(config, model)
    assert "mamba.dt_proj" not in resolved.target_modules
    assert "mamba.in_proj" in resolved.target_modules
    assert "does not call mamba.dt_proj" in resolved.left_out["target_modules"]
    named = HyloradaConfig(max_length=LENGTH, target_modules=["dt_proj"])
    assert resolve(named, model).target_modules == {"dt_proj"}  # by hand: the gate will say


def test_an_adapter_stays_out_of_the_tower_that_reads_pictures():
    model = make_zoo_model("gemma3")
    adapted = adapt(model, HyloradaConfig(max_length=LENGTH, train_norms=True))
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trained
    assert not [name for name in trained if "vision_tower" in name]
    layers = anatomy.decoder_layers(adapted)
    assert all(hasattr(layer.self_attn.q_proj, "lora_A") for layer in layers)
    tower = adapted.get_base_model().model.vision_tower
    assert any("q_proj" in name for name, _ in tower.named_modules())  # the same names are there


def test_an_adapter_stays_off_attention_to_an_encoder_that_is_not_there():
    model = make_zoo_model("bart")
    resolved = resolve(HyloradaConfig(max_length=LENGTH, train_norms=True), model)
    everything = [*resolved.target_modules, *resolved.modules_to_save]
    assert "self_attn.q_proj" in everything
    assert not [name for name in everything if "encoder_attn" in name]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_next", "deepseek_v3"])
def test_looking_leaves_the_model_and_the_generators_as_they_were(family):
    model = make_zoo_model(family).train()
    hooks = sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    position_flow(model, None)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert hooks == sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())
