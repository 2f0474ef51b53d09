"""Best-on-validation and early stopping in real runs, killed and continued."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
from helpers.marks import on_request, slow
from helpers.tiny_runs import (
    STEPS,
    killed,
    make_config,
    make_model_folder,
    make_texts,
    outcome,
    result,
    run_here,
    run_to_end,
)
from safetensors.torch import load_file

from hylorada.errors import ConfigError, DataError
from hylorada.planning.plan import Planner
from hylorada.settings import check_settings
from hylorada.training.checkpoint import read_checkpoint

CHANGES = {
    "train__eval_every": 2, "train__keep_best": True, "train__keep_checkpoints": 1,
    "integrity__enabled": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("best")
    make_model_folder(folder / "model")
    make_texts(folder / "texts")
    # Other letters than are trained on, so that training does not help, and the last is not best.
    (file,) = (folder / "texts/validation").iterdir()
    file.write_text("0123456789 " * 50)
    return folder


@pytest.fixture(scope="module")
def whole(root):
    assert run_here(make_config(root, **CHANGES), root / "whole") == 0
    return outcome(root / "whole")


def validation(directory) -> dict[int, float]:
    found = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["validation/ppl"] for line in found if "validation/ppl" in line}


def test_the_adapter_that_is_saved_is_the_best_and_the_record_says_which(root, whole):
    training, losses = result(root / "whole")["training"], validation(root / "whole")
    best = min(losses, key=lambda step: losses[step])
    assert sorted(losses) == [2, 4, 6, 8, 10]
    assert training["steps"] == STEPS
    assert training["best_step"] == best < STEPS  # otherwise this shows nothing
    assert training["best_validation_ppl"] == losses[best]
    last = make_config(root, **{**CHANGES, "train__keep_best": False})
    assert run_here(last, root / "last") == 0
    assert outcome(root / "last") != whole
    checkpoint = read_checkpoint(root / "whole/checkpoints/step-00000010")
    saved = load_file(root / "whole/adapter/adapter_model.safetensors")
    kept = [name for name in saved if name.endswith("lora_B.weight")]
    assert kept
    for name in kept:
        full = name.replace(".weight", ".default.weight")
        assert saved[name].equal(checkpoint.best[full])
        assert not saved[name].equal(checkpoint.trainables[full])


@pytest.mark.parametrize(
    "point",
    [
        "after_step:9",
        *slow("before_evaluation:0", "inside_checkpoint:8"),
        *on_request("after_checkpoint:10", "before_record:0"),
    ],
)
def test_kill_9_then_the_same_command_gives_the_same_bytes(root, whole, point):
    directory, config = root / point.replace(":", "-"), make_config(root, **CHANGES)
    assert killed(run_to_end(config, directory, HYLORADA_FAULT=point))
    assert run_here(config, directory) == 0
    assert outcome(directory) == whole
    kept = {"best_step", "best_validation_ppl", "steps"}
    assert {k: result(directory)["training"][k] for k in kept} == {
        k: result(root / "whole")["training"][k] for k in kept
    }


def test_patience_ends_the_run_and_a_killed_one_in_the_same_place(root):
    config = make_config(root, **CHANGES, train__patience=1)
    assert run_here(config, root / "patient") == 0
    training, losses = result(root / "patient")["training"], validation(root / "patient")
    assert training["ended_by"] == "patience"
    assert training["steps"] == max(losses) < STEPS
    assert (training["best_step"], training["steps"]) == (2, 4)
    point = f"after_step:{training['steps']}"
    assert killed(run_to_end(config, root / "killed", HYLORADA_FAULT=point))
    assert run_here(config, root / "killed") == 0
    assert outcome(root / "killed") == outcome(root / "patient")


@pytest.mark.parametrize(("key", "value"), [("keep_best", True), ("patience", 3)])
def test_what_needs_evaluations_is_refused_without_them(root, key, value):
    with pytest.raises(ConfigError) as error:
        check_settings(make_config(root, **{f"train__{key}": value}))
    assert f"train.{key}={str(value).lower()}" in str(error.value)
    assert "train.eval_every is 0" in str(error.value)


@pytest.mark.parametrize(
    ("eval_every", "patience", "refused"),
    [(STEPS - 1, 0, False), (STEPS, 0, True), (3, 2, False), (5, 1, True), (1, STEPS, True)],
)
def test_what_no_evaluation_can_act_on_is_refused(root, eval_every, patience, refused):
    judged = {"train__patience": patience} if patience else {"train__keep_best": True}
    config = make_config(root, train__eval_every=eval_every, **judged)
    if not refused:
        check_settings(config)
        return
    with pytest.raises(ConfigError, match=f"has no effect.*train.eval_every={eval_every}"):
        check_settings(config)


@pytest.mark.parametrize(
    ("budget", "amount", "patience"), [("epochs", 1.0, 0), ("max_tokens", 95 * 4 * 3, 1)]
)
def test_it_is_refused_as_soon_as_the_text_tells_the_number_of_steps(
    root, tmp_path, budget, amount, patience
):
    config = make_config(root, **CHANGES, train__max_steps=0, train__patience=patience)
    setattr(config.train, budget, amount)
    config.train.eval_every = 100
    check_settings(config)
    assert run_here(config, tmp_path / "run") == ConfigError.exit_code
    said, record = (tmp_path / "run.err").read_text(), result(tmp_path / "run")
    assert "has no effect" in said
    assert "train.eval_every=100 gives fewer in" in said
    assert not record["base"]  # nothing was measured
    (planned,) = Planner(True, 1, lambda _: nullcontext()).plan({str(tmp_path / "other"): config})
    assert str(planned.refusal) == said


def test_a_validation_split_without_a_number_is_refused_before_the_base_is_measured(tmp_path):
    make_model_folder(tmp_path / "model")
    make_texts(tmp_path / "texts")
    (file,) = (tmp_path / "texts/validation").iterdir()
    file.write_text("a")  # one token
    assert run_here(make_config(tmp_path, **CHANGES), tmp_path / "run") == DataError.exit_code
    assert "split 'validation' has no document" in (tmp_path / "run.err").read_text()
    assert not result(tmp_path / "run")["base"]
