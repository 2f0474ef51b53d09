"""Run settings to PEFT configs; the arms of the paper; HyLoRADA at 512 tokens is rsLoRA."""

from __future__ import annotations

import pytest
import torch
from helpers.families import CONFIGS, make_model, tokens
from transformers import GPT2Config, GPT2LMHeadModel

from hylorada.config import LoraConfig, MethodConfig, PositionRangeConfig, S2AttentionConfig
from hylorada.errors import ConfigError
from hylorada.methods import adapt
from hylorada.methods.adaptive_rule import from_method
from hylorada.methods.integrity.adapters import count_by_component

OFF = {"train_embeddings": "false", "train_norms": "false"}
GPT2 = GPT2Config()


def method(name: str = "hylorada", **changes: object) -> MethodConfig:
    """A method; dotted names are written with two underscores, as landmark__enabled."""
    made = MethodConfig(name=name)
    for key, value in changes.items():
        part, _, leaf = key.rpartition("__")
        setattr(getattr(made, part) if part else made, leaf, value)
    return made


def rslora() -> MethodConfig:
    return method(
        "rslora", position_bias__enabled="false", landmark__enabled="false",
        s2_attn__enabled="false", **OFF,
    )  # fmt: skip


def longlora() -> MethodConfig:
    made = rslora()
    made.lora = LoraConfig(use_rslora=False, init="kaiming", target_modules=["attention"])
    made.s2_attn = S2AttentionConfig(enabled="true", group_size=0, shift="heads")
    made.train_embeddings, made.train_norms = "auto", "true"
    return made


@pytest.mark.parametrize(("length", "counts"), [
    (512, {"lora": 811_008}),
    (2048, {"lora": 811_008, "position_bias": 65, "landmark": 12_545,
            "position_embeddings": 2048 * 768}),
    (4096, {"lora": 811_008, "position_bias": 65, "landmark": 12_545,
            "position_embeddings": 3_145_728, "norms": 38_400}),
])  # fmt: skip
def test_what_trains_on_gpt2_at_each_length(length, counts):
    config = from_method(method(), length, GPT2)
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, vocab_size=64))
    got = count_by_component(adapt(model, config))
    per_layer = {"lora": counts["lora"] // 12 * 2}
    if "norms" in counts:
        per_layer["norms"] = 768 * 2 * (2 * 2 + 1)
    assert got == {**counts, **per_layer}


def test_hylorada_at_512_is_rslora_bit_for_bit_after_ten_steps():
    weights = []
    for made in (method(), rslora()):
        base = make_model("gpt2", trained_length=1024)
        model = adapt(base, from_method(made, 512, base.config), seed=7).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        for step in range(10):
            ids = tokens(1, 512, seed=step)
            optimizer.zero_grad()
            model(ids, labels=ids, use_cache=False).loss.backward()
            optimizer.step()
        weights.append({n: p.detach() for n, p in model.named_parameters()})
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(p, weights[1][n]) for n, p in weights[0].items())
    moved = [p for n, p in weights[0].items() if ".lora_B." in n]
    assert all(p.any() for p in moved)


def test_longlora_is_lora_on_attention_with_a_quarter_group_in_half_of_the_heads():
    config = from_method(longlora(), 4096, GPT2)
    assert (config.s2_group_size, config.s2_shift, config.use_rslora) == (1024, "heads", False)
    assert (config.lora_init, config.target_modules) == ("kaiming", "attention")
    assert config.train_embeddings
    assert config.train_norms
    base = make_model("llama")
    config = from_method(longlora(), 100, base.config)
    model = adapt(base, config)
    resolved = model.peft_config["default"]
    assert not resolved.train_embeddings
    assert "no learned position embeddings" in resolved.left_out["train_embeddings"]
    assert model.base_model.s2_layers == 3
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == 2.0


def test_a_baseline_trains_nothing_and_says_so_if_asked_for_more():
    made = method("baseline", lora__enabled=False)
    assert from_method(made, 4096, GPT2) is None
    made.landmark.enabled = "true"
    with pytest.raises(ConfigError, match=r"landmark has no effect while lora\.enabled is false"):
        from_method(made, 4096, GPT2)


@pytest.mark.parametrize("switch", ["true", "false"])
def test_a_switch_set_by_hand_wins_over_the_rule(switch):
    changes = dict.fromkeys(
        ("position_bias__enabled", "landmark__enabled", "s2_attn__enabled", *OFF), switch
    )
    config = from_method(method(**changes, s2_attn__group_size=128), 512, GPT2)
    assert {
        config.position_bias_enabled, config.landmark_enabled, config.s2_attn_enabled,
        config.train_norms, config.train_embeddings,
    } == {switch == "true"}  # fmt: skip


@pytest.mark.parametrize(("changes", "family", "message"), [
    ({"train_embeddings": "true"}, "llama", "no learned position embeddings"),
    ({"position_range__rope_type": "linear"}, "gpt2", "has no rotary position embedding"),
    ({"position_range__rope_factor": 2.0}, "opt", "has no rotary position embedding"),
    ({"position_range__learned_init": "by_parts"}, "llama", "has rotary position embeddings; set"),
    ({"s2_attn__enabled": "true"}, "llama", "not below max_length"),
    ({"s2_attn__enabled": "true", "s2_attn__group_size": 63}, "llama", "even number"),
    ({"s2_attn__enabled": "false", "s2_attn__in_evaluation": True}, "llama", "no effect"),
    ({"train_norms": "yes"}, "llama", "train_norms is 'yes'"),
    ({"lora__use_dora": True, "position_bias__enabled": "true"}, "gpt2", "cannot be combined"),
])  # fmt: skip
def test_a_setting_that_cannot_take_effect_is_refused(changes, family, message):
    with pytest.raises(ConfigError, match=message):
        from_method(method(**changes), 512, CONFIGS[family](64))


def test_the_range_of_every_arm_is_the_same():
    wanted = PositionRangeConfig(learned_init="tile")
    arms = [method(), rslora(), longlora()]
    for made in arms:
        made.position_range = wanted
    configs = [from_method(made, 4096, GPT2) for made in arms]
    for name in ("max_length", "learned_init", "rope_scaling_type", "rope_scaling_factor"):
        assert len({getattr(config, name) for config in configs}) == 1
