"""The best weights by validation, and early stopping, on scripted validation losses."""

from __future__ import annotations

import pytest
import torch
from helpers.families import make_model
from helpers.marks import thinned
from training.test_loop import lines, make_training, weights

from hylorada.training.checkpoint import load_newest, read_checkpoint

LOSSES = {1: 9.0, 2: 7.0, 3: 8.0, 4: 7.5, 5: 7.6, 6: 7.7, 7: 6.0, 8: 6.5}
STEPS = len(LOSSES)


class Script:
    """Validation losses by step; keeps the weights that each was asked of."""

    def __init__(self, losses=LOSSES):
        self.losses, self.seen, self.training = losses, {}, None

    def __call__(self, step):
        self.seen[step] = weights(self.training)
        return {"validation/ppl": self.losses[step]}


def start(folder, losses=LOSSES, **settings):
    script = Script(losses)
    settings = {"max_steps": STEPS, "eval_every": 1, "keep_best": True, **settings}
    training = make_training(folder, model=make_model("gpt2"), evaluate=script, **settings)
    script.training = training
    return training, script


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_weights_at_the_end_are_those_of_the_lowest_loss(tmp_path):
    training, script = start(tmp_path)
    training.run()
    assert training.best.fields() == {"best_step": 7, "best_validation_ppl": 6.0}
    assert same(weights(training), script.seen[7])
    assert not same(script.seen[7], script.seen[8])
    assert training.counters.step == STEPS  # the steps that were made are not those kept
    told = [line["validation/ppl"] for line in lines(tmp_path) if "validation/ppl" in line]
    assert told == list(LOSSES.values())  # the last weights are judged, too
    checkpoint = load_newest(tmp_path / "checkpoints")
    assert same(checkpoint.trainables, script.seen[8])  # to go on from; the best lies beside
    assert same(checkpoint.best, script.seen[7])  # as it was known before the last was judged


def test_without_keep_best_the_last_weights_stay_and_no_more_is_evaluated_or_saved(tmp_path):
    training, script = start(tmp_path, keep_best=False)
    training.run()
    assert same(weights(training), weights_of_steps(tmp_path / "plain", STEPS))
    assert sorted(script.seen) == list(range(1, STEPS))
    assert training.best.fields() == {}
    checkpoint = load_newest(tmp_path / "checkpoints")
    assert (checkpoint.best, "best" in checkpoint.state) == ({}, False)


def weights_of_steps(folder, steps):
    training = make_training(folder, model=make_model("gpt2"), max_steps=STEPS)
    training.settings.save_every = steps
    training.run()
    return read_checkpoint(folder / "checkpoints" / f"step-{steps:08d}").trainables


@pytest.mark.parametrize(("patience", "last"), [(1, 3), (2, 4), (4, 6), (5, 8)])
def test_training_ends_after_so_many_evaluations_without_a_better_one(tmp_path, patience, last):
    training, script = start(tmp_path, patience=patience)
    training.run()
    assert training.counters.step == last == max(script.seen)
    assert training.ended_by == ("patience" if last < STEPS else "steps")
    assert same(weights(training), script.seen[2 if last < 7 else 7])


def test_patience_alone_keeps_the_last_weights(tmp_path):
    training, script = start(tmp_path, patience=2, keep_best=False)
    training.run()
    assert same(weights(training), script.seen[4])


@pytest.mark.parametrize(
    ("stopped", "late"),
    thinned(
        [(step, late) for step in range(1, STEPS + 1) for late in (False, True)],
        [(step, step % 2 == 0) for step in range(1, STEPS + 1)],
    ),
)
def test_a_run_that_goes_on_ends_as_one_that_never_stopped(tmp_path, stopped, late):
    settings = {"save_every": 1, "keep_checkpoints": 1, "patience": 4}
    whole, _ = start(tmp_path / "whole", late=late, **settings)
    whole.run()
    first, _ = start(tmp_path / "parts", late=late, **settings)
    first.settings.keep_checkpoints = 99  # only to find the state after that step again
    first.run()
    if stopped > first.counters.step:
        return  # patience ended it before
    checkpoint = read_checkpoint(tmp_path / f"parts/checkpoints/step-{stopped:08d}")
    second, _ = start(tmp_path / "parts", late=late, **settings)
    second.run(checkpoint)
    assert same(weights(second), weights(whole))
    expected = {"best_step": 2, "best_validation_ppl": 7.0}
    assert second.best.fields() == whole.best.fields() == expected
    assert second.ended_by == whole.ended_by == "patience"
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    # One checkpoint is kept, of a step long after the best: the best was not deleted with its own.
    (newest,) = (tmp_path / "whole/checkpoints").iterdir()
    assert read_checkpoint(newest).best.keys() == checkpoint.trainables.keys()


def test_losses_beyond_a_float_are_no_better_than_any(tmp_path):
    overflow = {**LOSSES, 1: None, 7: None}
    training, script = start(tmp_path / "a", losses=overflow)
    training.run()
    assert same(weights(training), script.seen[8])
    assert training.best.fields() == {"best_step": 8, "best_validation_ppl": 6.5}


def test_where_no_loss_is_a_number_the_last_weights_are_kept_and_it_is_told(tmp_path, caplog):
    training, script = start(tmp_path, losses=dict.fromkeys(LOSSES))
    training.run()
    assert same(weights(training), script.seen[8])
    assert training.best.fields() == {"best_step": None, "best_validation_ppl": None}
    assert "no evaluation gave a finite number" in caplog.text


def test_of_equal_losses_the_first_counts(tmp_path):
    training, script = start(tmp_path, losses=dict.fromkeys(LOSSES, 7.0))
    training.run()
    assert same(weights(training), script.seen[1])
