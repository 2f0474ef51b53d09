"""What is compared with what."""

from __future__ import annotations

from pathlib import Path

from helpers.records import make_record, sweep

from hylorada.comparison.arms import compare
from hylorada.comparison.collect import Record


def compared(*records):
    return compare([Record(Path(r["name"]), r) for r in records])


def test_seeds_are_one_arm_and_lengths_are_apart():
    comparisons, problems = compared(*sweep())
    assert [(c.length, c.label) for c in comparisons] == [(512, ""), (4096, "")]
    assert [a.method for a in comparisons[1].arms] == [
        "baseline", "lora", "dora", "rslora", "longlora", "hylorada",
    ]  # fmt: skip
    assert [r.seed for r in comparisons[1].arms[-1].runs] == [0, 1, 2]
    assert not problems


def test_another_learning_rate_is_another_comparison_and_says_so():
    comparisons, _ = compared(
        *(make_record(m, train__lr=2e-4) for m in ("lora", "hylorada")),
        make_record("hylorada", train__lr=1e-3),
    )
    assert [(c.label, [a.method for a in c.arms]) for c in comparisons] == [
        ("train.lr=0.0002", ["lora", "hylorada"]),
        ("train.lr=0.001", ["hylorada"]),
    ]


def test_a_rate_of_a_group_of_parameters_belongs_to_the_method():
    ((comparison,), _) = compared(
        make_record("lora"), make_record("lora", train__lr_scale__lora_B=16.0)
    )
    assert [a.label for a in comparison.arms] == ["lora", "lora lr_scale.lora_B=16"]
    ((comparison,), _) = compared(
        make_record("lora"), make_record("hylorada", train__lr_scale__embeddings=0.1)
    )
    assert [a.label for a in comparison.arms] == ["lora", "hylorada lr_scale.embeddings=0.1"]


def test_what_was_only_measured_names_no_setting_of_training():
    measured = make_record("adapter-x")
    measured["config"]["train"] = None
    trained = make_record("lora"), make_record("lora", train__lr=2e-4)
    comparisons, _ = compared(measured, *trained)
    assert {c.label for c in comparisons} == {
        "not trained here", "train.lr=0.003", "train.lr=0.0002",
    }  # fmt: skip


def test_what_cannot_change_a_number_does_not_part_arms():
    comparisons, _ = compared(
        make_record("lora", train__micro_batch_size=4, train__gradient_accumulation_steps=1),
        make_record(
            "hylorada", train__micro_batch_size=1, train__gradient_accumulation_steps=4,
            train__gradient_checkpointing=True, train__save_every=7, threads=3,
            dataset__cache_dir="/elsewhere", experiment="other",
        ),
    )  # fmt: skip
    assert len(comparisons) == 1
    # ... but four times the sequences in a step do.
    comparisons, _ = compared(
        make_record("lora", train__micro_batch_size=4), make_record("hylorada")
    )
    assert [c.label for c in comparisons] == ["sequences in a step=1", "sequences in a step=4"]


def test_what_was_asked_beside_perplexity_does_not_part_arms():
    """`hylorada-eval ... eval=longbench` on one arm writes these settings into its record."""
    asked = make_record(
        "lora", eval__harness__enabled=True, eval__harness__limit=5,
        eval__lost_in_middle__enabled=True, eval__context_gain__places=3,
    )  # fmt: skip
    ((comparison,), _) = compared(asked, make_record("hylorada"))
    assert [a.method for a in comparison.arms] == ["lora", "hylorada"]


def test_settings_of_retrieval_part_arms_only_where_it_is_trained_on():
    """The depths held out of the training examples are part of the training data."""

    def two(task, mix=0.0):
        held = {"lora": [0.5], "hylorada": [0.0, 1.0]}
        records = [make_record(m, train__task=task, train__mix=mix) for m in held]
        for record in records:
            record["config"]["train"]["retrieval"]["held_out"] = held[record["method"]]
        return compared(*records)[0]

    assert len(two("text")) == 1
    assert len(two("text", mix=0.25)) == 2
    assert [c.label for c in two("retrieval")] == [
        "train.retrieval.held_out=[0, 1]", "train.retrieval.held_out=[0.5]"
    ]  # fmt: skip


def test_variants_of_one_method_are_told_apart_by_what_differs():
    ((comparison,), _) = compared(make_record("lora"), make_record("lora", method__lora__r=32))
    assert [a.label for a in comparison.arms] == ["lora r=32", "lora r=8"]


def test_of_several_references_the_best_is_compared_with():
    worse, better = make_record("lora"), make_record("lora", method__lora__r=32)
    better["metrics"] = make_record("hylorada")["metrics"]
    ((comparison,), _) = compared(worse, better)
    assert comparison.reference("lora").label == "lora r=32"
    assert comparison.reference("dora") is None


def test_a_baseline_of_another_budget_is_no_comparison_of_its_own():
    comparisons, _ = compared(
        make_record("baseline"),
        make_record("lora", train__lr=1e-3),
        make_record("dora", length=512),
    )
    assert [[a.method for a in c.arms] for c in comparisons] == [["dora"], ["lora"]]
    alone, _ = compared(make_record("baseline"))
    assert [[a.method for a in c.arms] for c in alone] == [["baseline"]]


def test_a_second_run_of_the_same_seed_is_left_out_and_named():
    first, second = make_record("lora"), make_record("lora", train__save_every=7)
    ((comparison,), problems) = compared(first, second)
    assert len(comparison.arms[0].runs) == 1
    assert "the same method and seed" in problems[0].reason


def test_steps_between_evaluations_count_where_they_choose_the_weights():
    def count(**changes):
        records = (
            make_record("lora", train__eval_every=10, **changes),
            make_record("hylorada", train__eval_every=5, **changes),
        )
        return len(compared(*records)[0])

    assert count() == 1
    assert count(train__keep_best=True) == count(train__patience=3) == 2
