"""Settings chosen on the validation split: against the obvious minimum, and what is refused."""

from __future__ import annotations

import copy
import math

import pytest
from helpers.records import make_record, metric, write

from hylorada.comparison.arms import compare
from hylorada.comparison.collect import Record, collect
from hylorada.comparison.selection import select
from hylorada.errors import ConfigError, DataError
from hylorada.settings.chosen import keys_of

LR = ("train.lr",)


def cell(method: str, lr: float, loss: float, seed: int = 0, **changes) -> dict:
    """A run of a grid, measured on the validation split alone."""
    record = make_record(
        method, seed, train__lr=lr, eval__perplexity__split="validation", **changes
    )
    record["metrics"] = {"eval/ppl": on_split("validation", loss, seed)}
    record["base"]["extended"] = {"eval/ppl": on_split("validation", 4.2)}
    return record


def on_split(split: str, loss: float, seed: int = 0) -> dict:
    return metric(loss, "blocks", 4096, seed) | {"split": split}


def measured_on_test(record: dict, loss: float) -> dict:
    """As `hylorada-eval` leaves it: what stood there before is under `evaluations`."""
    record = copy.deepcopy(record)
    record["evaluations"] = [{"replaced": record["metrics"], "metrics": ["eval/ppl"]}]
    record["metrics"] = {"eval/ppl": on_split("test", loss, record["seed"])}
    record["base"]["extended"] = {"eval/ppl": on_split("test", 4.3)}
    record["config"]["eval"]["perplexity"]["split"] = "test"
    return record


def failed(record: dict, status: str) -> dict:
    return record | {"status": status, "metrics": {}, "error": "it says why"}


@pytest.fixture
def read(tmp_path):
    def records(*made: dict) -> list[Record]:
        write(tmp_path, *made)
        return collect([tmp_path]).records

    return records


def chosen(selection) -> dict[str, float | None]:
    return {c.arm: c.chosen.values[0] if c.chosen else None for c in selection.choices}


def test_each_arm_gets_the_value_with_the_lowest_mean_loss_over_seeds(read):
    losses = {  # of the seeds the best single one is at another value than the best mean
        ("lora", 1e-3): (4.0, 4.1), ("lora", 3e-3): (3.9, 3.95), ("lora", 1e-2): (3.8, 4.2),
        ("hylorada", 1e-3): (3.7, 3.7), ("hylorada", 3e-3): (3.75, 3.8),
        ("hylorada", 1e-2): (3.9, 3.9),
    }  # fmt: skip
    made = [
        cell(method, lr, loss, seed)
        for (method, lr), both in losses.items()
        for seed, loss in enumerate(both)
    ]
    selection = select(read(*made), LR)
    naive = {
        method: min(
            (sum(m["metrics"]["eval/ppl"]["sum_nll"] for m in made if is_of(m, method, lr)), lr)
            for lr in (1e-3, 3e-3, 1e-2)
        )[1]
        for method in ("lora", "hylorada")
    }
    assert chosen(selection) == naive == {"lora": 3e-3, "hylorada": 1e-3}
    assert [choice.seeds for choice in selection.choices] == [[0, 1], [0, 1]]
    lora = selection.choices[0]
    assert [each.values for each in lora.candidates] == [(1e-3,), (3e-3,), (1e-2,)]
    found = lora.candidates[0].loss([0, 1])
    metrics = [m["metrics"]["eval/ppl"] for m in made if is_of(m, "lora", 1e-3)]
    assert found == pytest.approx(sum(m["sum_nll"] / m["tokens"] for m in metrics) / 2, rel=1e-12)


def is_of(record: dict, method: str, lr: float) -> bool:
    return record["method"] == method and record["config"]["train"]["lr"] == lr


def test_only_what_was_chosen_and_measured_elsewhere_reaches_the_table(read):
    lora = [cell("lora", lr, loss) for lr, loss in ((1e-3, 4.0), (3e-3, 3.9), (1e-2, 4.1))]
    hylorada = [cell("hylorada", lr, loss) for lr, loss in ((1e-3, 3.7), (3e-3, 3.8))]
    before = select(read(*lora, *hylorada), LR)
    assert [run.data["name"] for run in before.waiting] == [lora[1]["name"], hylorada[0]["name"]]
    assert before.records == before.opened == []

    lora[1], hylorada[0] = measured_on_test(lora[1], 4.2), measured_on_test(hylorada[0], 4.0)
    after = select(read(*lora, *hylorada), LR)
    assert chosen(after) == chosen(before)
    assert after.waiting == after.opened == []
    assert compare(after.records)[0] != compare(after.records, LR)[0]
    (comparison,), problems = compare(after.records, LR)  # one, though the rates differ
    assert [arm.label for arm in comparison.arms] == ["lora", "hylorada"]
    assert problems == []
    shown = [arm.metrics("eval/ppl")[0]["split"] for arm in comparison.arms]
    assert shown == ["test", "test"]


