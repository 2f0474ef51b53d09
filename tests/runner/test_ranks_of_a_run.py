"""The processes of a run, forked: the bytes of one, whatever their number and whoever dies."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import sys
from typing import Any

import pytest
from helpers.many_processes import fork, forked_config, left_by, run_forked
from helpers.marks import LONG, SLOW, on_request, slow, thinned
from helpers.tiny_runs import finish, make_model_folder, make_texts, result

from hylorada.errors import ConfigError, PeerError

GONE = PeerError.exit_code
KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forked")
    make_model_folder(folder / "model")
    make_texts(folder / "texts")
    return folder


@pytest.fixture(scope="module")
def alone(root):
    """What one process leaves."""
    return finished(root, root / "alone", 1)


def finished(root, output, world, **changes: Any):
    """What is left of a run to its end."""
    config = forked_config(root, output, **changes)
    assert run_forked(config, output / "run", world) == (0,) * world
    return left_by(output / "run")


@pytest.mark.parametrize("world", [*on_request(2, 4), *slow(3)])
def test_their_number_changes_no_byte(root, alone, tmp_path, world):
    """Three have two, one and one of the four micro-batches of a step."""
    assert finished(root, tmp_path, world) == alone
    told = result(tmp_path / "run")["provenance"]["processes"]
    assert (told["world"], len(told["hosts"])) == (world, 1)


VARIANTS = {
    "retrieval": {"train__task": "retrieval", "train__retrieval__key_style": "hex",
                  "length__max_length": 384,
                  "train__max_steps": 3, "train__eval_every": 0},
    "reset": {"dataset__packing": "reset", "train__gradient_checkpointing": True,
              "train__micro_batch_size": 2, "train__max_steps": 3},
    "best": {"train__keep_best": True, "train__eval_every": 1, "train__max_steps": 4},
    "epochs": {"train__max_steps": 0, "train__epochs": 0.5},
    "prompts": {"eval__lost_in_middle__enabled": True, "eval__lost_in_middle__key_style": "hex",
                "eval__lost_in_middle__examples": 3, "length__max_length": 320,
                "eval__lost_in_middle__scorings": ["ranked", "generated"],
                "train__max_steps": 2, "train__eval_every": 0,
                "eval__context_gain__enabled": True, "eval__context_gain__contexts": [8, 32],
                "eval__context_gain__targets": 16, "eval__context_gain__places": 5},
}  # fmt: skip


@pytest.mark.parametrize("variant", thinned(VARIANTS, ["prompts"], often=SLOW, seldom=LONG))
def test_nor_with_other_tasks_packings_and_measurements(root, tmp_path, variant):
    changes = VARIANTS[variant]
    one = finished(root, tmp_path / "one", 1, **changes)
    assert finished(root, tmp_path / "two", 2, **changes) == one


@pytest.mark.parametrize(
    ("point", "rank", "goes_on_with"),
    thinned(
        [
            ("after_step:3", 0, 3),
            ("after_step:3", 1, 1),
            ("mid_step:5", 0, 1),
            ("mid_step:5", 1, 3),
            ("inside_checkpoint:4", 0, 2),
            ("inside_evaluation:2", 0, 1),
            ("before_record:0", 0, 3),
        ],
        [("mid_step:5", 1, 3)],
        often=SLOW,
        seldom=LONG,
    ),
)
def test_one_that_is_killed_ends_all_and_another_number_goes_on(
    root, alone, tmp_path, point, rank, goes_on_with
):
    config = forked_config(root, tmp_path)
    fault = {"HYLORADA_FAULT": point, "HYLORADA_FAULT_RANK": str(rank)}
    codes = run_forked(config, tmp_path / "run", 2, **fault)
    assert codes[rank] == KILLED
    # At the very end the other one has nothing left to do.
    assert codes[1 - rank] in ((0, GONE) if point.startswith("before_record") else (GONE,))
    record = tmp_path / "run" / "result.json"
    assert record.exists() == (rank == 1)
    if rank == 1:
        told = result(tmp_path / "run")
        assert told["status"] == "failed"
        assert "another process of this run has ended" in told["error"]
    assert finished(root, tmp_path, goes_on_with) == alone


@pytest.mark.slow
def test_a_signal_that_one_hears_saves_at_one_step_and_another_number_goes_on(
    root, alone, tmp_path
):
    config = forked_config(root, tmp_path)
    for world, step in ((2, 1), (3, 3)):
        fault = {"HYLORADA_FAULT": f"mid_step:{step}:SIGTERM", "HYLORADA_FAULT_RANK": "1"}
        codes = run_forked(config, tmp_path / "run", world, **fault)
        assert codes == (128 + signal.SIGTERM,) * world
        record = result(tmp_path / "run")
        assert (record["status"], "SIGTERM" in record["error"]) == ("interrupted", True)
        (*_, newest) = sorted((tmp_path / "run" / "checkpoints").iterdir())
        assert newest.name == f"step-{step:08d}"
    assert finished(root, tmp_path, 1) == alone


@pytest.mark.long
def test_a_signal_in_the_evaluation_keeps_what_was_measured_for_another_number(
    root, alone, tmp_path
):
    config = forked_config(root, tmp_path)
    fault = {"HYLORADA_FAULT": "inside_evaluation:2:SIGTERM", "HYLORADA_FAULT_RANK": "0"}
    codes = run_forked(config, tmp_path / "run", 2, **fault)
    assert codes == (128 + signal.SIGTERM,) * 2
    assert list(tmp_path.glob(".cache/base/*.partial"))
    assert finished(root, tmp_path, 3) == alone


@pytest.mark.slow
def test_dropout_of_whatever_method_is_refused(root, tmp_path):
    config = forked_config(
        root, tmp_path, method__peft={"peft_type": "VERA", "r": 8, "vera_dropout": 0.1},
        method__lora__enabled=False, method__position_bias__enabled="false",
        method__landmark__enabled="false", method__s2_attn__enabled="false",
        method__train_embeddings="false", method__train_norms="false",
    )  # fmt: skip
    assert run_forked(config, tmp_path / "run", 2) == (2, 2)
    assert "2 processes: the method draws random numbers" in result(tmp_path / "run")["error"]


LONGER = {"train__max_steps": 40, "train__eval_every": 15}
WHEN = ("before", "between", "between", "after")
"""Of the steps of training."""


@pytest.fixture(scope="module")
def longer(root):
    """What one process leaves that trains for most of its time."""
    return finished(root, root / "longer", 1, **LONGER)


def steps_done(directory) -> int:
    """Lines of training so far."""
    with contextlib.suppress(OSError):
        return (directory / "metrics.jsonl").read_bytes().count(b"train/loss")
    return 0


@pytest.mark.parametrize("seed", on_request(*range(5)))
def test_kills_at_random_times_change_no_byte(root, longer, tmp_path, seed):
    """Four each, of any process: twenty in all, in whatever it does at that moment."""
    chosen = random.Random(seed)
    config = forked_config(root, tmp_path, **LONGER)
    directory, told = tmp_path / "run", []
    waiting = chosen.sample(WHEN, len(WHEN))
    while waiting:
        steps = steps_done(directory)
        last = LONGER["train__max_steps"]
        if steps == last and waiting[0] != "after":  # only the evaluation is left: from the start
            directory.rename(tmp_path / f"evaluated-{len(told)}")
            steps = 0
        processes = fork(config, directory, chosen.choice((2, 2, 3)))
        victim = chosen.choice(processes)
        if waiting[0] != "before":
            until = last if waiting[0] == "after" else chosen.randint(steps + 1, last - 1)
            while victim.is_alive() and steps_done(directory) < until:
                victim.join(0.01)
        victim.join(chosen.uniform(0.0, 0.5 if waiting[0] == "between" else 5.0))
        if victim.is_alive():
            victim.kill()
            when = f"{waiting.pop(0)}, {steps_done(directory)} steps"
            told.append(f"rank {processes.index(victim)} of {len(processes)} {when}")
        for each in processes:
            each.join(20)
            each.kill()  # as an agent does where they still wait to meet the others
        codes = [finish(each) for each in processes]
        assert set(codes) <= {0, ConfigError.exit_code, GONE, KILLED}, codes
        if codes == [0] * len(codes):  # it was done before: once more from the beginning
            directory.rename(tmp_path / f"done-{len(told)}-{chosen.random()}")
    assert finished(root, tmp_path, chosen.choice((1, 2, 3)), **LONGER) == longer
    logs = "".join(log.read_text() for log in tmp_path.glob("*/run.log"))
    resumed = re.findall(r"continuing from step (\d+)", logs)
    assert resumed
    sys.stdout.write(f"seed {seed}: killed {'; '.join(told)}; continued from {resumed}\n")
