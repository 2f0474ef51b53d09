"""Lost in the middle: prompts, rigged models with known answers, scores."""

from __future__ import annotations

import gzip
import json
import math
import os
from pathlib import Path

import pytest
import torch
from helpers.families import make_model
from helpers.rigged import Characters, Copier

from hylorada.errors import ConfigError, DataError
from hylorada.evaluation import retrieval_prompts as prompts_of
from hylorada.evaluation.lost_in_middle import evaluate_retrieval, keys_that_fit
from hylorada.evaluation.retrieval_prompts import DEPTHS, KeyValues, generate_key_values
from hylorada.evaluation.retrieval_scores import (
    best_subspan_em,
    contains_value,
    rank_credit,
)
from hylorada.statistics.shares import wilson_interval

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("HYLORADA_DATA") or ROOT.parent / "shared" / "data")
needs_data = pytest.mark.skipif(
    not (DATA / "lost-in-the-middle").is_dir(), reason=f"no real data at {DATA} (HYLORADA_DATA)"
)
KEY_FILE = DATA / "lost-in-the-middle" / "kv-retrieval-75_keys.jsonl.gz"


def asked(examples, depths=DEPTHS):
    return [e.prompt(depth, i) for i, e in enumerate(examples) for depth in depths]


def test_the_prompt_is_the_published_one():
    example = KeyValues((("k1", "v1"), ("k2", "v2"), ("k3", "v3")), "k2", "v2")
    prompt = example.prompt(0.5, 0)
    assert prompt.text == "\n".join([
        "Extract the value corresponding to the specified key in the JSON object below.",
        "",
        "JSON data:",
        '{"k1": "v1",',
        ' "k2": "v2",',
        ' "k3": "v3"}',
        "",
        'Key: "k2"',
        "Corresponding value:",
    ])  # fmt: skip
    assert prompt.candidates[prompt.gold] == ' "v2"'


def test_only_the_place_of_the_pair_changes_with_depth():
    (example,) = generate_key_values(9, 1)
    prompts = asked([example])
    for prompt, index in zip(prompts, (0, 2, 4, 6, 8), strict=True):
        records = json.loads(prompt.text.partition("JSON data:\n")[2].partition("\n\nKey")[0])
        assert list(records)[index] == example.key
        assert prompt.gold == index
        assert sorted(records.items()) == sorted(example.records)
        others = [key for key in records if key != example.key]
        assert others == [key for key, _ in example.records if key != example.key]
        assert [json.loads(c) for c in prompt.candidates] == list(records.values())


@needs_data
def test_the_published_file_is_read_and_its_prompts_are_json():
    examples = prompts_of.read_key_values(KEY_FILE)
    assert len(examples) == 500
    assert {len(example.records) for example in examples} == {75}
    first = examples[0].prompt(0.0, 0)
    assert first.text.startswith(
        "Extract the value corresponding to the specified key in the JSON object below.\n\n"
        f'JSON data:\n{{"{examples[0].key}": "{examples[0].value}",\n "'
    )
    assert first.text.endswith(f'"}}\n\nKey: "{examples[0].key}"\nCorresponding value:')


def test_generated_examples_are_a_function_of_the_seed():
    assert generate_key_values(5, 3, seed=1) == generate_key_values(5, 3, seed=1)
    assert generate_key_values(5, 3, seed=1) != generate_key_values(5, 3, seed=2)
    # More examples leave the first ones as they are.
    assert generate_key_values(5, 9, seed=1)[:3] == generate_key_values(5, 3, seed=1)


@pytest.mark.parametrize("form", ["uuid", "hex"])
def test_keys_to_tune_on_are_never_asked_for(form):
    train = generate_key_values(50, 20, form=form, split="train")
    test = generate_key_values(50, 20, form=form, split="test")
    keys = [{key for example in s for key, _ in example.records} for s in (train, test)]
    assert len(keys[0]) == len(keys[1]) == 1000
    assert not keys[0] & keys[1]


