"""LongBench and RULER in tables: only where records hold them, and every task with its number."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from helpers.records import make_record

from hylorada.comparison.arms import compare
from hylorada.comparison.collect import Record
from hylorada.report import render
from hylorada.report.table import build_tables

BASE = "base, extended, untrained"


def score(value, sha="ab", **more):
    return {
        "value": value, "low": value - 5, "high": value + 5, "examples": 20, "cut": 3, "limit": 20,
        "window": 4096, "lm_eval": "0.4.13", "questions_sha256": sha, **more,
    }  # fmt: skip


def with_scores(record, lift, names=("longbench/trec", "longbench/qasper"), sha="ab"):
    def measured(lift):
        scores = {name: score(20 + 10 * i + lift, sha) for i, name in enumerate(names)}
        if len(scores) > 1 and not any("_e" in name or "ruler" in name for name in names):
            value = sum(s["value"] for s in scores.values()) / len(scores)
            scores["longbench/average"] = score(value, sha, tasks=[n[10:] for n in scores])
        return scores

    record["base"]["extended"] |= measured(0)
    record["metrics"] |= measured(lift)
    return record


def table_of(*records):
    comparisons, problems = compare([Record(Path(r["name"]), r) for r in records])
    assert not problems
    (table,) = build_tables(comparisons)
    return table, {row.cells["method"].text: row.cells for row in table.sections[0].rows}


def test_without_such_numbers_nothing_is_said_of_them():
    table, _ = table_of(make_record("lora"))
    assert not {"longbench", "longbench_e", "ruler"} & {column.key for column in table.columns}
    assert not any("LongBench" in note for note in table.notes)


def test_the_mean_stands_in_the_table_and_each_task_below_it():
    table, rows = table_of(with_scores(make_record("lora"), 4), make_record("hylorada"))
    assert rows[BASE]["longbench"].value == 25.0
    assert rows["lora"]["longbench"].text == "29.00 [24.00, 34.00], one seed"
    assert "longbench" not in rows["hylorada"]  # which reads "not measured"
    notes = "\n".join(table.notes)
    assert "the first 20 examples of each task, by lm-eval 0.4.13" in notes
    assert (
        "LongBench, lora, one seed: trec 24.00 [19.00, 29.00]; qasper 34.00 [29.00, 39.00]."
        in notes
    )
    assert f"LongBench, {BASE}: trec 20.00 [15.00, 25.00]" in notes


def test_a_single_task_stands_for_its_kind_and_seeds_are_a_mean():
    table, rows = table_of(
        with_scores(make_record("lora", 0), 2, ["longbench/trec_e", "ruler/vt"]),
        with_scores(make_record("lora", 1), 6, ["longbench/trec_e", "ruler/vt"]),
    )
    assert rows["lora"]["longbench_e"].text == "24.00 ± 2.83"
    assert rows["lora"]["ruler"].value == 34.0
    headings = [column.heading for column in table.columns]
    assert [h for h in headings if "of 100" in h] == ["LongBench-E, of 100", "RULER, of 100"]


def test_a_seed_that_was_asked_other_questions_is_not_averaged_in():
    table, rows = table_of(
        with_scores(make_record("lora", 0), 2), with_scores(make_record("lora", 1), 6, sha="cd")
    )
    assert rows["lora"]["longbench"].value == 27.0
    (note,) = [n for n in table.notes if "other questions" in n]
    assert "lora, seed 1: trec 26.00 [21.00, 31.00] (the first 20 examples" in note


def test_what_most_rows_were_asked_stands_in_the_table():
    few = with_scores(make_record("lora"), 2, sha="few")
    for metrics in (few["metrics"], few["base"]["extended"]):
        for name in ("longbench/trec", "longbench/qasper", "longbench/average"):
            metrics[name]["limit"] = 5
    both = [with_scores(make_record(m), 10) for m in ("rslora", "hylorada")]
    table, rows = table_of(few, *both)
    assert rows[BASE]["longbench"].value == 25.0
    assert rows["hylorada"]["longbench"].value == 35.0
    assert rows["lora"]["longbench"].text == "other questions"
    assert rows["lora"]["longbench"].value is None
    notes = "\n".join(table.notes)
    assert "LongBench: the first 20 examples of each task" in notes
    assert "LongBench, lora:" not in notes
    assert "not compared: lora, seed 0: trec 22.00 [17.00, 27.00] (the first 5 examples" in notes


def test_another_window_is_another_question():
    other = with_scores(make_record("hylorada"), 6, ["ruler/vt"])
    other["metrics"]["ruler/vt"]["window"] = 2048
    _, rows = table_of(with_scores(make_record("lora"), 2, ["ruler/vt"]), other)
    assert rows["lora"]["ruler"].value == 22.0
    assert rows["hylorada"]["ruler"].text == "other questions"


def test_tasks_with_different_limits_say_so_each():
    lora = with_scores(make_record("lora"), 2, ["longbench/trec", "longbench/qasper"])
    for metrics in (lora["metrics"], lora["base"]["extended"]):
        metrics["longbench/trec"]["limit"] = 0
    notes = "\n".join(table_of(lora)[0].notes)
    assert "LongBench (trec): all examples of each task" in notes
    assert "LongBench (qasper): the first 20 examples" in notes


def test_programs_get_the_value_and_its_interval():
    table, _ = table_of(with_scores(make_record("lora"), 4))
    lines = list(csv.DictReader(io.StringIO(render.as_csv([table]))))
    line = next(line for line in lines if line["method"] == "lora")
    assert [float(line[f"longbench{end}"]) for end in ("", "_low", "_high")] == pytest.approx(
        [29, 24, 34]
    )
