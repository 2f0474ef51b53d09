"""The parameter audit by component."""

from __future__ import annotations

import pytest
from helpers.families import FAMILIES, LEARNED_FAMILIES, make_model
from torch import nn

from hylorada.methods import HyloradaConfig, adapt
from hylorada.methods.integrity.adapters import count_by_component
from hylorada.methods.parameter_groups import parameter_groups


@pytest.mark.parametrize("family", FAMILIES)
def test_every_trainable_parameter_is_in_the_group_of_its_component(family):
    learned = family in LEARNED_FAMILIES
    config = HyloradaConfig(
        position_bias_enabled=True, landmark_enabled=True, train_norms=True,
        train_embeddings=learned,
    )  # fmt: skip
    model = adapt(make_model(family), config)
    groups = parameter_groups(model)
    expected = ["lora", "position_bias", "landmark", "position_embeddings", "norms"]
    assert list(groups) == [g for g in expected if learned or g != "position_embeddings"]
    listed = [name for members in groups.values() for name, _ in members]
    assert sorted(listed) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    counts = count_by_component(model)
    assert counts["position_bias"] == 65
    assert counts["landmark"] == 2 * 8 * 32 + 1 + 32 * 8
    if learned:
        assert counts["position_embeddings"] == (64 + (2 if family == "opt" else 0)) * 32


def test_what_nobody_asked_for_shows_and_a_frozen_model_has_no_groups():
    model = make_model("gpt2")
    model.requires_grad_(False)
    assert count_by_component(model) == {}
    model.transformer.wte.requires_grad_(True)
    model.transformer.h[0].mlp.c_fc.requires_grad_(True)
    model.extra = nn.Linear(2, 2)
    assert count_by_component(model) == {"token_embeddings": 97 * 32, "other": 32 * 128 + 128 + 6}