def test_a_model_that_copies_is_right_at_every_depth():
    prompts = asked(generate_key_values(12, 3, form="hex"))
    results = evaluate_retrieval(
        Copier(), Characters(), prompts, 2000, scorings=("ranked", "generated")
    )
    for result in results.values():
        assert [score.accuracy for score in result.by_depth] == [1.0] * 5
        assert [score.depth for score in result.by_depth] == list(DEPTHS)
        assert result.middle_gap == 0.0
        assert result.accuracy == 1.0
        assert all(score.low > 0.4 and score.high == 1.0 for score in result.by_depth)
    assert results["ranked"].chance == pytest.approx(1 / 12)


def test_a_model_blind_to_the_first_half_is_at_chance_there():
    prompts = asked(generate_key_values(12, 3, form="hex"))
    results = evaluate_retrieval(
        Copier(blind_before=0.65), Characters(), prompts, 2000, scorings=("ranked", "generated")
    )
    ranked = [score.accuracy for score in results["ranked"].by_depth]
    assert ranked == [pytest.approx(1 / 12)] * 3 + [1.0] * 2
    assert [s.accuracy for s in results["generated"].by_depth] == [0.0] * 3 + [1.0] * 2
    # Ends (1/12 + 1) / 2, middle (1/12 + 1/12 + 1) / 3; the same in every example.
    gap = (1 / 12 + 1) / 2 - (2 / 12 + 1) / 3
    result = results["ranked"]
    assert result.middle_gap == pytest.approx(gap)
    # All three examples agree, which is no certainty.
    assert result.middle_gap_low < gap - 0.1 < gap + 0.1 < result.middle_gap_high
    assert result.by_example == [pytest.approx([1 / 12] * 3 + [1.0] * 2)] * 3
    assert result.low < result.accuracy < result.high


def test_a_real_model_scores_the_same_after_an_interruption():
    model, tokenizer = make_model("gpt2", trained_length=512), SmallVocabulary()
    prompts = asked(generate_key_values(4, 3, form="hex"), (0.0, 0.5, 1.0))
    whole = evaluate_retrieval(model, tokenizer, prompts, 512)
    kept = []

    def stop(answers, total):
        assert total == 9
        kept[:] = answers
        if len(answers) == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        evaluate_retrieval(model, tokenizer, prompts, 512, progress=stop)
    assert len(kept) == 4
    assert evaluate_retrieval(model, tokenizer, prompts, 512, done=kept) == whole
    record = json.loads(json.dumps(whole["ranked"].to_dict(), allow_nan=False))
    assert record["chance"] == 0.25
    assert set(record["by_depth"][0]) == {"depth", "prompts", "accuracy", "low", "high"}


class SmallVocabulary(Characters):
    """Characters folded into the 97 tokens of the tiny models."""

    def ids(self, text):
        return [1 + ord(c) % 90 for c in text]


def test_the_number_of_keys_fills_the_window():
    tokenizer = Characters()
    keys = keys_that_fit(tokenizer, 1000, "hex")
    lengths = [len(p.text) + 11 for p in asked(generate_key_values(keys, 20, form="hex"))]
    assert 900 < max(lengths) <= 1000
    with pytest.raises(DataError, match="not even two uuid pairs fit a window of 100 tokens"):
        keys_that_fit(tokenizer, 100)


def test_a_prompt_beyond_the_window_is_refused_with_both_lengths():
    prompts = asked(generate_key_values(12, 1, form="hex"))
    length = len(prompts[0].text)
    with pytest.raises(DataError, match=rf"{length} tokens .* window of 300"):
        evaluate_retrieval(Copier(), Characters(), prompts, 300)


