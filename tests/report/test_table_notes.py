"""What stands beside the numbers: headings of sections, verdicts on the base, times, hypotheses."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.records import factorial, make_record, metric

from hylorada.comparison.arms import compare
from hylorada.comparison.collect import Record
from hylorada.report import render
from hylorada.report.table import Table, build_tables


def table_of(*records) -> Table:
    comparisons, _ = compare([Record(Path(r["name"]), r) for r in records])
    (table,) = build_tables(comparisons)
    return table


def test_sections_that_differ_in_a_setting_are_named_in_documents_and_papers():
    table = table_of(make_record("lora", train__lr=1e-4), make_record("lora", train__lr=3e-4))
    markdown, latex = render.markdown(table), render.latex(table)
    for value in ("0.0001", "0.0003"):
        assert markdown.count(f"| **length 4,096 (train.lr={value})** |") == 2
        heading = f"\\textit{{length 4,096 (train.lr={value})}}"
        assert latex.count(f"\\multicolumn{{7}}{{l}}{{{heading}}} \\\\") == 1
        assert latex.count(heading) == 2
    lines = [line for line in markdown.splitlines() if line.startswith("| **length")]
    assert {line.count("|") for line in lines[:2]} == {8}
    assert "**length" not in render.markdown(table_of(make_record("lora")))


def test_a_minus_in_a_paper_is_no_hyphen():
    latex = render.latex(table_of(make_record("lora"), make_record("some-2-arms")))
    assert "$-$" in latex
    assert "some-2-arms" in latex


@pytest.mark.parametrize(
    ("seeds", "kind", "end"),
    [(1, "no result", "], one seed: no result yet."), (3, "worse", "], 3 seeds.")],
)
def test_the_base_in_its_own_window_is_ahead_by_the_rule_of_all_verdicts(seeds, kind, end):
    records = [make_record("lora", seed) for seed in range(seeds)]
    for record in records:
        record["base"]["own_window"]["eval/ppl_sliding"] = metric(3.0, "sliding", 1024)
    (verdict,) = table_of(*records).verdicts
    assert verdict.kind == kind
    assert "is ahead of every method: PPL (sliding) " in verdict.text
    assert "for the best of them, lora, which is " in verdict.text
    assert verdict.text.endswith(end)


def test_times_of_seeds_that_differ_in_speed_are_said_not_to_compare():
    records = [make_record(name, seed) for name in ("lora", "rslora") for seed in range(2)]
    assert not [note for note in table_of(*records).notes if note.startswith("Times")]
    records[0]["training"]["tokens_per_second"] = 1000.0
    (note,) = [
        note for note in table_of(*records).notes if note.startswith("Times are not comparable")
    ]
    assert "lora, length 4,096, 1,000 to 2,049" in note
    assert "rslora" not in note


def test_more_memory_is_not_called_less():
    records = factorial(seeds=1)
    for record in records:
        if record["config"]["method"]["s2_attn"]["enabled"] == "true":
            record["training"]["peak_memory_bytes"] *= 2
    (memory,) = (h for h in table_of(*records).hypotheses if h.hypothesis.about == "memory")
    assert memory.measured.startswith("2.00 times more than ")


def test_what_was_measured_under_one_setting_is_not_called_missing_under_another():
    records = [make_record("lora"), make_record("hylorada"), make_record("hylorada", train__lr=1.0)]
    found = [each.cells for each in table_of(*records).hypotheses]
    assert [claim for claim, _, _ in found] == [
        "HyLoRADA against LoRA, length 4,096 (train.lr=0.003)",
        "position bias added, length 4,096",
        "landmarks added, length 4,096",
        "shifted attention, memory, length 4,096",
    ]
    assert [measured == "not measured" for _, _, measured in found] == [False, True, True, True]
