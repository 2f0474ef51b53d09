"""Loss spikes: where one begins, what is done about it, and that a stopped run forgets nothing."""

from __future__ import annotations

import json
import logging
import math
import random

import pytest
import torch
from training.test_loop import CPU, lines, make_training

from hylorada.config import RunConfig
from hylorada.errors import ConfigError, DivergedError
from hylorada.settings import check_settings
from hylorada.training.checkpoint import load_newest
from hylorada.training.spikes import FEWEST, SMALLEST, WINDOW, LossSpikes

STEPS = 24  # of which the first FEWEST have no limit


def test_the_limit_is_that_of_a_sorted_list():
    draw, spikes, kept = random.Random(3), LossSpikes(5.0, CPU), []
    for step in range(WINDOW + 40):
        limit = spikes.limit().item()
        if len(kept) < FEWEST:
            assert limit == math.inf
        else:
            ordered = sorted(kept)
            median = ordered[(len(kept) - 1) // 2]
            apart = sorted(abs(loss - median) for loss in kept)[(len(kept) - 1) // 2]
            assert limit == pytest.approx(median + 5 * max(1.4826 * apart, SMALLEST), rel=1e-12)
        loss = draw.gauss(4.0, 0.3)
        counts = step % 7 != 2
        spikes.add(torch.tensor(loss, dtype=torch.float64), torch.tensor(counts))
        kept = [*kept, loss][-WINDOW:] if counts else kept
    assert spikes.state() == kept
    other = LossSpikes(5.0, CPU)
    other.restore(json.loads(json.dumps(spikes.state())))
    assert torch.equal(other.limit(), spikes.limit())


def test_losses_that_hardly_differ_make_no_spike_of_rounding():
    spikes = LossSpikes(8.0, CPU)
    for _ in range(FEWEST):
        spikes.add(torch.tensor(2.0), torch.tensor(True))
    assert spikes.limit().item() == pytest.approx(2.0 + 8 * SMALLEST)


def poisoned(training, steps):
    """The batches of these steps have ten times their loss: labels of another text, say."""
    plain = training.loss_model

    def loss_model(**batch):
        sum_nll, count = plain(**batch)
        return (sum_nll * 10, count) if training.counters.step in steps else (sum_nll, count)

    training.loss_model = loss_model
    return training


def make(folder, policy, steps, **settings):
    settings = {
        "max_steps": STEPS, "lr": 1e-3, "save_every": 5, "keep_checkpoints": 9,
        "lr_scheduler": "constant", "warmup_ratio": 0.0,  # a plan cut short has the same rates
        **settings,
    }  # fmt: skip
    return poisoned(make_training(folder, loss_spike=policy, **settings), steps)


BAD = 19


def test_none_of_it_is_computed_without_being_asked_for(tmp_path):
    training = make(tmp_path, "none", {BAD})
    training.run()
    assert training.counters.skipped == 0
    assert "losses" not in load_newest(tmp_path / "checkpoints").state


def test_a_warning_changes_no_byte(tmp_path, caplog):
    make(tmp_path / "none", "none", {BAD}).run()
    with caplog.at_level(logging.WARNING):
        make(tmp_path / "warn", "warn", {BAD}).run()
    for name in ("metrics.jsonl", f"checkpoints/step-{STEPS:08d}/trainables.safetensors"):
        assert (tmp_path / "warn" / name).read_bytes() == (tmp_path / "none" / name).read_bytes()
    assert [r.message.partition(":")[0] for r in caplog.records] == [f"step {BAD}"]
    assert "loss spike" in caplog.text


@pytest.mark.parametrize("late", [False, True])
def test_no_weight_and_no_moment_moves(tmp_path, late):
    training = make(
        tmp_path, "skip", {BAD}, max_steps=BAD, save_every=1, keep_checkpoints=99, late=late
    )
    training.run()
    folders = [tmp_path / "checkpoints" / f"step-{step:08d}" for step in (BAD - 1, BAD)]
    for name in ("trainables.safetensors", "optimizer.safetensors"):
        assert folders[0].joinpath(name).read_bytes() == folders[1].joinpath(name).read_bytes()
    last = lines(tmp_path)[-1]
    assert set(last) == {"step", "train/skipped"}
    assert last["train/skipped"].startswith("loss spike: ")
    states = [json.loads((folder / "state.json").read_text()) for folder in folders]
    assert states[0]["losses"] == states[1]["losses"]  # of a spike the history learns nothing


@pytest.mark.parametrize("late", [False, True])
def test_stop_ends_the_run_before_the_weights_have_moved(tmp_path, late):
    training = make(tmp_path, "stop", {BAD}, late=late)
    with pytest.raises(DivergedError, match=rf"step {BAD} is a loss spike: .*loss_spike=stop"):
        training.run()
    assert training.counters.step == BAD
    assert load_newest(tmp_path / "checkpoints").state["step"] == 15


def test_a_level_that_stays_up_ends_the_run_and_skips_no_further(tmp_path):
    training = make(tmp_path, "skip", set(range(BAD, STEPS + 1)), max_nonfinite_steps=3)
    with pytest.raises(DivergedError, match=rf"3 steps in a row .* step {BAD + 2} \(loss spike"):
        training.run()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("policy", ["warn", "skip"])
def test_a_run_that_goes_on_judges_by_the_losses_from_before(tmp_path, policy, late):
    """From step 15, where the process had ended, the 19th is still told from the 15 before."""
    whole = make(tmp_path / "whole", policy, {BAD}, late=late)
    whole.run()
    cut = make(tmp_path / "cut", policy, {BAD}, late=late)
    plan = cut.plan
    cut.plan = type(plan)(plan.blocks, plan.batch, 18 * plan.batch)
    cut.run()
    checkpoint = load_newest(tmp_path / "cut" / "checkpoints")
    assert checkpoint.state["step"] == 18
    again = make(tmp_path / "cut", policy, {BAD}, late=late)
    again.run(checkpoint)
    assert again.counters.skipped == whole.counters.skipped == (policy == "skip")
    for name in ("metrics.jsonl", f"checkpoints/step-{STEPS:08d}/trainables.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    states = [
        json.loads((tmp_path / x / f"checkpoints/step-{STEPS:08d}/state.json").read_text())
        for x in ("cut", "whole")
    ]
    assert states[0]["losses"] == states[1]["losses"]


def test_a_number_without_effect_is_refused():
    config = RunConfig()
    config.train.loss_spike_deviations = 4.0
    with pytest.raises(ConfigError, match=r"deviations=4 has no effect .* or leave it at 8"):
        check_settings(config)
    config.train.loss_spike = "skip"
    check_settings(config)