def test_bad_questions_are_refused():
    records = (("a", "1"), ("b", "2"))
    with pytest.raises(DataError, match="not in the context"):
        KeyValues(records, "a", "2")
    with pytest.raises(DataError, match="twice"):
        KeyValues((*records, ("a", "3")), "a", "1")
    with pytest.raises(DataError, match="at least 2"):
        KeyValues((("a", "1"),), "a", "1")
    with pytest.raises(ConfigError, match=r"depth 1\.5"):
        KeyValues(records, "a", "1").prompt(1.5, 0)
    with pytest.raises(DataError, match="no prompts"):
        evaluate_retrieval(Copier(), Characters(), [], 100)
    with pytest.raises(ConfigError, match="guessed"):
        evaluate_retrieval(Copier(), Characters(), [1], 100, scorings=("guessed",))
    prompt = prompts_of.RetrievalPrompt("a", (), 0, "b", 0.0, 0)
    with pytest.raises(DataError, match="no candidates"):
        evaluate_retrieval(Copier(), Characters(), [prompt], 100)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"{}", "line 1 has no"), (b"no json", "cannot be read"), (b"", "no rows")],
)
def test_a_file_of_another_form_is_one_line(tmp_path, content, words):
    path = tmp_path / "keys.jsonl.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=words):
        prompts_of.read_key_values(path)
    path.write_bytes(b"not gzip")
    with pytest.raises(DataError, match="cannot be read"):
        prompts_of.read_key_values(path)


@pytest.mark.parametrize(
    ("reader", "row", "words"),
    [
        ("read_key_values", 3, "line 2 is no object"),
        ("read_key_values", {"ordered_kv_records": [["a", "b", "c"]]}, "ordered_kv_records is"),
        ("read_key_values", {"ordered_kv_records": None}, "ordered_kv_records is empty or of"),
        ("read_key_values", {"key": 5}, "line 2: key is empty or of the wrong type"),
        ("read_questions", {"ctxs": []}, "ctxs is empty or of the wrong type"),
        ("read_questions", {"ctxs": [{"title": "t"}]}, "ctxs is empty"),
        ("read_questions", {"answers": None}, "answers is empty or of the wrong type"),
        ("read_questions", {"answers": ["no such thing"]}, "the answer is not in the passage"),
    ],
)
def test_rows_of_wrong_types_are_one_line_with_their_number(tmp_path, reader, row, words):
    right = {
        "ordered_kv_records": [["a", "b"], ["c", "d"]], "key": "a", "value": "b",
        "question": "who?", "answers": ["it"], "ctxs": [{"title": "t", "text": "It is."}],
    }  # fmt: skip
    path = tmp_path / "rows.jsonl"
    wrong = right | row if isinstance(row, dict) else row
    path.write_text(json.dumps(right) + "\n" + json.dumps(wrong) + "\n")
    with pytest.raises(DataError, match=words):
        getattr(prompts_of, reader)(path)


RIGHT = {"ordered_kv_records": [["a", "b"], ["c", "d"]], "key": "a", "value": "b"}
HOSTILE = {
    "digits": ('{"key": ' + "7" * 5000 + "}", "line 2 cannot be read as JSON"),
    "brackets": ("[" * 100_000, "line 2 cannot be read as JSON .nested too deeply"),
    "long": ('{"key": "' + "x" * (1 << 24), "line 2 has 16,777,216 characters and more"),
}


@pytest.mark.parametrize(("line", "words"), HOSTILE.values(), ids=HOSTILE)
def test_lines_that_cost_more_than_they_are_worth_are_named(tmp_path, line, words):
    path = tmp_path / "keys.jsonl.gz"
    path.write_bytes(gzip.compress(f"{json.dumps(RIGHT)}\n{line}".encode()))
    with pytest.raises(DataError, match=words):
        prompts_of.read_key_values(path)


@pytest.mark.parametrize("name", ["keys.jsonl", "keys.jsonl.gz"])
def test_a_mark_at_the_beginning_of_the_file_is_none_of_its_text(tmp_path, name):
    data = f"{json.dumps(RIGHT)}\n".encode()
    path = tmp_path / name
    found = []
    for written in (data, b"\xef\xbb\xbf" + data):
        path.write_bytes(gzip.compress(written) if name.endswith("gz") else written)
        found.append(prompts_of.read_key_values(path))
    assert found[0] == found[1] != []


