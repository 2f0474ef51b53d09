"""Runs of the same settings that are no runs of the same thing."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from helpers.records import make_record, write

from hylorada.comparison.arms import compare
from hylorada.comparison.collect import Record, collect
from hylorada.comparison.conditions import parted
from hylorada.report.page import build_page
from hylorada.report.render import markdown
from hylorada.report.table import build_tables


def compared(*records):
    found = [Record(Path(f"{i}-{r['name']}"), r) for i, r in enumerate(records)]
    comparisons, problems = compare(found)
    tables = build_tables(comparisons)
    return comparisons, problems, tables


def changed(record, **changes):
    """A copy with other values under dotted keys, `__` for the dot."""
    record = copy.deepcopy(record)
    for key, value in changes.items():
        *path, last = key.split("__")
        node = record
        for name in path:
            node = node.setdefault(name, {})
        node[last] = value
    return record


APART = {
    "device": {"training__device": "cuda", "provenance__device": "cuda:0"},
    "precision": {"training__precision": "bf16"},
    "frozen weights": {"provenance__base_model_dtype": "bfloat16"},
    "base weights": {"provenance__base_model_sha256": "00" * 32},
    "tokenizer": {"provenance__tokenizer_sha256": "00" * 32},
    "training text": {"provenance__dataset_sha256__train": "00" * 32},
    "text of test": {"provenance__dataset_sha256__test": "00" * 32},
}


def whole(method, seed=0):
    """A record that says all there is to say."""
    known = {"base_model_dtype": "float32", "tokenizer_sha256": "11" * 32}
    record = changed(make_record(method, seed), provenance__dataset_sha256__train="22" * 32)
    record["provenance"] |= known
    record["training"] |= {"skipped_steps": 0}
    return record


@pytest.mark.parametrize("name", APART)
@pytest.mark.parametrize("what", ["another arm", "a seed of the same arm"])
def test_runs_that_differ_are_neither_compared_nor_averaged_and_the_page_says_so(name, what):
    method, seed = ("hylorada", 0) if what == "another arm" else ("lora", 1)
    one, other = whole("lora"), changed(whole(method, seed), **APART[name])
    comparisons, problems, (table,) = compared(one, other)
    assert not problems
    assert [[arm.method for arm in c.arms] for c in comparisons] in (
        [["lora"], [method]], [[method], ["lora"]],
    )  # fmt: skip
    assert all(len(arm.runs) == 1 for c in comparisons for arm in c.arms)
    for comparison in comparisons:
        assert f"{name}=" in comparison.label
        assert f"differ in {name} (" in comparison.apart
    page = build_page([table], [], comparisons, [])
    for text in (markdown(table), page):
        assert "stand apart and are not compared, because they differ in" in text
    headings = [section.heading for section in table.sections]
    assert len(headings) == 2
    assert all(f"{name}=" in heading for heading in headings)


def test_runs_that_say_less_differ_from_nothing():
    """Records of earlier versions, a baseline that trained on nothing, a run that failed early."""
    old = make_record("rslora")
    old["provenance"] = {}
    early = make_record("dora", status="failed")
    early["provenance"], early["parameters"] = {}, None
    baseline = make_record("baseline")
    del baseline["provenance"]["dataset_sha256"]
    ((comparison,), problems, _) = compared(whole("lora"), old, early, baseline, whole("lora", 1))
    assert not problems
    assert comparison.apart == ""
    assert [a.method for a in comparison.arms] == ["baseline", "lora", "dora", "rslora"]
    assert [len(a.runs) for a in comparison.arms] == [1, 2, 1, 1]


def test_versions_are_rows_of_one_table_that_say_so():
    newer = {"torch": "2.14.0", "hylorada": "0.1.0"}
    records = [whole("lora"), whole("lora", 1), whole("hylorada")]
    records[1]["provenance"]["versions"] = newer
    ((comparison,), problems, (table,)) = compared(*records)
    assert not problems
    assert [arm.label for arm in comparison.arms] == [
        "lora (torch 2.13.0)", "lora (torch 2.14.0)", "hylorada",
    ]  # fmt: skip
    (note,) = [note for note in table.notes if "torch differs" in note]
    assert "2.13.0 (lora (torch 2.13.0), hylorada); 2.14.0 (lora (torch 2.14.0))" in note


def test_another_version_of_a_whole_arm_is_told():
    records = [whole("lora"), whole("hylorada")]
    records[1]["provenance"]["versions"] = {"torch": "2.14.0", "hylorada": "0.1.0"}
    records[1]["provenance"]["git"] = "fffffff"
    records[1]["provenance"]["hardware"] = "Another processor"
    ((comparison,), _, (table,)) = compared(*records)
    assert [arm.label for arm in comparison.arms] == ["lora", "hylorada"]
    for said in (
        "torch differs: 2.13.0 (lora); 2.14.0 (hylorada)",
        "code differs: 0123abc (lora); fffffff (hylorada)",
        "hardware differs: A processor, 2 cores (lora); Another processor (hylorada); tokens/s",
    ):
        assert any(said in note for note in table.notes), table.notes


def test_skipped_steps_are_not_averaged_and_named():
    records = [whole("lora", seed) for seed in range(3)]
    records[1]["training"] |= {"skipped_steps": 3, "tokens": 37 * 4096}
    ((comparison,), _, (table,)) = compared(*records, whole("hylorada", 1))
    assert [(arm.label, [r.seed for r in arm.runs]) for arm in comparison.arms] == [
        ("lora", [0, 2]), ("lora (3 steps skipped)", [1]), ("hylorada", [1]),
    ]  # fmt: skip
    assert any("seed 1: 3 of 40 steps were skipped" in note for note in table.notes)
    assert any(
        "seed 1: methods were trained on different numbers of tokens: lora (3 steps skipped) "
        "151,552; hylorada 163,840." in note
        for note in table.notes
    )


def test_seeds_may_see_other_numbers_of_tokens():
    """With packing=reset, or answers alone, that follows from the order of the data."""
    records = [whole(m, seed) for seed in range(2) for m in ("lora", "hylorada")]
    for record in records:
        record["training"]["tokens"] += record["seed"]
    ((comparison,), _, (table,)) = compared(*records)
    assert [len(arm.runs) for arm in comparison.arms] == [2, 2]
    assert not any("tokens:" in note and "seed" in note for note in table.notes)


def test_a_measurement_made_later_on_another_machine_is_another_comparison():
    """`hylorada-eval run=` puts its numbers in the place of those of the run."""
    later = {"metrics": ["eval/ppl", "eval/ppl_sliding"], "device": "cuda", "precision": "bf16"}
    record = changed(whole("hylorada"), evaluations=[later])
    comparisons, _, _ = compared(whole("lora"), record)
    assert {c.label for c in comparisons} == {
        "perplexity measured on=cpu in fp32", "perplexity measured on=cuda in bf16",
    }  # fmt: skip
    of_retrieval = {**later, "metrics": ["lim/accuracy"]}
    (one,), _, _ = compared(whole("lora"), changed(whole("hylorada"), evaluations=[of_retrieval]))
    assert one.label == ""


def test_arms_are_named_by_their_settings_in_the_whole_table():
    records = [
        make_record("lora", length=512, method__lora__r=16), make_record("lora", length=4096),
        make_record("hylorada", method__position_bias__enabled="false"), make_record("hylorada"),
    ]  # fmt: skip
    comparisons, _, _ = compared(*records)
    assert [[arm.label for arm in c.arms] for c in comparisons] == [
        ["lora r=16"], ["lora r=8", "hylorada position_bias=auto", "hylorada position_bias=false"],
    ]  # fmt: skip


def test_a_key_that_came_later_parts_nothing():
    """An earlier record lacks it; it did what the default does."""
    old = make_record("lora", 1)
    del old["config"]["method"]["lora"]["use_rslora"]  # implied: true
    new = make_record("lora", 0)
    new["config"]["method"]["lora"]["use_rslora"] = True
    old["config"]["model"].pop("attn_implementation")
    old["config"]["method"]["lora"]["lora_alpha"] = 16
    ((comparison,), _, _) = compared(old, new)
    assert [(arm.label, len(arm.runs)) for arm in comparison.arms] == [("lora", 2)]


def test_one_fingerprint_on_two_machines_is_two_runs(tmp_path):
    cpu = whole("lora")
    cuda = changed(cpu, **APART["device"])
    write(tmp_path / "a", cpu)
    write(tmp_path / "b", cuda)
    write(tmp_path / "c", cpu)
    collection = collect([tmp_path])
    assert [r.path.parent.name for r in collection.records] == ["a", "b"]
    (problem,) = collection.problems
    assert problem.path.parts[-3] == "c"


def test_parts_keep_what_is_unknown_together_with_what_it_fits():
    facts = [{"a": "1"}, {"a": "2", "b": "1"}, {}, {"b": "2"}, {"a": "1", "b": "2"}]
    parts = parted(list(range(5)), lambda i: facts[i])
    assert parts == [[0, 3, 4], [1, 2]]
