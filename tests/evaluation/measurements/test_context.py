"""Retrieval and context gain in tables and pictures: only where records hold them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from helpers.records import make_record, with_context

from hylorada.comparison.arms import compare
from hylorada.comparison.collect import Record
from hylorada.comparison.drawing import lines_of
from hylorada.evaluation.context_gain_picture import loss_by_context
from hylorada.evaluation.retrieval_picture import accuracy_by_depth
from hylorada.report import figures, render
from hylorada.report.table import build_tables
from hylorada.statistics.clustered import clustered_mean


def compared(*records):
    comparisons, problems = compare([Record(Path(r["name"]), r) for r in records])
    assert not problems
    return comparisons


def rows(table):
    return {row.cells["method"].text: row.cells for row in table.sections[0].rows}


def keys(table):
    return [column.key for column in table.columns]


def test_without_such_numbers_nothing_is_said_of_them():
    (comparison,) = compared(make_record("lora"), make_record("hylorada"))
    (table,) = build_tables([comparison])
    assert not set(keys(table)) & {"retrieval", "middle_gap", "context_gain"}
    assert not any("retrieval" in note for note in table.notes)
    assert accuracy_by_depth(comparison, "", "x") is None
    assert loss_by_context(comparison, "x") is None


def test_the_numbers_of_the_base_and_of_each_arm_stand_in_the_table():
    lora, other = with_context(make_record("lora")), make_record("hylorada")
    (comparison,) = compared(lora, other)
    (table,) = build_tables([comparison])
    found = rows(table)
    whole = lora["metrics"]["lim/accuracy"]
    assert found["lora"]["retrieval"].value == pytest.approx(100 * whole["value"])
    gap = found["lora"]["middle_gap"]
    assert gap.low < gap.value < gap.high
    assert gap.text.startswith("+")
    base = found["base, extended, untrained"]
    expected = lora["base"]["extended"]
    assert base["retrieval"].value == pytest.approx(100 * expected["lim/accuracy"]["value"])
    assert base["context_gain"].value == pytest.approx(expected["context_gain/gain"]["value"])
    assert "retrieval" not in found["hylorada"]  # which reads "not measured"
    assert sum("chance 1.7%" in note for note in table.notes) == 1
    assert sum("same 64 x 256 tokens" in note for note in table.notes) == 1


def test_what_a_record_says_of_its_prompts_stands_below_the_table():
    record = with_context(make_record("lora"))
    record["metrics"]["lim/accuracy"]["note"] = "easier than published"
    (table,) = build_tables(compared(record))
    assert any(note.endswith("Note: easier than published.") for note in table.notes)


def test_runs_with_and_without_retrieval_are_one_comparison():
    lora = with_context(make_record("lora", eval__lost_in_middle__enabled=True))
    assert len(compared(lora, make_record("hylorada"))) == 1


def test_a_baseline_that_was_asked_more_is_still_the_extended_base():
    baseline = with_context(make_record("baseline", train__lr=1.0))
    (comparison,) = compared(baseline, make_record("lora"))
    assert [arm.method for arm in comparison.arms] == ["lora"]


def test_answers_to_other_prompts_are_neither_beside_nor_in_the_mean():
    """One seed of LoRA was asked other prompts, and HyLoRADA's only one too."""
    lora = [
        with_context(make_record("lora", 0)),
        with_context(make_record("lora", 1), 0.3, sha="cd" * 32),
        with_context(make_record("lora", 2)),
    ]
    rslora = with_context(make_record("rslora"))
    other = with_context(make_record("hylorada"), 0.2, sha="cd" * 32)
    (comparison,) = compared(*lora, rslora, other)
    (table,) = build_tables([comparison])
    found = rows(table)
    for key, name, scale in (
        ("retrieval", "lim/accuracy", 100),
        ("middle_gap", "lim/middle_gap", 100),
        ("context_gain", "context_gain/gain", 1),
    ):
        values = [scale * lora[i]["metrics"][name]["value"] for i in (0, 2)]
        assert found["lora"][key].value == pytest.approx(sum(values) / 2)
        base = lora[0]["base"]["extended"][name]["value"]
        assert found["base, extended, untrained"][key].value == pytest.approx(scale * base)
        assert found["hylorada"][key].value is None
        assert found["hylorada"][key].text.startswith("other ")
    notes = [note for note in table.notes if "not compared" in note]
    value = 100 * other["metrics"]["lim/accuracy"]["value"]
    assert len(notes) == 2
    assert all("lora, seed 1: " in note for note in notes)
    assert f"hylorada, seed 0: {value:.1f} (kv (generated)" in notes[0]
    assert "base" not in notes[0]  # which answered those of the table as well
    lines = list(csv.DictReader(io.StringIO(render.as_csv([table]))))
    line = next(line for line in lines if line["method"] == "hylorada")
    assert line["retrieval"] == ""


