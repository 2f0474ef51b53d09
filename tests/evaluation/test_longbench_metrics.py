"""LongBench's metrics: the published scores of published predictions, and their quirks."""

from __future__ import annotations

import builtins
import json
import os
from pathlib import Path

import pytest

from hylorada.errors import ConfigError, DataError
from hylorada.evaluation import longbench_metrics as module
from hylorada.evaluation.longbench_metrics import (
    METRICS,
    classification,
    code_similarity,
    rouge_l,
    score_row,
    score_task,
    token_f1,
)

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("HYLORADA_DATA") or ROOT.parent / "shared" / "data")
PREDICTIONS = DATA / "longbench" / "pred" / "llama2-7b-chat-4k"
CHINESE = ("multifieldqa_zh", "dureader", "vcsum")
SLOW = (*CHINESE, "gov_report", "multi_news")


@pytest.mark.skipif(not PREDICTIONS.is_dir(), reason=f"no real data at {DATA} (HYLORADA_DATA)")
@pytest.mark.parametrize(
    "task", [pytest.param(t, marks=pytest.mark.slow) if t in SLOW else t for t in METRICS]
)
def test_reproduces_the_published_score(task):
    if task in CHINESE:
        pytest.importorskip("jieba", reason="the extra longbench is not installed")
    published = json.loads((PREDICTIONS / "result.json").read_text())
    lines = (PREDICTIONS / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
    assert score_task(task, [json.loads(line) for line in lines]) == published[task]


def test_all_21_tasks_are_there():
    assert len(METRICS) == 21


def naive_words(expected, predicted):
    """A longest common subsequence by its recursive definition, ties as published."""

    def length(i, j):
        if not i or not j:
            return 0
        if expected[i - 1] == predicted[j - 1]:
            return length(i - 1, j - 1) + 1
        return max(length(i - 1, j), length(i, j - 1))

    def walk(i, j):
        if not i or not j:
            return set()
        if expected[i - 1] == predicted[j - 1]:
            return walk(i - 1, j - 1) | {expected[i - 1]}
        return walk(i - 1, j) if length(i - 1, j) > length(i, j - 1) else walk(i, j - 1)

    return walk(len(expected), len(predicted))


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("a b c d. e f", "b a d c e"),
        ("a a b. c", "a b a. c. a c"),
        ("the cat sat. on it", "a cat. sat on the mat"),
        ("x y z", "z y x"),
        ("one two three one two", "two one two three"),
    ],
)
def test_rouge_is_the_f1_of_the_words_on_common_subsequences(prediction, answer):
    split = lambda text: [s.split() for s in text.split(".")]  # noqa: E731
    found = {w for e in split(answer) for p in split(prediction) for w in naive_words(e, p)}
    recall = len(found) / len({w for s in split(answer) for w in s})
    precision = len(found) / len({w for s in split(prediction) for w in s})
    expected = 2 * precision * recall / (precision + recall)
    assert rouge_l(prediction, answer) == pytest.approx(expected, abs=1e-7)


def test_rouge_of_nothing_is_nothing():
    assert rouge_l("", "a") == rouge_l("a", "...") == 0.0


def test_f1_counts_repetitions():
    assert token_f1(["a", "a", "b"], ["a", "c"]) == pytest.approx(2 * (1 / 3) * 0.5 / (1 / 3 + 0.5))
    assert token_f1([], ["a"]) == 0.0


def test_a_class_inside_the_right_one_does_not_count():
    classes = ["Animal", "Other animal", "Food"]
    assert classification("Other animal", "Other animal", classes) == 1.0
    assert classification("Food or Other animal", "Other animal", classes) == 0.5
    assert classification("none of them", "Food", classes) == 0.0
    # As published: the class behind a removed one is passed over, or "b" would go, too.
    assert classification("a b c", "a b c", ["a", "b", "a b c"]) == 0.5


def test_code_is_compared_by_its_first_line_that_is_no_comment():
    assert code_similarity("\n# no\n// no\nx = 1\ny", "x = 1", ()) == 1.0
    assert code_similarity("```", "x", ()) == 0.0
    # fuzzywuzzy's ratio; with python-Levenshtein installed it says 0.6 and 0.8 of these two.
    assert code_similarity(" ) )=", "=)=)=", ()) == 0.4
    assert code_similarity("a(a a", "a a a", ()) == 0.6


def test_the_best_reference_counts_and_some_tasks_take_the_first_line():
    assert score_row("triviaqa", "\nparis\nQuestion: rome", ["rome", "paris"]) == 1.0
    assert score_row("hotpotqa", "paris\nrome", ["paris"]) == pytest.approx(2 / 3)
    assert score_row("passage_retrieval_en", "Paragraph 3, not 4", ["Paragraph 3"]) == 0.5
    assert score_row("passage_count_e", "12", ["12"]) == 1.0


def test_mistakes_are_one_line(monkeypatch):
    with pytest.raises(ConfigError, match="unknown task 'qasperr'"):
        score_row("qasperr", "", [""])
    with pytest.raises(DataError, match="no predictions"):
        score_task("qasper", [])
    with pytest.raises(DataError, match="names no paragraph"):
        score_row("passage_retrieval_en", "3", ["three"])
    module._segmenter.cache_clear()
    real = builtins.__import__

    def without_jieba(name, *rest):
        if name == "jieba":
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_jieba)
    with pytest.raises(ConfigError, match=r"pip install 'hylorada\[longbench\]'"):
        score_row("dureader", "a", ["a"])
