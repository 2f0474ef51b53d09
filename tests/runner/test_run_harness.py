"""LongBench in whole runs, on a random two-layer model of bytes and a few rows of our own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal

import pytest
from helpers.tiny_runs import make_config, make_model_folder, make_texts

from hylorada.errors import DataError, Interrupted
from hylorada.evaluation import harness, harness_questions
from hylorada.evaluation.measurements.harness import Harness
from hylorada.records.schema import record_flaws
from hylorada.runner.evaluate import evaluate_run
from hylorada.runner.run import run
from hylorada.settings.fingerprint import run_name

pytest.importorskip("lm_eval", reason="the extra harness is not installed")

WINDOW = 160  # bytes; the prompts are longer
NAMES = {"longbench/trec", "longbench/hotpotqa", "longbench/average", "longbench/trec_e"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    make_model_folder(folder / "model")
    make_texts(folder / "texts")
    (folder / "rows").mkdir()
    for task in ("trec", "hotpotqa", "trec_e"):
        rows = [
            {
                "input": "Where?", "context": "a b c d " * 20, "answers": ["a b", "c"],
                "length": 3900 + 60 * i, "dataset": task, "language": "en", "_id": str(i),
                "all_classes": ["a b", "c", "d"] if "trec" in task else None,
            }
            for i in range(4)
        ]  # fmt: skip
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "rows" / f"{task}.jsonl").write_text(lines)
    return folder


def asked(root, **changes):
    return make_config(
        root,
        **{
            "integrity__enabled": False,
            "length__max_length": WINDOW,
            "train__max_steps": 1,
            "train__micro_batch_size": 1,
            "eval__perplexity__conventions": [],
            "eval__harness__enabled": True,
            "eval__harness__tasks": ["longbench_trec", "longbench_hotpotqa", "longbench_trec_e"],
            "eval__harness__limit": 3,
            "eval__harness__longbench_path": str(root / "rows"),
            **changes,
        },
    )


@pytest.fixture(scope="module")
def done(root):
    config = asked(root)
    return config, run(config), root / "outputs" / "main" / run_name(config)


def test_the_record_holds_the_scores_of_the_run_and_of_the_base(done):
    _, record, directory = done
    assert json.loads((directory / "result.json").read_text()) == record
    assert list(record_flaws(record, whole=True)) == []
    for metrics in (record["metrics"], record["base"]["extended"]):
        assert set(metrics) == NAMES
        for name, score in metrics.items():
            assert 0 <= score["low"] <= score["value"] <= score["high"] <= 100
            assert (score["window"], score["limit"], score["lm_eval"][:2]) == (WINDOW, 3, "0.")
            if "average" not in name:
                assert (score["examples"], score["cut"]) == (3, 3)
                assert score["prompt_tokens"][0] > WINDOW
        # 3900, 3960 and 4020 words: the first three rows, in their buckets
        assert [b["examples"] for b in metrics["longbench/trec_e"]["by_length"]] == [2, 1]
        assert metrics["longbench/average"]["tasks"] == ["trec", "hotpotqa"]
    for name, score in record["metrics"].items():
        assert score["questions_sha256"] == record["base"]["extended"][name]["questions_sha256"]
    assert len({m["questions_sha256"] for m in record["metrics"].values()}) == len(NAMES)
    last = json.loads((directory / "metrics.jsonl").read_text().splitlines()[-1])
    assert set(last) == {"step", *NAMES}


@pytest.mark.slow
def test_the_base_is_asked_once_for_all_runs(done, root, monkeypatch, capsys):
    _, first, _ = done
    titles = []
    real = Harness.measure

    def spy(self, model, asked, attempt):
        titles.append(attempt._title)
        return real(self, model, asked, attempt)

    monkeypatch.setattr(Harness, "measure", spy)
    record = run(asked(root, seed=1))
    assert titles == ["hylorada"]
    assert record["base"] == first["base"]
    out = capsys.readouterr().out
    assert "scores from 0 to 100, window 160" in out
    assert "longbench/trec_e" in out


@pytest.mark.slow
def test_a_signal_ends_it_at_the_next_question_and_it_continues(done, root, monkeypatch):
    config, record, _ = done
    directory = root / "interrupted"
    real, asked_for, stopping = harness.ask, [], True

    def ask(*arguments, progress, **options):
        def counted(replies, total):
            asked_for.append(len(replies))
            if stopping and len(replies) == 4:
                signal.raise_signal(signal.SIGTERM)
            progress(replies, total)

        return real(*arguments, progress=counted, **options)

    monkeypatch.setattr(harness, "ask", ask)
    with pytest.raises(Interrupted):
        run(config, directory)
    assert asked_for == [1, 2, 3, 4]
    (kept,) = directory.glob(".evaluation.partial-harness")
    assert len(json.loads(kept.read_text())["done"]) == 4
    stopping = False
    assert run(config, directory)["metrics"] == record["metrics"]
    assert asked_for == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert not list(directory.glob(".evaluation*"))


@pytest.mark.slow
def test_a_finished_run_gets_the_scores_added(done, root, capsys):
    config, record, _ = done
    plain = asked(root, eval__perplexity__conventions=["blocks"], eval__harness__enabled=False)
    before = run(plain)
    directory = root / "outputs" / "main" / run_name(plain)
    plain.eval = config.eval
    after = evaluate_run(directory, plain)
    assert after["metrics"]["eval/ppl"] == before["metrics"]["eval/ppl"]
    assert {k: v for k, v in after["metrics"].items() if k in NAMES} == record["metrics"]
    assert (
        after["base"]["extended"]["longbench/trec"] == record["base"]["extended"]["longbench/trec"]
    )
    (entry,) = after["evaluations"]
    assert set(entry["eval"]) == {"harness"}
    assert after["config"]["eval"]["harness"]["limit"] == 3
    assert "longbench/hotpotqa" in capsys.readouterr().out

    # Fewer tasks: an average of others must not stay beside them.
    before = json.loads(json.dumps(after))
    harness = dataclasses.replace(plain.eval.harness, tasks=["longbench_hotpotqa"])
    plain.eval = dataclasses.replace(plain.eval, harness=harness)
    after = evaluate_run(directory, plain)
    for metrics in (after["metrics"], after["base"]["extended"]):
        assert set(metrics) == {"eval/ppl", "longbench/hotpotqa", "longbench/trec_e"}
    replaced = after["evaluations"][1]["replaced"]
    assert replaced == {
        name: before["metrics"][name] for name in ("longbench/trec", "longbench/average")
    }


def test_a_signal_that_lm_eval_swallows_stops_it_at_the_next_task(root, monkeypatch):
    made = []

    def swallow(task, *_):
        with contextlib.suppress(Exception):  # as its samplers do
            signal.raise_signal(signal.SIGTERM)
            made.append(task)  # nothing was raised inside
        return []

    monkeypatch.setattr(harness_questions, "_longbench", swallow)
    with pytest.raises(Interrupted) as caught:
        run(asked(root), root / "stopped")
    assert (made, caught.value.exit_code) == (["longbench_trec"], 143)


def test_a_task_that_the_data_does_not_hold_is_one_line(root):
    with pytest.raises(DataError, match=r"eval\.harness: .*no qasper"):
        run(asked(root, eval__harness__tasks=["longbench_qasper"]), root / "missing")


def test_an_answer_that_cannot_be_scored_is_told_before_a_question_is_asked(root, tmp_path):
    row = {
        "input": "", "context": "a b", "answers": ["the third"], "length": 9, "language": "en",
        "dataset": "passage_retrieval_en", "_id": "0", "all_classes": None,
    }  # fmt: skip
    (tmp_path / "passage_retrieval_en.jsonl").write_text(json.dumps(row) + "\n")
    changes = {
        "eval__harness__tasks": ["longbench_passage_retrieval_en"],
        "eval__harness__longbench_path": str(tmp_path), "output_root": str(tmp_path / "out"),
    }  # fmt: skip
    with pytest.raises(DataError, match="names no paragraph"):
        run(asked(root, **changes))
    assert not (tmp_path / "out" / ".cache").exists()