def test_what_most_rows_were_asked_is_what_is_compared():
    odd = with_context(make_record("lora"), sha="cd" * 32)
    most = [with_context(make_record(m), 0.2) for m in ("rslora", "hylorada")]
    (comparison,) = compared(odd, *most)
    (table,) = build_tables([comparison])
    found = rows(table)
    assert found["lora"]["retrieval"].text == "other prompts"
    assert (
        found["hylorada"]["retrieval"].value > found["base, extended, untrained"]["retrieval"].value
    )
    lines = lines_of(comparison, "lim/accuracy")
    assert [label for label, _, _ in lines] == ["base, extended, untrained", "rslora", "hylorada"]


def test_fewer_places_in_the_same_text_are_other_targets():
    fewer = with_context(make_record("hylorada"), 0.2)
    fewer["metrics"]["context_gain/gain"]["places"] = 8
    (table,) = build_tables(compared(with_context(make_record("lora")), fewer))
    found = rows(table)
    assert found["hylorada"]["context_gain"].text == "other targets"
    assert found["hylorada"]["retrieval"].value is not None
    assert any("same 8 x 256 tokens" in note for note in table.notes if "not compared" in note)


def test_a_base_of_which_only_other_prompts_are_known_says_so():
    records = [with_context(make_record(m)) for m in ("lora", "hylorada")]
    for record in records:
        record["base"]["extended"]["lim/accuracy"]["prompts_sha256"] = "cd" * 32
    (table,) = build_tables(compared(*records))
    assert rows(table)["base, extended, untrained"]["retrieval"].text == "other prompts"
    assert any("not compared: base, extended, untrained: " in note for note in table.notes)


def test_seeds_are_a_mean_with_its_deviation():
    records = [with_context(make_record("lora", seed)) for seed in (0, 1, 2)]
    (table,) = build_tables(compared(*records))
    cell = rows(table)["lora"]["retrieval"]
    values = [100 * r["metrics"]["lim/accuracy"]["value"] for r in records]
    assert cell.value == pytest.approx(sum(values) / 3)
    assert "±" in cell.text
    assert cell.low is None


def test_tables_of_several_data_sets_have_the_same_columns():
    other = make_record("lora", dataset__name="pg19")
    other["dataset"] = "pg19"
    tables = build_tables(compared(with_context(make_record("lora")), other))
    assert len(tables) == 2
    assert keys(tables[0]) == keys(tables[1])
    lines = list(csv.reader(io.StringIO(render.as_csv(tables))))
    assert {len(line) for line in lines} == {len(lines[0])}
    assert "middle_gap_low" in lines[0]


def test_a_run_without_perplexity_has_its_row():
    record = with_context(make_record("lora"))
    for metrics in (record["metrics"], record["base"]["extended"]):
        for name in ("eval/ppl", "eval/ppl_sliding"):
            del metrics[name]
    record["base"]["own_window"] = {}
    (table,) = build_tables(compared(record))
    found = rows(table)
    assert found["lora"]["retrieval"].value > found["base, extended, untrained"]["retrieval"].value


def test_only_answers_to_the_same_prompts_share_a_picture():
    records = [
        with_context(make_record("lora")),
        with_context(make_record("hylorada"), 0.2),
        with_context(make_record("rslora"), 0.15, sha="cd" * 32),
    ]
    (comparison,) = compared(*records)
    lines = lines_of(comparison, "lim/accuracy")
    assert [label for label, _, _ in lines] == ["base, extended, untrained", "lora", "hylorada"]
    names = [picture.name for picture in figures.draw_all([comparison], "lora")]
    assert "tiny-stdlib-4096-retrieval-ranked" in names
    assert "tiny-stdlib-4096-context-gain" in names
    picture = accuracy_by_depth(comparison, "", "x")
    assert "500 prompts of 3,890 to 3,950 tokens" in picture.caption


def test_the_gain_of_context_is_clustered_by_document_and_seed():
    records = [with_context(make_record("lora", seed)) for seed in range(3)]
    places = [1, 3, 9, 2]
    for record in records:
        for metrics, lift in ((record["base"]["extended"], 0.0), (record["metrics"], 0.1)):
            metrics["context_gain/gain"]["by_document"] = [
                {"name": str(d), "places": n, "gain": 0.3 + lift + 0.02 * d + 0.01 * record["seed"]}
                for d, n in enumerate(places)
            ]
    (table,) = build_tables(compared(*records))
    found = rows(table)
    sums = [[n * (0.4 + 0.02 * d + 0.01 * s) for d, n in enumerate(places)] for s in range(3)]
    expected = clustered_mean(np.array(sums), np.array(places))
    cell = found["lora"]["context_gain"]
    assert cell.value == pytest.approx(expected.value)
    assert (cell.low, cell.high) == pytest.approx(expected.interval())
    assert "±" not in cell.text
    assert found["base, extended, untrained"]["context_gain"].text.endswith("]")  # has no seed
    (table,) = build_tables(compared(records[0]))
    assert rows(table)["lora"]["context_gain"].text.endswith("], one seed")
    assert any("clustered by document" in note for note in table.notes)