def test_the_test_split_of_what_was_not_chosen_is_told(read):
    lost = measured_on_test(cell("lora", 1e-3, 4.0), 3.0)  # the best on test, and not taken
    selection = select(read(lost, cell("lora", 3e-3, 3.9)), LR)
    assert chosen(selection) == {"lora": 3e-3}
    assert [run.data["name"] for run in selection.opened] == [lost["name"]]


def test_more_seeds_of_the_chosen_confirm_and_choose_nothing(read):
    grid = [cell("lora", lr, loss) for lr, loss in ((1e-3, 4.0), (3e-3, 3.9))]
    grid[1] = measured_on_test(grid[1], 4.2)
    more = []
    for seed, loss in ((1, 4.25), (2, 4.3)):
        run = make_record("lora", seed, train__lr=3e-3)  # measured on the test split alone
        run["metrics"] = {"eval/ppl": on_split("test", loss, seed)}
        more.append(run)
    selection = select(read(*grid, *more), LR)
    assert chosen(selection) == {"lora": 3e-3}
    assert selection.choices[0].seeds == [0]
    ((arm,),) = [c.arms for c in compare(selection.records, LR)[0]]
    assert sorted(arm.metrics("eval/ppl")) == [0, 1, 2]


def test_a_seed_that_not_all_values_have_takes_no_part(read):
    made = [
        cell("lora", 1e-3, 4.0), cell("lora", 3e-3, 3.9), cell("lora", 3e-3, 9.0, seed=1),
    ]  # fmt: skip
    (choice,) = select(read(*made), LR).choices
    assert (choice.chosen.values, choice.seeds) == ((3e-3,), [0])
    assert "seed 1 took no part, since it was run under train.lr=0.003 alone." in choice.notes


@pytest.mark.parametrize(
    ("losses", "note"),
    [
        ((3.8, 3.9, 4.0), "its best train.lr (0.001) is the smallest tried"),
        ((4.0, 3.9, 3.8), "its best train.lr (0.01) is the largest tried"),
        ((4.0, 3.8, 3.9), None),
    ],
)
def test_a_best_value_at_the_edge_of_the_grid_is_told(read, losses, note):
    made = [cell("lora", lr, loss) for lr, loss in zip((1e-3, 3e-3, 1e-2), losses, strict=True)]
    (choice,) = select(read(*made), LR).choices
    assert [n.partition(", so")[0] for n in choice.notes] == ([note] if note else [])


def test_what_diverged_is_worse_than_any_number_and_bounds_the_grid(read):
    made = [cell("lora", lr, loss) for lr, loss in ((1e-3, 4.0), (1e-2, 3.9), (1.0, 0.0))]
    made[2] = failed(made[2], "diverged")
    (choice,) = select(read(*made), LR).choices
    assert choice.chosen.values == (1e-2,)
    assert choice.notes == []
    assert choice.candidates[2].loss([0]) == math.inf


def test_where_all_diverged_nothing_is_chosen(read):
    made = [failed(cell("lora", lr, 1.0), "diverged") for lr in (1.0, 2.0)]
    other = cell("hylorada", 1e-3, 4.0)
    found = chosen(select(read(*made, other), LR))
    assert found == {"hylorada": 1e-3, "lora": None}


def test_of_equal_losses_the_first_is_taken_and_told(read):
    made = [cell("lora", lr, 4.0) for lr in (1e-2, 1e-3)]
    (choice,) = select(read(*made), LR).choices
    assert choice.chosen.values == (1e-3,)
    assert "train.lr=0.01 has the same loss; the first was taken." in choice.notes


def test_an_unfinished_grid_is_refused_unless_asked_for(read, tmp_path):
    made = [cell("lora", 1e-3, 4.0), failed(cell("lora", 3e-3, 0.0), "interrupted")]
    records = read(*made)
    with pytest.raises(DataError, match=r"not finished \(train.lr=0.003 seed 0 interrupted\)"):
        select(records, LR)
    with pytest.raises(DataError, match=r"not finished: .*lora-x has no record yet"):
        select(records[:1], LR, running=[tmp_path / "lora-x"])
    (choice,) = select(records, LR, partial=True).choices
    assert choice.chosen.values == (1e-3,)
    assert "while the grid was not finished: train.lr=0.003 seed 0 interrupted" in choice.notes[0]


