"""The factor on the loss in fp16: exact, searched for, and no divergence meanwhile."""

import json

import pytest
import torch
from helpers.families import make_model
from training.test_loop import CPU, lines, make_training, weights

from hylorada.errors import DivergedError
from hylorada.training import loss_scale
from hylorada.training.checkpoint import load_newest
from hylorada.training.loss_scale import FIRST, LossScale, searching

FINE, INFINITE = torch.tensor(1.0), torch.tensor(float("inf"))


def test_it_is_taken_off_exactly():
    scale = LossScale(CPU)
    leaf = torch.tensor([0.1, 3e-7, 12345.678], requires_grad=True)
    (plain,) = torch.autograd.grad((leaf**2).sum(), leaf)
    (scaled,) = torch.autograd.grad(scale.applied((leaf**2).sum()), leaf)
    assert not torch.equal(scaled, plain)
    scale.take_off([scaled])
    assert torch.equal(scaled, plain)


def test_an_overflow_halves_it_and_patience_doubles_it(monkeypatch):
    monkeypatch.setattr(loss_scale, "PATIENCE", 3)
    scale = LossScale(CPU)
    found = []
    for norm in (INFINITE, INFINITE, FINE, FINE, INFINITE, FINE, FINE, FINE, FINE):
        scale.update(FINE, norm)
        found.append(float(scale.factor) / FIRST)
    assert found == [1 / 2, 1 / 4, 1 / 4, 1 / 4, 1 / 8, 1 / 8, 1 / 8, 1 / 4, 1 / 4]


def test_a_loss_that_is_not_finite_is_not_its_fault():
    scale = LossScale(CPU)
    scale.update(INFINITE, INFINITE)
    assert float(scale.factor) == FIRST
    assert searching(float("nan"), FIRST) == ""
    assert "65536" in searching(2.0, FIRST)
    assert searching(2.0, loss_scale.LAST) == ""
    scale.factor.fill_(loss_scale.LAST)
    scale.update(FINE, INFINITE)
    assert float(scale.factor) == loss_scale.LAST


def half(path, late=False, **settings):
    """A training in fp16; torch computes it on a processor, too, if slowly."""
    training = make_training(path, **settings)
    training.autocast = torch.float16
    training.__post_init__()
    training.settles_late = late  # as on a GPU
    return training


def test_fp16_keeps_parameters_in_float32_and_learns_what_fp32_does(tmp_path):
    training, plain = half(tmp_path), make_training(tmp_path / "plain")
    training.run()
    plain.run()
    assert {p.dtype for _, p in training.trainables} == {torch.float32}
    for ours, theirs in zip(lines(tmp_path), lines(tmp_path / "plain"), strict=True):
        assert ours["train/loss"] != theirs["train/loss"]
        for name in ("train/loss", "train/grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-2), name


def test_searching_is_no_divergence_and_moves_nothing(tmp_path):
    training = half(tmp_path, max_steps=30, max_nonfinite_steps=1)
    training.optimizer_step.scale.factor.fill_(2.0**30)
    before = weights(training)
    training._step(1)
    assert all(torch.equal(before[name], p) for name, p in training.trainables)
    training = half(tmp_path, max_steps=30, max_nonfinite_steps=1)
    training.optimizer_step.scale.factor.fill_(2.0**30)
    training.run()
    found = lines(tmp_path)[-30:]
    searched = [line["train/skipped"] for line in found if "train/skipped" in line]
    assert 5 < len(searched) == training.counters.skipped < 25
    assert searched[0] == "a gradient overflows at a loss scale of 1.07374e+09, which is halved"
    assert "train/loss" in found[-1]
    assert training.counters.skipped_in_row == 0


def test_a_search_that_is_read_a_step_late_leaves_the_same_bytes(tmp_path):
    for name, late in (("now", False), ("late", True)):
        training = half(tmp_path / name, model=make_model("gpt2"), late=late, max_steps=12)
        training.optimizer_step.scale.factor.fill_(2.0**24)
        training.run()
    for name in ("metrics.jsonl", "checkpoints/step-00000012/trainables.safetensors"):
        assert (tmp_path / "now" / name).read_bytes() == (tmp_path / "late" / name).read_bytes()
    assert any("train/skipped" in line for line in lines(tmp_path / "late"))


def test_a_loss_that_is_not_finite_still_ends_the_run(tmp_path):
    model = make_model("gpt2")
    training = half(tmp_path, model=model, max_steps=9)
    with torch.no_grad():
        model.get_output_embeddings().weight[3] = float("nan")
    with pytest.raises(DivergedError, match=r"3 steps in a row.*loss is nan"):
        training.run()


def test_a_run_that_goes_on_in_the_middle_of_the_search_ends_with_the_same_bytes(tmp_path):
    settings = {"max_steps": 24, "save_every": 6}
    whole, cut = half(tmp_path / "whole", **settings), half(tmp_path / "cut", **settings)
    for training in (whole, cut):
        training.optimizer_step.scale.factor.fill_(2.0**30)
    whole.run()
    plan = cut.plan
    cut.plan = type(plan)(plan.blocks, plan.batch, 6 * plan.batch)
    cut.run()
    checkpoint = load_newest(tmp_path / "cut" / "checkpoints")
    assert checkpoint.state["loss_scale"] == {"factor": 2.0**24, "steps": 0}
    again = half(tmp_path / "cut", **settings)
    again.run(checkpoint)
    for name in ("metrics.jsonl", "checkpoints/step-00000024/trainables.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    state = json.loads((tmp_path / "cut/checkpoints/step-00000024/state.json").read_text())
    assert state["loss_scale"] == whole.optimizer_step.scale.state()


def test_other_precisions_have_none(tmp_path):
    training = make_training(tmp_path, max_steps=2, save_every=1)
    training.run()
    assert training.optimizer_step.scale is None
    assert "loss_scale" not in load_newest(tmp_path / "checkpoints").state