def test_damaged_compressed_files_are_one_line(tmp_path):
    path = tmp_path / "keys.jsonl.gz"
    content = bytearray(gzip.compress(json.dumps({"key": "a" * 999}).encode() * 50))
    for i in range(20, len(content), 7):
        content[i] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as JSON lines"):
        prompts_of.read_key_values(path)


@needs_data
def test_best_subspan_em_reproduces_the_scored_predictions_row_by_row():
    (path,) = (DATA / "lost-in-the-middle" / "predictions").glob("*.jsonl.gz")
    with gzip.open(path, "rt") as file:
        rows = [json.loads(line) for line in file]
    assert len(rows) == 2655
    for row in rows:
        got = best_subspan_em(row["model_answer"], row["answers"])
        assert got == row["metric_best_subspan_em"], row


def test_the_question_prompt_is_the_published_one():
    text = prompts_of.question_text("who?", [("first", "one"), ("second", "two")])
    assert text == (
        "Write a high-quality answer for the given question using only the provided search results "
        "(some of which might be irrelevant).\n\nDocument [1](Title: first) one\n"
        "Document [2](Title: second) two\n\nQuestion: who?\nAnswer:"
    )


@needs_data
def test_questions_keep_their_gold_document_and_no_distractor_answers():
    rows = prompts_of.read_questions(DATA / "lost-in-the-middle" / "nq-open-oracle.jsonl.gz")
    prompts = prompts_of.question_prompts(rows[:60], documents=10, depths=(0.0, 0.5, 1.0))
    assert len(prompts) == 180
    for prompt in prompts:
        row = rows[prompt.example]
        documents = prompt.text.split("\n\nQuestion:")[0].split("\nDocument [")[1:]
        assert len(documents) == 10
        gold = row["ctxs"][0]["text"]
        place = {0.0: 0, 0.5: 4, 1.0: 9}[prompt.depth]
        assert gold.split("\n")[0] in documents[place]
        for i, document in enumerate(documents):
            if i != place:
                assert not any(
                    a.lower() in document.split(") ", 1)[1].lower() for a in row["answers"]
                )


def test_passkey_prompts_hide_one_number():
    prompts = prompts_of.passkey_prompts(20, 3)
    assert len(prompts) == 15
    for prompt in prompts:
        lines = prompt.text.split("\n")
        assert lines[1 + round(prompt.depth * 20)].startswith(f"The pass key is {prompt.answer}.")
        assert prompt.candidates[prompt.gold] == f" {prompt.answer}"
        assert len(set(prompt.candidates)) == 50
        assert sum(c.strip() in prompt.text for c in prompt.candidates) == 1


def test_ties_are_worth_chance():
    assert rank_credit([1.0, 3.0, 2.0], 1) == 1.0
    assert rank_credit([1.0, 3.0, 2.0], 2) == 0.0
    assert rank_credit([3.0, 3.0, 2.0], 0) == 0.5
    assert rank_credit([0.0] * 75, 40) == pytest.approx(1 / 75)


def test_contains_value_ignores_case():
    assert contains_value(' "ABC-1"}', "abc-1") == 1.0
    assert contains_value("abd", "abc") == 0.0


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (10, 10), (3, 10), (250, 500)])
def test_the_wilson_interval_solves_its_equation(correct, total):
    """Its ends are the p with |share - p| = z sqrt(p (1 - p) / n)."""
    low, high = wilson_interval(correct, total)
    share = correct / total
    assert 0 <= low <= share <= high <= 1
    for p in (low, high):
        if 0 < p < 1:
            z = abs(share - p) / math.sqrt(p * (1 - p) / total)
            assert z == pytest.approx(1.96, abs=1e-3)


def test_evaluation_leaves_training_flags():
    model = make_model("gpt2", trained_length=512).train()
    prompts = asked(generate_key_values(3, 1, form="hex"), (0.0,))
    result = evaluate_retrieval(model, SmallVocabulary(), prompts, 512)["ranked"]
    assert all(module.training for module in model.modules())
    assert result.middle_gap is None
    assert torch.is_grad_enabled()