def test_losses_on_other_tokens_are_refused(read):
    other = cell("lora", 3e-3, 3.9)
    other["metrics"]["eval/ppl"]["by_document"] = other["metrics"]["eval/ppl"]["by_document"][:5]
    with pytest.raises(DataError, match="measured on other tokens of the validation split"):
        select(read(cell("lora", 1e-3, 4.0), other), LR)


def test_losses_by_different_conventions_are_refused(read):
    other = cell("lora", 3e-3, 3.9)
    other["metrics"] = {"eval/ppl_sliding": other["metrics"]["eval/ppl"]}
    with pytest.raises(DataError, match="by different conventions"):
        select(read(cell("lora", 1e-3, 4.0), other), LR)


def test_runs_of_the_test_split_alone_choose_nothing(read):
    with pytest.raises(DataError, match="no finished run was measured on the validation split"):
        select(read(make_record("lora"), make_record("lora", train__lr=1e-2)), LR)


def test_an_arm_without_validation_numbers_is_left_out_and_named(read):
    selection = select(read(cell("lora", 1e-3, 4.0), make_record("hylorada")), LR)
    assert chosen(selection) == {"lora": 1e-3}
    assert [p.path.parent.name for p in selection.problems] == [make_record("hylorada")["name"]]


def test_several_settings_of_method_and_training_are_chosen_together(read):
    losses = {(8, 1e-3): 4.0, (8, 3e-3): 3.9, (16, 1e-3): 3.7, (16, 3e-3): 3.8}
    made = [cell("lora", lr, loss, method__lora__r=r) for (r, lr), loss in losses.items()]
    selection = select(read(*made), ("method.lora.r", "train.lr"))
    (choice,) = selection.choices
    assert choice.said == "lora: method.lora.r=16 train.lr=0.001"
    assert len(choice.candidates) == 4


def test_arms_that_were_not_tried_under_the_same_values_are_told(read):
    made = [cell("lora", 1e-3, 4.0), cell("lora", 3e-3, 3.9), cell("hylorada", 1e-3, 3.8)]
    _, hylorada = select(read(*made), LR).choices
    assert "not tried at train.lr=0.003, as another arm was." in hylorada.notes
    assert "only train.lr=0.001 was tried, so nothing was chosen." in hylorada.notes


def test_runs_that_differ_otherwise_are_not_chosen_among(read):
    made = [cell("lora", 1e-3, 4.0), cell("lora", 3e-3, 3.9, train__max_steps=80)]
    choices = select(read(*made), LR).choices
    assert [len(choice.candidates) for choice in choices] == [1, 1]
    assert sorted(choice.where for choice in choices) == [
        "tiny on stdlib, 4,096 tokens (train.max_steps=40)",
        "tiny on stdlib, 4,096 tokens (train.max_steps=80)",
    ]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([""], "name the settings to choose"),
        (["train.learning_rate"], "there is no setting train.learning_rate to choose"),
        (["lr"], "did you mean train.lr?"),
        (["seed"], "seed cannot be chosen on the validation split"),
        (["train.save_every"], "only a setting of train or method"),
        (["method.name"], "cannot be chosen"),
        (["train.lr_scale"], "cannot be chosen"),
        (["method.peft"], "cannot be chosen"),
    ],
)
def test_what_is_no_setting_of_an_arm_is_refused(words, line):
    with pytest.raises(ConfigError) as error:
        keys_of(words)
    assert line in str(error.value)


def test_keys_are_named_apart_or_together():
    expected = ("train.lr", "train.lr_scale.embeddings", "method.peft.r")
    assert keys_of(["train.lr, train.lr_scale.embeddings", "method.peft.r", "train.lr"]) == expected


def test_the_settings_of_a_record_from_before_a_key_existed_are_known(read):
    made = [cell("lora", 1e-3, 4.0), cell("lora", 3e-3, 3.9)]
    del made[0]["config"]["train"]["lr_scale"]
    made[1]["config"]["train"]["lr_scale"]["lora_B"] = 16.0
    (choice,) = select(read(*made), ("train.lr", "train.lr_scale.lora_B")).choices
    assert [each.values for each in choice.candidates] == [(1e-3, 1), (3e-3, 16)]
