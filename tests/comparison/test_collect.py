"""Records as they lie on a disk: nested, damaged, failed, doubled."""

from __future__ import annotations

import json
import shutil

import pytest
from helpers.records import make_record, write
from helpers.unreadable import no_permission

from hylorada.comparison.collect import collect
from hylorada.errors import DataError


def test_finds_records_at_any_depth_in_a_fixed_order(tmp_path):
    write(tmp_path / "a" / "b", make_record("lora"))
    write(tmp_path / "a", make_record("hylorada"))
    records = collect([tmp_path]).records
    assert [r.data["method"] for r in records] == ["lora", "hylorada"]
    assert [line["step"] for line in records[0].history][:2] == [1, 2]
    # Folders may overlap, and a record may be named directly.
    again = collect([tmp_path, tmp_path / "a", records[0].path / "result.json"])
    assert [r.path for r in again.records] == [r.path for r in records]
    assert not again.problems


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: "{ half a rec", "not JSON"),
        (lambda r: "[]", "no object"),
        (lambda r: r | {"schema": 2}, "schema 2"),
        (lambda r: {k: v for k, v in r.items() if k != "seed"}, "no field 'seed'"),
        (lambda r: r | {"length": "4096"}, "'length' is str"),
        (lambda r: r | {"status": "fine"}, "'status' is 'fine'"),
        (lambda r: r | {"metrics": {"eval/ppl": {}}}, "no field 'metrics.eval/ppl.value'"),
    ],
)
def test_a_damaged_record_is_named_and_the_others_are_used(tmp_path, change, reason):
    write(tmp_path, make_record("lora"))
    bad = change(make_record("hylorada"))
    (tmp_path / "bad").mkdir()
    text = bad if isinstance(bad, str) else json.dumps(bad)
    (tmp_path / "bad" / "result.json").write_text(text)
    collection = collect([tmp_path])
    assert [r.data["method"] for r in collection.records] == ["lora"]
    (problem,) = collection.problems
    assert problem.path == tmp_path / "bad" / "result.json"
    assert reason in problem.reason


def test_a_folder_in_the_place_of_a_record_is_named(tmp_path):
    write(tmp_path, make_record("lora"))
    (tmp_path / "bad/result.json").mkdir(parents=True)
    (problem,) = collect([tmp_path]).problems
    assert problem.path == tmp_path / "bad/result.json"
    assert problem.reason == "cannot be read (Is a directory)"


def test_a_folder_that_may_not_be_listed_is_named(tmp_path):
    write(tmp_path, make_record("lora"))
    (tmp_path / "hidden").mkdir()
    no_permission(tmp_path / "hidden")
    (problem,) = collect([tmp_path, tmp_path]).problems
    (tmp_path / "hidden").chmod(0o700)
    assert problem.path == tmp_path / "hidden"
    assert problem.reason == "cannot be read (Permission denied)"


@pytest.mark.parametrize("number", ["1e308", "-1e200", "1" + "0" * 400])
def test_a_number_too_large_to_compute_with_is_named(tmp_path, number):
    write(tmp_path, make_record("lora"))
    bad = make_record("hylorada")
    bad["metrics"]["eval/ppl"]["value"] = -12345.5
    (tmp_path / "bad").mkdir()
    text = json.dumps(bad).replace("-12345.5", number)
    (tmp_path / "bad" / "result.json").write_text(text)
    collection = collect([tmp_path])
    assert [r.data["method"] for r in collection.records] == ["lora"]
    assert "metrics.eval/ppl.value is too large" in collection.problems[0].reason


def test_of_two_records_of_the_same_settings_the_finished_one_counts(tmp_path):
    ok = make_record("lora")
    failed = {**make_record("lora", status="failed"), "name": "a-first"}
    assert failed["fingerprint"] == ok["fingerprint"]
    write(tmp_path, failed, ok)
    collection = collect([tmp_path])
    assert [r.status for r in collection.records] == ["ok"]
    assert "the same settings as" in collection.problems[0].reason


def test_caches_and_earlier_attempts_are_no_runs(tmp_path):
    write(tmp_path, make_record("lora"))
    run = next(tmp_path.iterdir())
    other = json.dumps(make_record("hylorada"))
    for name in (".cache", "earlier-1"):
        (run / name).mkdir()
        (run / name / "result.json").write_text(other)
    assert len(collect([tmp_path]).records) == 1


def test_a_half_written_last_line_of_the_metrics_is_left_out(tmp_path):
    write(tmp_path, make_record("lora"))
    path = next(tmp_path.iterdir()) / "metrics.jsonl"
    path.write_text(path.read_text()[:-30])
    (record,) = collect([tmp_path]).records
    assert len(record.history) == 39
    shutil.rmtree(tmp_path / record.path.name)


@pytest.mark.parametrize("make", [lambda p: p / "absent", lambda p: p])
def test_nothing_there_is_one_line(tmp_path, make):
    with pytest.raises(DataError) as error:
        collect([make(tmp_path)])
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert error.value.exit_code == 3


def test_only_damaged_records_says_what_is_wrong_with_them(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(DataError, match="no field 'status'"):
        collect([tmp_path])
