"""Runs whose sequences are split over processes, or whose base is: forked, to their end or killed.

By a command it is one test; what starts processes makes no difference that is not asked elsewhere.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.many_processes import ended, forked_config, run_directory, run_forked, train, words
from helpers.marks import LONG, SLOW, on_request, thinned
from helpers.tiny_runs import LENGTH, make_model_folder, make_texts, outcome, result
from safetensors.torch import load_file

from hylorada import cli
from hylorada.errors import PeerError
from hylorada.records.schema import record_flaws

GROUP = 16  # tokens of a segment: of 96, 48 on each of two processes
STEPS, MICRO_BATCHES = 4, 4
SHORT = {
    "method__s2_attn__group_size": GROUP, "train__max_steps": STEPS,
    "eval__perplexity__max_blocks": 3, "eval__short_context__max_blocks": 1,
}  # fmt: skip
SPLIT: dict[str, Any] = {"sequence_ranks": 2}
SHARED: dict[str, Any] = {"shard_base": True}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    make_model_folder(folder / "model")
    make_texts(folder / "texts")
    return folder


def _run(root: Path, output: Path, world: int, **changes: Any) -> Path:
    """A run to its end."""
    directory = output / "run"
    codes = run_forked(forked_config(root, output, **SHORT, **changes), directory, world)
    assert codes == (0,) * world, (directory / "run.log").read_text()
    return directory


@pytest.fixture(scope="module")
def alone(root):
    return _run(root, root / "alone", 1)


@pytest.fixture(scope="module")
def split(root):
    return _run(root, root / "split", 2, **SPLIT)


def _losses(directory: Path) -> list[float]:
    text = (directory / "metrics.jsonl").read_text()
    return [v for line in text.splitlines() if (v := json.loads(line).get("train/loss"))]


@pytest.mark.slow
def test_a_split_run_is_the_run_of_whole_sequences_up_to_rounding(alone, split):
    assert result(split)["fingerprint"] != result(alone)["fingerprint"]  # other last digits
    one, two = _losses(alone), _losses(split)
    assert len(one) == len(two) == STEPS
    assert one != two
    assert two == pytest.approx(one, rel=1e-5)
    weights = [load_file(d / "adapter/adapter_model.safetensors") for d in (alone, split)]
    assert weights[0].keys() == weights[1].keys()
    for name, right in weights[0].items():
        torch.testing.assert_close(weights[1][name], right, rtol=1e-2, atol=1e-3)
    assert result(split)["integrity"]["checks"]["sequence_split"]["ok"]
    assert "sequence_split" not in result(alone)["integrity"]["checks"]


def _by_hand(directory: Path, sequences: int, again: int = 0) -> dict[str, int]:
    """Bytes that two processes send for so many sequences of the model of two layers.

    One of the two is shifted. Of it the left process sends keys and values of half a segment, in
    two heads of 16 numbers of 4 bytes; the right one sends their gradients back. Each process sends
    the other what its landmarks carry, in numbers of 8 bytes, and the gradients of that.
    """
    halo = 2 * 2 * 16 * 4 * (GROUP // 2)
    settings = json.loads((directory / "adapter/adapter_config.json").read_text())
    carry = 2 * (settings["num_landmarks"] + 1) * 8
    return {
        "halo": sequences * halo * (1 + again),
        "halo gradient": sequences * halo,
        "carry": sequences * carry,
        "carry gradient": sequences * carry,
    }


@pytest.mark.slow
def test_the_record_has_the_bytes_that_were_sent_and_those_of_the_formula(alone, split):
    assert not list(record_flaws(result(split), whole=True))
    told = result(split)["training"]["split"]
    sequences = STEPS * MICRO_BATCHES
    assert told["sequences"] == sequences
    assert told["sent"] == told["formula"] == _by_hand(split, sequences)
    assert "split" not in result(alone)["training"]
    said = (split / "run.log").read_text()
    assert f"{sequences} sequences were split over 2 processes, which sent" in said


@pytest.mark.slow
def test_layers_that_are_computed_again_send_again(root, tmp_path):
    directory = _run(
        root, tmp_path, 2, **SPLIT, train__gradient_checkpointing=True, train__eval_every=0
    )
    told = result(directory)["training"]["split"]
    assert told["sent"] == told["formula"] == _by_hand(directory, STEPS * MICRO_BATCHES, again=1)


@pytest.mark.long
def test_the_number_of_groups_changes_no_byte(root, split, tmp_path):
    four = _run(root, tmp_path, 4, **SPLIT)
    assert outcome(four) == outcome(split)
    assert result(four)["training"]["split"] == result(split)["training"]["split"]


@pytest.mark.parametrize("world", thinned([2, 3], [2], often=SLOW, seldom=LONG))
def test_a_base_shared_out_leaves_the_bytes_of_a_whole_one(root, alone, tmp_path, world):
    """Three have two, one and one of the four micro-batches, and all run the model twice."""
    shared = _run(root, tmp_path, world, **SHARED)
    assert outcome(shared) == outcome(alone)
    for key in ("fingerprint", "metrics", "base"):
        assert result(shared)[key] == result(alone)[key]
    assert result(shared)["integrity"]["checks"]["save_load"]["ok"]
    assert "the base is sharded over" in (shared / "run.log").read_text()


@pytest.mark.slow
def test_both_together(root, split, tmp_path):
    both = _run(root, tmp_path, 2, **SPLIT, **SHARED)
    assert outcome(both) == outcome(split)
    assert result(both)["training"]["split"] == result(split)["training"]["split"]


# How it dies, the rank that does, and how many go on. In a pass the others wait for what it would
# have sent: a halo, the gradient of one, the numbers of a layer.
KILLS = [
    ({"TEST_DIES_IN_PASS": "0:11"}, 0, 4),
    ({"TEST_DIES_IN_PASS": "1:11"}, 1, 2),
    ({"HYLORADA_FAULT": "mid_step:3", "HYLORADA_FAULT_RANK": "1"}, 1, 2),
    ({"HYLORADA_FAULT": "inside_checkpoint:4", "HYLORADA_FAULT_RANK": "0"}, 0, 4),
    ({"HYLORADA_FAULT": "after_step:2", "HYLORADA_FAULT_RANK": "1"}, 1, 2),
]


def _killed_and_continued(root, output, fault, rank, goes_on_with, **changes) -> Path:
    config = forked_config(root, output, **SHORT, **changes)
    codes = run_forked(config, output / "run", 2, **fault)
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] == PeerError.exit_code
    if rank:  # the first one, which writes, has seen it
        assert "another process of this run has ended" in result(output / "run")["error"]
    if goes_on_with == 1:
        changes.pop("shard_base")  # which one process cannot have; it is no setting of a result
    return _run(root, output, goes_on_with, **changes)


@pytest.mark.parametrize(
    ("fault", "rank", "goes_on_with"), thinned(KILLS, KILLS[:2], often=SLOW, seldom=LONG)
)
def test_one_that_is_killed_within_a_sequence_ends_all_and_the_run_goes_on(
    root, split, tmp_path, fault, rank, goes_on_with
):
    again = _killed_and_continued(root, tmp_path, fault, rank, goes_on_with, **SPLIT)
    assert outcome(again) == outcome(split)


@pytest.mark.parametrize(
    ("fault", "rank", "goes_on_with"), thinned(KILLS, KILLS[1:2], often=SLOW, seldom=LONG)
)
def test_one_that_is_killed_with_a_part_of_the_base_ends_all_and_the_run_goes_on(
    root, alone, tmp_path, fault, rank, goes_on_with
):
    goes_on_with -= 1  # one, or three of which one has two micro-batches
    fault = {key: text.replace(":11", ":6") for key, text in fault.items()}  # two of each step
    again = _killed_and_continued(root, tmp_path, fault, rank, goes_on_with, **SHARED)
    assert outcome(again) == outcome(alone)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("both", on_request(True))
def test_by_a_command(root, split, tmp_path, both):
    more = [
        f"method.s2_attn.group_size={GROUP}", f"train.max_steps={STEPS}", "sequence_ranks=2",
        "eval.perplexity.max_blocks=3", "eval.short_context.max_blocks=1", "processes=2",
        f"shard_base={both}",
    ]  # fmt: skip
    process = train(words(root, tmp_path, *more), tmp_path / "log")
    assert ended(process) == 0, (tmp_path / "log").read_text()
    directory = run_directory(tmp_path)
    assert result(directory)["training"]["split"] == result(split)["training"]["split"]
    assert _losses(directory) == _losses(split)


REFUSED = [
    (["sequence_ranks=2"], "sequence_ranks=2 does not divide the number of processes, 1"),
    (["sequence_ranks=2", "processes=3"], "does not divide the number of processes, 3"),
    (["shard_base=true"], "shard_base=true has no effect on one process"),
    (["sequence_ranks=5", "processes=5"], f"does not divide length.max_length={LENGTH}"),
    (["sequence_ranks=2", "processes=2", "train.compile=layers"], "exclude each other"),
    (["shard_base=true", "processes=2", "model.quantization=nf4"], "exclude each other"),
    (
        ["sequence_ranks=2", "processes=2", "method=baseline"],
        "sequence_ranks=2 has no effect on method=baseline",
    ),
]


@pytest.mark.parametrize(("more", "told"), thinned(REFUSED, [REFUSED[1], REFUSED[3]]))
def test_what_cannot_be_is_one_line_and_exit_code_2(root, tmp_path, capfd, more, told):
    kept = words(root, tmp_path)
    if "method=baseline" in more:
        kept = [w for w in kept if not w.startswith(("method", "train."))]
    assert cli.train([*kept, *more]) == 2
    text = capfd.readouterr().err
    assert told in text
    assert "Traceback" not in text
