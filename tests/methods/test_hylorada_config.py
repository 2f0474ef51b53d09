"""The adaptive rule of the paper, and settings that contradict themselves."""

from __future__ import annotations

import pytest

from hylorada.errors import ConfigError
from hylorada.methods import HyloradaConfig


@pytest.mark.parametrize(("length", "on"), [
    (512, set()),
    (1024, set()),
    (1025, {"train_embeddings"}),
    (2048, {"train_embeddings", "position_bias_enabled", "landmark_enabled"}),
    (4095, {"train_embeddings", "position_bias_enabled", "landmark_enabled"}),
    (4096, {"train_embeddings", "position_bias_enabled", "landmark_enabled", "s2_attn_enabled",
            "train_norms"}),
])  # fmt: skip
def test_what_is_on_at_which_length(length, on):
    config = HyloradaConfig.for_length(length, trained_length=1024)
    switches = ("position_bias_enabled", "landmark_enabled", "s2_attn_enabled", "train_norms",
                "train_embeddings")  # fmt: skip
    assert {name for name in switches if getattr(config, name)} == on
    assert config.max_length == length


@pytest.mark.parametrize(("length", "trained", "rope", "factor"), [
    (512, 1024, "none", 1), (1024, 1024, "none", 1), (4096, 1024, "linear", 4),
    (5000, 2048, "linear", 3), (8192, 1024, "linear", 8), (8193, 1024, "yarn", 9),
    (32768, 2048, "yarn", 16), (4096, 131072, "none", 1),
])  # fmt: skip
def test_the_rope_factor_follows_the_models_own_length(length, trained, rope, factor):
    config = HyloradaConfig.for_length(length, trained_length=trained)
    assert (config.rope_scaling_type, config.rope_scaling_factor) == (rope, factor)


def test_what_is_set_by_hand_wins_over_the_rule():
    config = HyloradaConfig.for_length(
        4096, trained_length=1024, landmark_enabled=False, train_embeddings=False, r=4
    )
    assert not config.landmark_enabled
    assert not config.train_embeddings
    assert config.position_bias_enabled
    assert config.r == 4
    assert set(config.chosen_by_rule) == {
        "position_bias_enabled", "s2_attn_enabled", "train_norms", "rope_scaling_type",
    }  # fmt: skip


def test_defaults_are_the_papers():
    config = HyloradaConfig()
    assert (config.r, config.lora_alpha, config.use_rslora, config.lora_init) == (
        8, 16, True, "orthogonal")  # fmt: skip
    assert (config.position_buckets, config.bucketing, config.num_landmarks) == (64, "log2", 8)
    assert (config.landmark_pooling, config.landmark_position_buckets) == ("prefix_mean", 32)
    assert (config.s2_group_size, config.s2_shift) == (2048, "layers")
    assert config.task_type == "CAUSAL_LM"


@pytest.mark.parametrize(("fields", "message"), [
    ({"bucketing": "split"}, "bucketing is 'split'; use one of log2, relative"),
    ({"position_bias_enabled": "auto"}, "use True or False"),
    ({"r": 0}, "r is 0; use at least 1"),
    ({"s2_attn_enabled": True, "s2_group_size": 7}, "even number of tokens"),
    ({"s2_attn_enabled": True, "max_length": 2048}, "not below max_length 2048"),
    ({"s2_in_evaluation": True}, "no effect without s2_attn_enabled"),
    ({"s2_full_heads": 1.0}, "s2_full_heads is 1.0; use a share from 0 to below 1"),
    ({"s2_full_heads": 0.5}, "s2_full_heads has no effect without s2_attn_enabled"),
    ({"s2_full_layers": 0.5}, "s2_full_layers has no effect without s2_attn_enabled"),
    ({"landmark_enabled": True, "bucketing": "relative"}, "set max_length"),
    ({"init_lora_weights": False}, "set lora_init"),
])  # fmt: skip
def test_contradictions_are_one_line(fields, message):
    with pytest.raises(ConfigError, match=message) as caught:
        HyloradaConfig(**fields)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="max_length is 0; use at least 1"):
        HyloradaConfig.for_length(0, trained_length=1024)
