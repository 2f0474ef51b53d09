"""Each number of the table is one that a record holds, or the cell says that there is none."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pytest
from helpers.records import factorial, make_record, metric, sweep, with_context
from rich.console import Console

from hylorada.comparison.arms import compare
from hylorada.comparison.cells import number
from hylorada.comparison.collect import Record
from hylorada.comparison.drawing import lines_of
from hylorada.report import render
from hylorada.report.table import Table, build_tables, one_line


def table_of(*records, **options) -> Table:
    comparisons, _ = compare([Record(Path(r["name"]), r) for r in records])
    (table,) = build_tables(comparisons, **options)
    return table


def rows(table: Table, section: int = 0) -> dict:
    return {row.cells["method"].text: row for row in table.sections[section].rows}


def test_a_long_heading_leaves_room_for_the_numbers():
    """Comparisons that differ in many settings are told apart by all of them."""
    one = {"train__lr": 1e-4, "train__weight_decay": 0.1, "train__adam_beta1": 0.8}
    one |= {"train__adam_epsilon": 1e-6, "train__max_grad_norm": 2.0, "train__min_lr_ratio": 0.1}
    two = {"train__adam_beta2": 0.9, "train__warmup_ratio": 0.1, "eval__perplexity__stride": 77}
    records = [make_record("lora"), make_record("lora", **one), make_record("lora", **two)]
    table = table_of(*records)
    assert max(len(section.heading) for section in table.sections) > 200
    console = Console(file=io.StringIO(), width=200, highlight=False)
    render.print_tables([table], console)
    shown = console.file.getvalue().partition("PPL: exp")[0]
    assert shown.count(rows(table)["lora"].cells["ppl_blocks"].text) == 3
    assert max(map(len, shown.splitlines())) <= 200


def test_the_untouched_base_stands_twice_where_it_was_extended():
    table = table_of(*sweep())
    first, second = table.sections[1].rows[:2]
    assert first.cells["method"].text == "base, own window"
    assert first.cells["length"].value == 1024
    assert render.cell(first, "ppl_blocks").text == "not measured"
    assert second.cells["method"].text == "base, extended, untrained"
    assert second.cells["length"].value == 4096
    record = make_record("lora")
    own = record["base"]["own_window"]["eval/ppl_sliding"]
    assert first.cells["ppl_sliding"].value == pytest.approx(own["value"])
    extended = record["base"]["extended"]["eval/ppl"]
    assert second.cells["ppl_blocks"].value == pytest.approx(extended["value"])
    assert sum(row.kind == "base" for row in table.sections[1].rows) == 2


@pytest.mark.parametrize("length", [512, 1024])
def test_up_to_its_trained_length_the_base_is_itself_and_stands_once(length):
    """Records of earlier versions hold its own window of 1,024 all the same."""
    table = table_of(make_record("lora", length=length), make_record("baseline", length=length))
    (row,) = (row for row in table.sections[0].rows if row.kind == "base")
    assert row.cells["method"].text == "base"
    assert row.cells["length"].value == length
    assert (row.cells["change_base"].text, row.cells["change_base"].low) == ("0", None)
    assert "PPL vs base, %" in [column.heading for column in table.columns]
    text = render.markdown(table)
    assert "extended" not in text
    assert "own window" not in text


def test_perplexity_has_no_columns_where_no_run_was_to_measure_it():
    records = [make_record("lora"), make_record("hylorada")]

    def columns():
        comparisons, _ = compare([Record(Path(r["name"]), r) for r in records])
        return {column.key for table in build_tables(comparisons) for column in table.columns}

    for record in records:
        del record["config"]["eval"]["perplexity"]["conventions"]  # as before there was the key
    assert "ppl_blocks" in columns()
    for record in records:
        record["config"]["eval"]["perplexity"]["conventions"] = []
    assert "ppl_blocks" not in columns()
    comparisons, _ = compare([Record(Path(r["name"]), with_context(r)) for r in records])
    (table,) = build_tables(comparisons)
    assert len(table.main) == 5  # whose row it is, and two results
    assert not set(map(id, table.main)) & set(map(id, table.details))


def test_a_base_that_nothing_extended_is_not_set_against_itself():
    """ALiBi, or rope_type=none: the same model in a shorter window."""
    record = make_record("lora")
    record["position_range"] = {"kind": "none", "from": 1024, "to": 1024, "factor": 1.0}
    found = rows(table_of(record))
    assert found["base, own window"].cells["change_base"].text == "-"
    assert found["base, own window"].cells["change_base"].low is None
    assert found["base"].cells["length"].value == 4096
    assert found["lora"].cells["change_base"].value < 0
    record["position_range"] = {"kind": "rope", "from": 1024, "to": 4096, "factor": 4.0}
    found = rows(table_of(record))
    assert found["base, own window"].cells["change_base"].low is not None
    assert "base, extended, untrained" in found


def test_one_run_is_read_as_it_stands():
    record = make_record("lora")
    row = rows(table_of(record))["lora"].cells
    for key, name in (("ppl_blocks", "eval/ppl"), ("ppl_sliding", "eval/ppl_sliding")):
        assert row[key].value == pytest.approx(record["metrics"][name]["value"])
        assert "±" not in row[key].text
    extended = record["base"]["extended"]["eval/ppl"]["value"]
    percent = 100 * (record["metrics"]["eval/ppl"]["value"] / extended - 1)
    assert row["change_base"].value == pytest.approx(percent)
    assert row["params_per_percent"].value == pytest.approx(811_008 / -percent)
    assert row["trainable"].text == "811,008"
    assert row["trained_lora"].value == 811_008
    assert row["trained_norms"].value == 0
    assert row["tokens_per_second"].value == 2048
    assert row["peak_memory_mib"].text == "900"
    assert row["change_reference"].text == "reference"


def test_one_seed_and_two_say_so_beside_the_interval():
    for seeds, remark in ((1, ", one seed"), (2, ", two seeds"), (3, "]")):
        table = table_of(*(make_record("lora", seed) for seed in range(seeds)))
        found = rows(table)
        assert found["lora"].cells["change_base"].text.endswith(remark)
        # No seed could give another number of an untrained base.
        assert found["base, own window"].cells["change_base"].text.endswith("]")
        (note,) = [n for n in table.notes if n.startswith("Changes: ")]
        assert "One seed: variation between seeds is not included" in note


def test_seeds_are_pooled_with_their_deviation():
    records = [make_record("hylorada", seed) for seed in range(3)]
    loras = [make_record("lora", seed) for seed in range(3)]
    row = rows(table_of(*records, *loras))["hylorada"].cells
    metrics = [r["metrics"]["eval/ppl"] for r in records]
    pooled = math.exp(sum(m["sum_nll"] for m in metrics) / sum(m["tokens"] for m in metrics))
    assert row["ppl_blocks"].value == pytest.approx(pooled)
    mean = sum(m["value"] for m in metrics) / 3
    sd = math.sqrt(sum((m["value"] - mean) ** 2 for m in metrics) / 2)
    assert row["ppl_blocks"].text == f"{pooled:.2f} ± {sd:.2f}"
    change = row["change_reference"]
    assert change.low < change.value < change.high < 0
    assert row["seeds"].text == "3"
    assert row["peak_memory_mib"].text == "902"


def test_without_a_finished_lora_nothing_is_compared_with_it():
    table = table_of(make_record("hylorada"), make_record("lora", status="failed"))
    cells = rows(table)
    assert render.cell(cells["hylorada"], "change_reference").text == "not measured"
    assert any("no finished run of lora" in note for note in table.notes)


def test_another_reference_may_be_chosen():
    table = table_of(make_record("hylorada"), make_record("rslora"), reference="rslora")
    assert rows(table)["rslora"].cells["change_reference"].text == "reference"
    assert rows(table)["hylorada"].cells["change_reference"].value < 0
    assert "PPL vs rslora, %" in [column.heading for column in table.columns]


def test_a_failed_arm_is_shown_as_failed_with_its_reason():
    table = table_of(make_record("lora"), make_record("dora", status="diverged"))
    row = rows(table)["dora"]
    assert row.kind == "failed"
    assert row.cells["ppl_blocks"].text == "diverged"
    assert row.cells["ppl_blocks"].value is None
    assert row.cells["seeds"].text == "0 of 1"
    assert any("dora, seed 0: diverged: training: 3 steps in a row" in n for n in table.notes)


def test_an_arm_of_which_one_seed_failed_counts_the_others():
    table = table_of(
        make_record("lora", 0), make_record("lora", 1), make_record("lora", 2, status="failed")
    )
    row = rows(table)["lora"]
    assert row.kind == "arm"
    assert row.cells["seeds"].text == "2 of 3"
    assert any("lora, seed 2: failed" in note for note in table.notes)


def test_a_failed_baseline_does_not_vanish():
    table = table_of(make_record("lora"), make_record("baseline", status="failed"))
    assert rows(table)["baseline"].kind == "failed"


def test_a_convention_that_was_not_measured_says_so():
    record = make_record("lora")
    for part in (record["metrics"], record["base"]["extended"]):
        del part["eval/ppl"]
    table = table_of(record)
    row = rows(table)["lora"]
    assert render.cell(row, "ppl_blocks").text == "not measured"
    assert row.cells["change_base"].value < 0
    assert any("sliding convention" in note for note in table.notes)


def test_an_arm_that_got_worse_gains_nothing_per_parameter():
    record = make_record("lora")
    record["metrics"]["eval/ppl"] = metric(9.0, "blocks", 4096)
    row = rows(table_of(record))["lora"].cells
    assert row["change_base"].value > 0
    assert row["params_per_percent"].text == "no gain over the base"


def test_an_overflow_is_no_number():
    record = make_record("lora")
    bad = record["metrics"]["eval/ppl"]
    bad["value"] = bad["sum_nll"] = None
    for document in bad["by_document"]:
        document["sum_nll"] = None
    row = rows(table_of(record))["lora"].cells
    assert row["ppl_blocks"].text == "overflow"
    assert row["ppl_blocks"].value is None
    assert row["change_base"].text == "a loss is not finite"


def test_two_ways_to_extend_the_base_are_both_shown():
    other = make_record("rslora")
    other["base"]["extended"]["eval/ppl"] = metric(5.0, "blocks", 4096)
    table = table_of(make_record("lora"), other)
    labels = [row.cells["method"].text for row in table.sections[0].rows if row.kind == "base"]
    assert labels == [
        "base, own window",
        "base, extended, untrained (as in lora)",
        "base, extended, untrained (as in rslora)",
    ]


def test_each_extended_base_is_shown_with_its_own_numbers():
    lora, other = with_context(make_record("lora")), with_context(make_record("rslora"))
    for record, shift in ((lora, 0.0), (other, 0.25)):
        extended = record["base"]["extended"]
        extended["eval/ppl"] = metric(5.0 + shift, "blocks", 4096)
        extended["eval/ppl_word"] = metric(6.0 + shift, "word", 4096)
        for name in ("lim/accuracy", "lim/middle_gap", "context_gain/gain"):
            extended[name]["value"] += shift
        extended["longbench/trec"] = {
            "value": 20 + 100 * shift, "low": 0.0, "high": 100.0, "limit": 0, "lm_eval": "0.4.13",
            "window": 4096, "questions_sha256": "ab", "examples": 9, "cut": 0,
        }  # fmt: skip
    table = table_of(lora, other)
    for record in (lora, other):
        row = rows(table)[f"base, extended, untrained (as in {record['method']})"].cells
        held = record["base"]["extended"]
        for key, name, scale in (
            ("ppl_blocks", "eval/ppl", 1),
            ("ppl_word", "eval/ppl_word", 1),
            ("retrieval", "lim/accuracy", 100),
            ("middle_gap", "lim/middle_gap", 100),
            ("context_gain", "context_gain/gain", 1),
            ("longbench", "longbench/trec", 1),
        ):
            assert row[key].value == pytest.approx(scale * held[name]["value"]), key
        score = f"trec {held['longbench/trec']['value']:.2f}"
        label = f"untrained (as in {record['method']})"
        assert any(f"{label}: {score}" in note for note in table.notes)
    ((comparison,), _) = compare([Record(Path(r["name"]), r) for r in (lora, other)])
    labels = [label for label, _, _ in lines_of(comparison, "lim/accuracy")]
    assert labels[:2] == [
        "base, extended, untrained (as in lora)", "base, extended, untrained (as in rslora)"
    ]  # fmt: skip


def test_bases_without_perplexity_are_told_apart_by_how_they_were_extended():
    records = [with_context(make_record(m)) for m in ("lora", "rslora", "hylorada")]
    for record in records:
        for metrics in (record["metrics"], record["base"]["extended"]):
            for name in ("eval/ppl", "eval/ppl_sliding"):
                del metrics[name]
        record["base"]["own_window"] = {}
    records[1]["config"]["method"]["position_range"]["rope_factor"] = 3.0
    records[1]["base"]["extended"]["lim/accuracy"]["value"] = 0.75
    found = rows(table_of(*records))
    assert found["base, extended, untrained (as in rslora)"].cells["retrieval"].value == 75
    assert found["base, extended, untrained (as in lora)"].cells["retrieval"].value < 75
    assert sum(row.kind == "base" for row in found.values()) == 3  # and the own window, unmeasured


def test_the_own_window_has_its_perplexity_per_word():
    record = make_record("lora")
    for metrics in (record["metrics"], record["base"]["extended"]):
        metrics["eval/ppl_word"] = metric(6.0, "word", 4096)
    record["base"]["own_window"]["eval/ppl_word"] = own = metric(5.5, "word", 1024)
    found = rows(table_of(record))
    assert found["base, own window"].cells["ppl_word"].value == pytest.approx(own["value"])
    assert found["lora"].cells["ppl_word"].value > own["value"]


def test_a_part_of_the_split_is_named():
    record = make_record("lora")
    for name in ("eval/ppl", "eval/ppl_sliding"):
        record["metrics"][name]["scorable_tokens"] = 1_000_000
    notes = table_of(record).notes
    tokens = record["metrics"]["eval/ppl"]["tokens"]
    assert any(f"{tokens:,} of 1,000,000 tokens of 12 documents" in note for note in notes)


def test_the_text_is_named_as_it_was_read_and_each_naming_once():
    part, whole = make_record("lora"), make_record("hylorada")
    part["provenance"]["dataset"] = {"test": "pg19 test, 62 of 100 books"}
    whole["provenance"]["dataset"] = {"test": "pg19 test, 100 books", "train": "pg19 train, 9 of"}
    old = make_record("rslora")
    del old["provenance"]["dataset"]
    notes = table_of(part, whole, old, make_record("lora", seed=1)).notes
    (note,) = [n for n in notes if ": text: " in n]
    assert note == (
        "length 4,096: text: pg19 test, 62 of 100 books; stdlib test, 12 documents; "
        "pg19 test, 100 books; stdlib train, 90 documents; pg19 train, 9 of."
    )
    assert not [n for n in table_of(old).notes if ": text: " in n]


def test_markdown_has_one_line_a_row_and_escapes():
    record = make_record("lora")
    record["method"] = "lo|ra"
    text = render.markdown(table_of(record))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    main, rest = lines[: 2 + 3], lines[2 + 3 : 2 * (2 + 3)]
    assert all(line.replace("\\|", "").count("|") == 8 for line in main)
    assert len({line.replace("\\|", "").count("|") for line in rest}) == 1
    assert len(lines) == 2 * (2 + 3) + 2 + 4  # and the paper's four claims about 4,096 tokens
    assert "lo\\|ra" in text


def test_the_papers_figures_stand_beside_what_was_measured_and_are_called_hypotheses():
    table = table_of(*factorial(seeds=3), *(make_record("lora", seed) for seed in range(3)))
    found = {each.hypothesis.about: each for each in table.hypotheses}
    assert set(found) == {"hylorada", "position_bias", "landmark", "memory"}
    assert found["hylorada"].hypothesis.figure == "10 to 15 % better (expected, 4.2)"
    change = rows(table)["hylorada"].cells["change_reference"]
    assert found["hylorada"].measured == (
        f"{-change.value:.1f} % better [{-change.high:.1f}, {-change.low:.1f}]"
    )
    assert found["landmark"].measured.startswith("added to rslora: 1.")
    assert "; added to hylorada_no_landmark: 0." in found["landmark"].measured
    assert "1.00 times less than rslora" in found["memory"].measured
    for text in (render.markdown(table), render.latex(table), render.as_json([table])):
        assert "10 to 15" in text
    assert "Hypotheses of the paper" in render.markdown(table)
    assert [h.measured for h in table_of(make_record("lora")).hypotheses] == ["not measured"] * 4
    assert table_of(make_record("lora", length=1024)).hypotheses == []


def test_csv_holds_plain_numbers():
    table = table_of(*sweep())
    read = list(csv.DictReader(io.StringIO(render.as_csv([table]))))
    assert len(read) == sum(len(section.rows) for section in table.sections)
    row = next(r for r in read if r["method"] == "hylorada" and r["length"] == "4096")
    assert float(row["change_reference_low"]) < float(row["change_reference"])
    assert float(row["trainable"]) == 1_878_850
    failed = next(r for r in read if r["method"] == "dora")
    assert (failed["kind"], failed["ppl_blocks"]) == ("failed", "")


def test_csv_has_no_words_in_numeric_columns():
    broken = make_record("rslora")
    broken["metrics"]["eval/ppl"]["value"] = None  # beyond the range of a float
    other = with_context(make_record("hylorada"), sha="cd" * 32)
    records = [*sweep(), broken, other, with_context(make_record("lora", seed=5))]
    tables = build_tables(compare([Record(Path(r["name"]), r) for r in records])[0])
    words = {"table", "section", *(c.key for t in tables for c in t.columns if not c.numeric)}
    read = list(csv.DictReader(io.StringIO(render.as_csv(tables))))
    shown = {
        cell.text for t in tables for s in t.sections for r in s.rows for cell in r.cells.values()
    }
    assert {"-", "diverged", "reference"} <= shown
    for row in read:
        for key, text in row.items():
            if key not in words | {"kind"} and text:
                assert math.isfinite(float(text)), (row["method"], key)


def test_json_is_strict_and_keeps_intervals():
    tree = json.loads(render.as_json([table_of(*sweep())]))
    row = next(r for r in tree[0]["sections"][1]["rows"] if r["method"]["text"] == "hylorada")
    change = row["change_reference"]
    assert change["low"] < change["value"] < change["high"]


def test_latex_escapes_what_tex_would_eat():
    record = make_record("hylorada_no_s2")
    text = render.latex(table_of(record))
    assert r"hylorada\_no\_s2" in text
    tables = text.split(r"\begin{tabular}")[1:]
    assert len(tables) == 3
    for each in tables:
        body = [line for line in each.splitlines() if line.endswith(r"\\")]
        (columns,) = {line.replace(r"\&", "").count("&") for line in body}
        assert each.splitlines()[0] == "{" + each[1 : columns + 2] + "}"


def test_a_pipe_gets_lines_that_are_not_folded():
    console = Console(file=io.StringIO(), width=80, highlight=False)
    render.print_tables([table_of(*sweep())], console)
    lines = console.file.getvalue().splitlines()
    row = next(line for line in lines if "│hylorada" in line)
    assert "-8.94 [-9.97, -7.89]" in row or "-9.68 [-11.35, -7.98]" in row
    assert any("hylorada, length 4,096: trainable parameters 1,878,850" in line for line in lines)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.23456, "1.235"), (12.3456, "12.35"), (1234.56, "1,234.6"), (1.5e7, "1.5e+07")],
)
def test_numbers_keep_some_four_digits(value, text):
    assert number(value) == text


def test_an_error_is_one_short_line():
    assert one_line("a\nb " * 200).endswith("...")
    assert "\n" not in one_line("a\nb")
    assert one_line(None) == ""
