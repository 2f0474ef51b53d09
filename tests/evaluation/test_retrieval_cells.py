"""Retrieval in a table: whole accuracies with intervals, arms paired on the same prompts."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from helpers.records import make_record, with_context
from scipy import stats

from hylorada.comparison.arms import compare
from hylorada.comparison.collect import Record
from hylorada.evaluation.retrieval_picture import accuracy_by_depth
from hylorada.report import render
from hylorada.report.table import build_tables
from hylorada.statistics.shares import clustered_difference, clustered_share

BASE = "base, extended, untrained"
EXAMPLES, DEPTHS = 100, 5


def answers(level: float, seed: int = 0) -> np.ndarray:
    """Credits [E, K]; what is hard is hard for every arm and seed."""
    hardness = np.random.default_rng(0).random((EXAMPLES, 1))
    luck = np.random.default_rng([seed, round(100 * level)]).random((EXAMPLES, DEPTHS))
    return ((hardness + luck) / 2 < level).astype(float)


def with_answers(record: dict, level: float, sha: str = "ab" * 32) -> dict:
    record = with_context(record, sha=sha)
    for metrics, credit in (
        (record["base"]["extended"], answers(0.3)),
        (record["metrics"], answers(level, record["seed"])),
    ):
        metrics["lim/accuracy"] |= {"value": credit.mean(), "by_example": credit.tolist()}
    return record


def table_of(*records):
    comparisons, problems = compare([Record(Path(r["name"]), r) for r in records])
    assert not problems
    (table,) = build_tables(comparisons)
    return table, {row.cells["method"].text: row.cells for row in table.sections[0].rows}


def test_a_whole_accuracy_has_the_interval_of_its_examples():
    _, rows = table_of(with_answers(make_record("lora"), 0.5))
    for label, credit in (("lora", answers(0.5)), (BASE, answers(0.3))):
        cell, expected = rows[label]["retrieval"], clustered_share(credit.mean(axis=1)[None])
        assert cell.value == pytest.approx(100 * credit.mean())
        assert (cell.low, cell.high) == pytest.approx((100 * expected.low, 100 * expected.high))
        # An untrained base has no seed that its interval could leave out.
        assert cell.text.endswith(", one seed") == (label == "lora")
        assert rows[label]["middle_gap"].low < rows[label]["middle_gap"].high


def test_seeds_are_in_the_interval():
    records = [with_answers(make_record("lora", seed), 0.5) for seed in range(3)]
    _, rows = table_of(*records)
    credit = np.stack([answers(0.5, seed) for seed in range(3)])
    expected = clustered_share(credit.mean(axis=-1))
    cell = rows["lora"]["retrieval"]
    assert (cell.low, cell.high) == pytest.approx((100 * expected.low, 100 * expected.high))
    assert cell.text == f"{100 * credit.mean():.1f} [{cell.low:.1f}, {cell.high:.1f}]"


def test_each_depth_has_a_column_with_the_interval_of_its_examples():
    records = [with_answers(make_record("lora", seed), 0.5) for seed in range(3)]
    table, rows = table_of(*records)
    credit = np.stack([answers(0.5, seed) for seed in range(3)])
    columns = [c.key for c in table.columns if c.key.startswith("retrieval_at_")]
    depths = [score["depth"] for score in records[0]["metrics"]["lim/accuracy"]["by_depth"]]
    assert columns == [f"retrieval_at_{depth:g}" for depth in depths] != []
    for place, key in enumerate(columns):
        expected = clustered_share(credit[:, :, place])
        cell = rows["lora"][key]
        assert cell.value == pytest.approx(100 * credit[:, :, place].mean())
        assert (cell.low, cell.high) == pytest.approx((100 * expected.low, 100 * expected.high))
    # Of one seed, and of a base, Wilson's.
    share = answers(0.3)[:, 0].mean()
    low, high = stats.binomtest(round(100 * share), 100).proportion_ci(method="wilson")
    scores = records[0]["base"]["extended"]["lim/accuracy"]["by_depth"]
    scores[0] |= {"accuracy": share, "prompts": 100}
    _, rows = table_of(*records)
    cell = rows[BASE][columns[0]]
    assert (cell.low, cell.high) == pytest.approx((100 * low, 100 * high))


def test_arms_are_paired_on_the_same_prompts():
    records = [
        with_answers(make_record(method, seed), level)
        for method, level in (("lora", 0.5), ("hylorada", 0.62))
        for seed in range(3)
    ]
    table, rows = table_of(*records)
    difference = np.stack([answers(0.62, s) - answers(0.5, s) for s in range(3)])
    expected = clustered_difference(difference.mean(axis=-1))
    cell = rows["hylorada"]["retrieval_reference"]
    assert cell.value == pytest.approx(100 * difference.mean())
    assert (cell.low, cell.high) == pytest.approx((100 * expected.low, 100 * expected.high))
    assert rows["lora"]["retrieval_reference"].text == "reference"
    assert rows[BASE]["retrieval_reference"].text == "-"
    alone = rows["hylorada"]["retrieval"]
    assert cell.high - cell.low < alone.high - alone.low  # pairing takes the prompts' part away
    headings = {column.key: column.heading for column in table.columns}
    assert headings["retrieval_reference"] == "retrieval vs lora, ranked, points"
    assert "retrieval_reference_low" in render.as_csv([table]).splitlines()[0]
    (note,) = [
        n for n in table.notes if "ranked, vs lora, Holm-adjusted p-values (1 comparison)" in n
    ]
    assert "hylorada < 0.001" in note


@pytest.mark.parametrize(
    ("level", "seeds", "kind", "end"),
    [
        (0.62, 3, "better", "3 seeds, p < 0.001."),
        (0.4, 3, "worse", "3 seeds, p < 0.001."),
        (0.5, 3, "none shown", "; no significant difference."),
        (0.62, 1, "no result", "one seed: "),
    ],
)
def test_a_sentence_says_who_retrieves_more(level, seeds, kind, end):
    records = [
        with_answers(make_record(method, seed), each)
        for method, each in (("lora", 0.5), ("hylorada", level))
        for seed in range(seeds)
    ]
    for record in records:
        for name in [name for name in record["metrics"] if not name.startswith("lim/")]:
            del record["metrics"][name]
    table, rows = table_of(*records)
    (said,) = table.verdicts  # and none of perplexities, which nobody measured
    change = rows["hylorada"]["retrieval_reference"].text.partition(" [")[0]
    assert said.text.startswith(
        f"At 4,096 tokens, retrieval (ranked): hylorada vs lora {change} points"
    )
    assert said.kind == kind
    assert end in said.text


def test_one_seed_and_one_depth_are_mcnemars_test():
    records = [with_answers(make_record(m), level) for m, level in (("lora", 0.5), ("rslora", 0.6))]
    for record in records:
        for metrics in (record["metrics"], record["base"]["extended"]):
            whole = metrics["lim/accuracy"]
            whole["by_example"] = [credit[:1] for credit in whole["by_example"]]
    table, rows = table_of(*records)
    difference = answers(0.6)[:, 0] - answers(0.5)[:, 0]
    better, worse = int((difference > 0).sum()), int((difference < 0).sum())
    expected = stats.binomtest(better, better + worse).pvalue
    (note,) = [n for n in table.notes if "ranked, vs lora, Holm-adjusted p-values" in n]
    p = float(note.partition("rslora ")[2].split(" (one seed: variation between seeds is not")[0])
    assert p == pytest.approx(expected, abs=0.01)
    assert rows["rslora"]["retrieval_reference"].text.endswith("], one seed")


def test_other_prompts_are_not_paired():
    records = [
        with_answers(make_record("lora"), 0.5),
        with_answers(make_record("rslora"), 0.6),
        with_answers(make_record("hylorada"), 0.6, sha="cd" * 32),
    ]
    table, rows = table_of(*records)
    assert rows["hylorada"]["retrieval"].text == "other prompts"
    assert "retrieval_reference" not in rows["hylorada"]
    assert rows["rslora"]["retrieval_reference"].value > 0
    (note,) = [n for n in table.notes if "ranked, vs lora, Holm-adjusted p-values" in n]
    assert "hylorada" not in note


def test_records_without_answers_by_example_read_as_before():
    records = [with_context(make_record(m)) for m in ("lora", "hylorada")]
    table, rows = table_of(*records)
    assert "retrieval_reference" not in {column.key for column in table.columns}
    assert rows["lora"]["retrieval"].low is None
    assert not any("ranked, against" in note for note in table.notes)


def test_the_bars_of_several_seeds_hold_the_spread_between_them():
    records = [with_answers(make_record("lora", seed), 0.5) for seed in range(3)]
    for captions, chosen in (("one seed: variation", records[:1]), ("and seeds; mean", records)):
        comparisons, _ = compare([Record(Path(r["name"]), copy.deepcopy(r)) for r in chosen])
        assert captions in accuracy_by_depth(comparisons[0], "", "x").caption
