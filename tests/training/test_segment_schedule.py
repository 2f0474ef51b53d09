"""In which steps attention is full, and in which segments it runs otherwise."""

from __future__ import annotations

import json

import pytest
from helpers.families import make_model
from helpers.tiny_runs import (
    killed,
    make_config,
    make_model_folder,
    make_texts,
    outcome,
    result,
    run_here,
    run_to_end,
)

from hylorada.config import RunConfig, S2AttentionConfig
from hylorada.errors import ConfigError
from hylorada.methods.s2_attention import enable_s2
from hylorada.settings.run import check_settings
from hylorada.training.segment_schedule import group_size_at, scheduled_segments


def full_steps(steps, **settings):
    s2 = S2AttentionConfig(**settings)
    return [n for n in range(1, steps + 1) if group_size_at(n, steps, s2, 16, 64, 0) == 64]


def test_a_share_of_the_steps_attends_fully():
    assert full_steps(10) == []
    assert full_steps(10, full_share=0.3) == [8, 9, 10]
    assert full_steps(10, full_share=0.3, full_steps="first") == [1, 2, 3]
    assert full_steps(10, full_share=0.5, full_steps="even") == [2, 4, 6, 8, 10]
    assert full_steps(7, full_share=0.3, full_steps="even") == [4, 7]
    assert full_steps(5, full_share=0.99) == [1, 2, 3, 4, 5]


def test_drawn_segments_are_even_within_bounds_and_follow_from_step_and_seed():
    s2 = S2AttentionConfig(largest_group=60)
    sizes = [group_size_at(n, 400, s2, 16, 64, 0) for n in range(1, 401)]
    assert all(size % 2 == 0 and 16 <= size <= 60 for size in sizes)
    assert len(set(sizes)) == 23  # all of them
    below_middle = sum(size < 31 for size in sizes)  # the geometric mean of 16 and 60
    assert 160 < below_middle < 240
    assert sizes[::-1] == [group_size_at(n, 400, s2, 16, 64, 0) for n in range(400, 0, -1)]
    assert sizes != [group_size_at(n, 400, s2, 16, 64, 1) for n in range(1, 401)]


def test_the_method_has_its_own_segments_again_afterwards():
    model = make_model("gpt2", 64)
    enable_s2(model, 16, "layers")
    seen = []
    with scheduled_segments(model, S2AttentionConfig(full_share=0.5), 64, 0) as prepare:
        for step in range(1, 5):
            prepare(step, 4)
            seen.append(model.config.s2_group_size)
    assert seen == [16, 16, 64, 64]
    assert model.config.s2_group_size == 16


@pytest.mark.slow
def test_it_acts_and_a_killed_run_ends_with_the_same_bytes(tmp_path):
    make_model_folder(tmp_path / "model")
    make_texts(tmp_path / "texts")
    plain = make_config(tmp_path)
    config = make_config(
        tmp_path, method__s2_attn__full_share=0.3, method__s2_attn__largest_group=64
    )
    by_layers = make_config(tmp_path, method__s2_attn__full_layers=0.5)
    by_heads = make_config(tmp_path, method__s2_attn__full_heads=0.5)
    for name, settings in (
        ("plain", plain), ("whole", config), ("layers", by_layers), ("heads", by_heads)
    ):  # fmt: skip
        assert run_here(settings, tmp_path / name) == 0

    def losses(name):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["train/loss"] for line in lines if "train/loss" in line]

    assert losses("plain") != losses("whole")
    assert len({losses(name)[0] for name in ("plain", "layers", "heads")}) == 3
    assert result(tmp_path / "plain")["integrity"]["checks"]["s2_layers"]["value"] == 2
    assert result(tmp_path / "layers")["integrity"]["checks"]["s2_layers"]["value"] == 1
    assert killed(run_to_end(config, tmp_path / "killed", HYLORADA_FAULT="after_step:6"))
    assert run_here(config, tmp_path / "killed") == 0
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"enabled": "false", "full_share": 0.5}, "full_share=0.5 has no effect"),
        ({"enabled": "false", "largest_group": 4096}, "largest_group=4096 has no effect"),
        ({"full_steps": "even"}, "full_steps=even has no effect"),
        ({"largest_group": 2048}, r"above the group \(2048\)"),
        ({"largest_group": 4098}, r"at most length.max_length \(4096\)"),
        ({"in_evaluation": True, "full_share": 0.5}, "one of the two back"),
        ({"enabled": "false", "full_layers": 0.5}, "full_layers=0.5 has no effect"),
        ({"full_layers": 0.5, "full_share": 0.5}, "full_share=0.5 to all of them in some steps"),
        ({"full_layers": 0.5, "largest_group": 4096}, "set one of the two to 0"),
        ({"full_share": 0.01}, "full_share=0.01 of train.max_steps=40 is no step"),
        ({"full_share": 0.99}, "full_share=0.99 of train.max_steps=40 is every step"),
        ({"full_layers": 1.0}, "below 1"),
        ({"enabled": "false", "full_heads": 0.5}, "full_heads=0.5 has no effect"),
        ({"full_heads": 0.5, "full_share": 0.5}, "full_share=0.5 to all of them in some steps"),
        ({"full_heads": 0.5, "largest_group": 4096}, "set one of the two to 0"),
        ({"full_heads": 0.5, "full_layers": 0.5}, "full_layers=0.5 gives .*full_heads=0.5 to some"),
        ({"full_heads": 1.0}, "below 1"),
    ],
)
def test_a_schedule_without_effect_is_refused(changes, says):
    config = RunConfig()
    for key, value in changes.items():
        setattr(config.method.s2_attn, key, value)
    with pytest.raises(ConfigError, match=says):
        check_settings(config)
