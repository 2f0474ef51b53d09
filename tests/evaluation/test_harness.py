"""The lm-eval bridge: real lm-eval, real generation, models that say what is known."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers.marks import on_request, slow
from helpers.rigged_generation import END, Rigged, byte_tokenizer

from hylorada.errors import ConfigError, DataError, Interrupted
from hylorada.evaluation.harness import Reply, ask, cut_middle
from hylorada.evaluation.harness_questions import (
    Question,
    make_questions,
    questions_sha256,
)
from hylorada.evaluation.harness_scores import score_replies
from hylorada.evaluation.longbench_metrics import score_row
from hylorada.settings import harness_tasks
from hylorada.statistics.shares import wilson_interval

pytest.importorskip("lm_eval", reason="the extra harness is not installed")

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("HYLORADA_DATA") or ROOT.parent / "shared" / "data")
ARCHIVE = DATA / "longbench" / "data.zip"
needs_data = pytest.mark.skipif(not ARCHIVE.is_file(), reason=f"no real data: {ARCHIVE}")

ROW = {"input": "INPUT", "context": "CONTEXT", "answers": ["A"], "all_classes": None, "length": 9}


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch):
    monkeypatch.setattr("nltk.download", lambda *_, **__: False)


def one(task, tokenizer, **changes):
    (question,) = make_questions([task], {task: [ROW | changes]}, tokenizer, 4096)
    return question


def asked(text, answer_tokens=8, **generation):
    settings = {"do_sample": False, "until": [], "max_gen_toks": answer_tokens, **generation}
    return Question("longbench_qasper", 0, text, settings, dict(ROW))


# --- the questions of LongBench ---------------------------------------------------------------


def test_every_task_of_longbench_is_asked_with_its_official_number_of_tokens(tokenizer):
    for task in (*harness_tasks.LONGBENCH, *harness_tasks.LONGBENCH_E):
        question = one(task, tokenizer)
        assert question.answer_tokens == harness_tasks.longbench_answer_tokens(task), task
        assert question.generation["do_sample"] is False
        assert "CONTEXT" in question.prompt
        without = ("gov_report", "multi_news", "vcsum", "passage_count", "lcc")
        name = harness_tasks.longbench_file(task).removesuffix("_e")
        assert ("INPUT" in question.prompt) == (name not in without), task


@pytest.mark.parametrize(
    ("task", "end"),
    [
        ("triviaqa", "examples.\n\nCONTEXT\n\nINPUT"),
        ("samsum_e", "examples.\n\nCONTEXT\n\nINPUT"),
        ("trec", "questions.\n\nCONTEXT\nINPUT"),
        ("passage_count", "The final answer is: "),
        ("passage_retrieval_en_e", "The answer is: "),
        ("lcc", "given below. \nCONTEXTNext line of code:\n"),
        ("repobench-p", "CONTEXTINPUTNext line of code:\n"),
        ("hotpotqa", "Question: INPUT\nAnswer:"),
    ],
)
def test_prompts_end_as_the_authors_published_them(tokenizer, task, end):
    assert one(f"longbench_{task}", tokenizer).prompt.endswith(end)


@needs_data
def test_a_prompt_of_a_real_row_holds_its_context_and_its_question_whole(tokenizer):
    with zipfile.ZipFile(ARCHIVE) as archive:
        row = json.loads(archive.open("data/passage_retrieval_zh.jsonl").readline())
    task = "longbench_passage_retrieval_zh"
    (question,) = make_questions([task], {task: [row]}, tokenizer, 4096)
    before, context, rest = question.prompt.partition(row["context"])
    middle, asked_for, after = rest.partition(row["input"])
    assert context
    assert asked_for
    assert before == "以下是若干段落文字，以及其中一个段落的摘要。请确定给定的摘要出自哪一段。\n\n"  # noqa: RUF001
    assert middle == "\n\n下面是一个摘要\n\n"
    assert after.endswith("\n\n答案是：")  # noqa: RUF001
    assert question.document["answers"] == row["answers"]


def test_the_first_rows_are_asked_and_their_hash_follows_their_text(tokenizer):
    rows = {"longbench_trec": [ROW | {"input": str(i)} for i in range(5)]}
    questions = make_questions(["longbench_trec"], rows, tokenizer, 4096, limit=2)
    assert [q.prompt[-1] for q in questions] == ["0", "1"]
    rows["longbench_trec"][1]["input"] = "other"
    others = make_questions(["longbench_trec"], rows, tokenizer, 4096, limit=2)
    assert questions_sha256(others) != questions_sha256(questions)
    with pytest.raises(DataError, match="no rows"):
        make_questions(["longbench_trec"], {"longbench_trec": []}, tokenizer, 4096)


# --- cutting in the middle --------------------------------------------------------------------


@pytest.mark.parametrize("room", [2, 3, 10, 37, 38, 100])
@pytest.mark.parametrize("length", [1, 9, 37, 38, 101])
def test_a_long_prompt_keeps_its_first_and_its_last_half(length, room):
    ids = list(range(length))
    if length <= room:
        expected = ids
    else:  # as pred.py takes them, one by one
        half = int(room / 2)
        expected = [ids[i] for i in range(half)] + [ids[length - half + i] for i in range(half)]
    assert cut_middle(ids, room) == expected
    assert len(expected) <= room


@pytest.mark.parametrize(("length", "window"), [(55, 64), (56, 64), (57, 64), (300, 64), (300, 65)])
def test_the_model_is_given_the_two_halves_and_the_cut_is_counted(tokenizer, length, window):
    text = "".join(chr(ord("a") + i * i % 26) for i in range(length))
    model = Rigged(lambda prompt: "yes")
    (reply,) = ask(model, tokenizer, [asked(text)], window)
    room = window - 8
    (given,) = model.prompts
    ids = tokenizer.encode(text)
    assert given == (ids if length <= room else ids[: room // 2] + ids[-(room // 2) :])
    assert reply == Reply("longbench_qasper", 0, "yes", length, length > room)


def test_an_answer_is_no_longer_than_it_may_be_and_the_window_holds_both(tokenizer):
    model = Rigged(lambda prompt: "x" * 50, window=64)  # a position more would be an error
    (reply,) = ask(model, tokenizer, [asked("y" * 300)], 64)
    assert reply.text == "x" * 8


def test_autocast_reaches_the_model(tokenizer):
    seen = []

    def say(prompt):
        seen.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))
        return "yes"

    for dtype in (None, torch.bfloat16):
        ask(Rigged(say), tokenizer, [asked("text")], 64, autocast_dtype=dtype)
    assert seen == [False, torch.bfloat16]


def test_a_text_that_holds_the_end_token_is_read_whole(tokenizer):
    model = Rigged(lambda prompt: "yes")
    ask(model, tokenizer, [asked(f"one {END} two")], 64)
    assert model.tokenizer.decode(model.prompts[0]) == f"one {END} two"


@pytest.mark.parametrize("window", [8, 9])
def test_a_window_without_room_for_a_prompt_is_refused(tokenizer, window):
    with pytest.raises(ConfigError, match="leaves no room"):
        ask(Rigged(str), tokenizer, [asked("text")], window)


# --- generation -------------------------------------------------------------------------------


def test_replies_are_the_greedy_continuation_of_an_adapted_model():
    from hylorada.methods import HyloradaConfig, adapt

    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    base = Rigged(str, window=64)
    base.__class__ = Rigged.__mro__[1]  # plain GPT-2 again, random
    config = HyloradaConfig.for_length(
        96, trained_length=64, position_bias_enabled=True, landmark_enabled=True
    )
    model = adapt(base, config, max_length=96)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    text = "a text of some forty letters to go on from"
    (reply,) = ask(model, tokenizer, [asked(text, 12)], 96)
    ids = tokenizer.encode(text)
    model.eval()
    with torch.no_grad():
        for _ in range(12):  # the naive way: the whole text again for each token
            following = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            if following == tokenizer.eos_token_id:
                break
            ids.append(following)
    assert len(ids) > len(tokenizer.encode(text))
    assert reply.text == tokenizer.decode(ids[len(tokenizer.encode(text)) :])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert tokenizer.pad_token is None  # lm-eval's padding token went to a copy


def test_the_training_flags_are_put_back(tokenizer):
    model = Rigged(lambda prompt: "yes").train()
    ask(model, tokenizer, [asked("text")], 64)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("task", ["trec", "triviaqa", "lsht", "trec_e"])
def test_an_answer_may_begin_with_a_line_break_where_lm_eval_would_stop(tokenizer, task):
    question = one(f"longbench_{task}", tokenizer, answers=["Food"], all_classes=["Food", "Place"])
    (reply,) = ask(Rigged(lambda prompt: "\n\nFood\nPlace"), tokenizer, [question], 4096)
    assert reply.text == "\n\nFood\nPlace"
    (score,) = score_replies([question], [reply]).values()
    assert score["value"] == 100.0


def test_samsum_stops_at_a_line_break_but_does_not_begin_with_one(tokenizer):
    question = one("longbench_samsum", tokenizer)
    (reply,) = ask(Rigged(lambda prompt: "\nShe left.\nDialogue:"), tokenizer, [question], 4096)
    # The byte after the forbidden one is taken in its place, and then said.
    assert reply.text == "SShe left.\n"


def test_a_known_reply_is_not_asked_for_again_and_progress_may_stop(tokenizer):
    questions = [asked("one"), Question(**{**vars(asked("two")), "index": 1})]
    model = Rigged(str.upper)
    seen = []

    def stop(replies, total):
        seen.append((len(replies), total))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(model, tokenizer, questions, 64, progress=stop)
    assert seen == [(1, 2)]
    done = [Reply("longbench_qasper", 0, "kept", 3, False)]
    replies = ask(model, tokenizer, questions, 64, done=done)
    assert [reply.text for reply in replies] == ["kept", "TWO"]
    assert len(model.prompts) == 2


# --- scores -----------------------------------------------------------------------------------


@needs_data
def test_known_answers_to_real_rows_score_what_our_metric_says(tokenizer):
    task = "longbench_passage_retrieval_zh"
    with zipfile.ZipFile(ARCHIVE) as archive:
        lines = archive.open("data/passage_retrieval_zh.jsonl").readlines()[:4]
    rows = [json.loads(line) for line in lines]
    questions = make_questions([task], {task: rows}, tokenizer, 400)
    texts = [rows[0]["answers"][0], "段落999", f"1, {rows[2]['answers'][0]}", ""]
    said = iter(texts)
    replies = ask(Rigged(lambda prompt: next(said)), tokenizer, questions, 400)
    assert [reply.text for reply in replies] == texts
    (score,) = score_replies(questions, replies).values()
    expected = [
        score_row("passage_retrieval_zh", text, row["answers"])
        for text, row in zip(texts, rows, strict=True)
    ]
    assert expected == [1.0, 0.0, 0.5, 0.0]
    assert score["value"] == 37.5
    assert (score["low"], score["high"]) == tuple(100 * x for x in wilson_interval(1.5, 4))
    assert (score["examples"], score["cut"], score["answer_tokens"]) == (4, 4, 32)
    assert score["prompt_tokens"] == [
        pick(len(q.prompt.encode()) for q in questions) for pick in (min, max)
    ]


def qasper(task, index, length, answers=("a b",)):
    document = {"answers": list(answers), "all_classes": None, "length": length}
    return Question(task, index, "", {"max_gen_toks": 4}, document)


def test_longbench_e_is_the_mean_over_its_buckets_of_length():
    lengths_and_texts = [(100, "a b"), (3999, "c"), (3000, "c"), (4000, "a b"), (9000, "c")]
    task = "longbench_qasper_e"
    questions = [qasper(task, i, length) for i, (length, _) in enumerate(lengths_and_texts)]
    replies = [Reply(task, i, text, 5, False) for i, (_, text) in enumerate(lengths_and_texts)]
    score = score_replies(questions, replies)["longbench/qasper_e"]
    found = {
        bucket["words"]: (bucket["value"], bucket["examples"]) for bucket in score["by_length"]
    }
    assert found == {"0-4k": (33.33, 3), "4-8k": (100.0, 1), "8k+": (0.0, 1)}
    assert score["value"] == pytest.approx((33.33 + 100 + 0) / 3)
    assert score["low"] < score["value"] < score["high"]
    assert score["examples"] == 5
    # Two rows only: the mean is over the buckets that hold any.
    part = score_replies(questions[:2], replies[:2])["longbench/qasper_e"]
    assert [bucket["words"] for bucket in part["by_length"]] == ["0-4k"]
    assert part["value"] == 50.0


def test_means_over_tasks_of_a_kind():
    tasks = ["longbench_qasper", "longbench_hotpotqa", "longbench_qasper_e", "niah_single_1"]
    questions = [qasper(task, 0, 10) for task in tasks[:3]]
    questions.append(
        Question("niah_single_1", 0, "", {"max_gen_toks": 4}, {"outputs": ["7"], "max_length": 9})
    )
    texts = ["a b", "c", "a b", "7"]
    replies = [Reply(t, 0, text, 5, t == "longbench_qasper") for t, text in zip(tasks, texts)]  # noqa: B905
    scores = score_replies(questions, replies)
    assert set(scores) == {
        "longbench/qasper", "longbench/hotpotqa", "longbench/qasper_e", "ruler/niah_single_1",
        "longbench/average",
    }  # fmt: skip
    average = scores["longbench/average"]
    assert average["value"] == 50.0
    assert average["tasks"] == ["qasper", "hotpotqa"]
    assert average["cut"] == 1
    assert 0 <= average["low"] < 50 < average["high"] <= 100


# --- RULER ------------------------------------------------------------------------------------
# All slow: the first of them imports lm-eval's needles, which takes ten seconds.

NEEDLE = re.compile(r"magic numbers for ([\w-]+) is: (\d+)\.")


@pytest.mark.long
def test_common_words_of_ruler_run_from_end_to_end(tokenizer):
    window = 3072
    questions = make_questions(["ruler_cwe"], {}, tokenizer, window, limit=3)
    assert questions == make_questions(["ruler_cwe"], {}, tokenizer, window, limit=3)
    for told, expected in ((10, 100), (4, 40), (0, 0)):

        def most_common(prompt, told=told):
            words = Counter(re.findall(r"\d+\. ([^\d]+?)(?= \d|\n)", prompt))
            return " " + ", ".join(word for word, _ in words.most_common(told))

        replies = ask(Rigged(most_common, window), tokenizer, questions, window)
        score = score_replies(questions, replies)["ruler/cwe"]
        assert score["value"] == pytest.approx(expected)
        assert (score["cut"], score["examples"]) == (0, 3)


@pytest.mark.slow
def test_a_needle_task_of_ruler_runs_from_end_to_end(tokenizer):
    window = 1024
    questions = make_questions(["niah_single_1"], {}, tokenizer, window, limit=3)
    assert len(questions) == 3
    assert questions == make_questions(["niah_single_1"], {}, tokenizer, window, limit=3)

    def recall(prompt):
        key = re.search(r"magic number for ([\w-]+) mentioned", prompt).group(1)
        return " " + dict(NEEDLE.findall(prompt))[key] + "."

    for say, expected in ((recall, 100.0), (lambda prompt: " 12.", 0.0)):
        model = Rigged(say, window)
        replies = ask(model, tokenizer, questions, window)
        assert all(window - 300 < len(p) <= window - 128 for p in model.prompts)
        score = score_replies(questions, replies)["ruler/niah_single_1"]
        assert score["value"] == expected
        assert score["cut"] == 0  # lm-eval's own prompts do not fit with the answer's beginning


class Served:
    """SQuAD in its published form: 500 questions, three references each."""

    def raise_for_status(self):
        pass

    def json(self):
        def paragraph(i):
            answers = [{"text": t} for t in (f"Paris {i}", f"the town Paris {i}", "Lutetia")]
            qas = [
                {"question": f"Where {i}.{j}?", "is_impossible": False, "answers": answers}
                for j in range(50)
            ]
            return {"context": f"It is in Paris {i}.", "qas": qas}

        return {"data": [{"paragraphs": [paragraph(i) for i in range(10)]}]}


@pytest.mark.slow
def test_the_best_reference_counts_where_lm_eval_averages(tokenizer, monkeypatch):
    from lm_eval.tasks.ruler.common_utils import process_results_part

    monkeypatch.setattr("requests.get", lambda *_, **__: Served())
    task = "ruler_qa_squad"
    questions = make_questions([task], {}, tokenizer, 2048, limit=2)
    assert [len(q.document["outputs"]) for q in questions] == [3, 3]
    replies = ask(Rigged(lambda prompt: " Paris 0"), tokenizer, questions, 2048)
    assert score_replies(questions, replies)["ruler/qa_squad"]["value"] == 100.0
    document = questions[0].document  # and this is what lm-eval makes of it
    by_lm_eval = process_results_part(document, [replies[0].text])
    assert by_lm_eval[str(document["max_length"])] == pytest.approx(1 / 3)


def test_other_tasks_of_ruler_keep_lm_eval_s_share_of_the_wanted_strings():
    document = {"outputs": ["one", "two", "three", "four"], "max_length": 77}
    question = Question("niah_multivalue", 0, "", {"max_gen_toks": 4}, document)
    reply = Reply("niah_multivalue", 0, "TWO and three", 5, False)
    assert score_replies([question], [reply])["ruler/niah_multivalue"]["value"] == 50.0


@pytest.mark.slow
def test_what_cannot_be_downloaded_is_one_line(tokenizer, monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("requests.get", refuse)
    wanted = r"ruler_qa_hotpot: .*no route to host\); it wants hotpot_dev_distractor"
    with pytest.raises(DataError, match=wanted):
        make_questions(["ruler_qa_hotpot"], {}, tokenizer, 2048)


@pytest.mark.slow
def test_a_signal_is_no_failure_of_lm_eval(tokenizer, monkeypatch):
    def stop(*_, **__):
        raise Interrupted(15, "stopped by SIGTERM")

    monkeypatch.setattr("requests.get", stop)
    with pytest.raises(Interrupted):
        make_questions(["ruler_qa_hotpot"], {}, tokenizer, 2048)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["ruler_vt", "ruler_cwe", "ruler_fwe", "niah_single_1"])
def test_a_window_too_small_for_ruler_is_refused_at_once(tokenizer, task):
    with pytest.raises(DataError, match=task):
        make_questions([task], {}, tokenizer, 240)


@pytest.mark.parametrize(
    "task", [*slow("ruler_fwe"), *on_request("niah_multikey_2", "niah_multikey_3", "ruler_cwe")]
)
def test_tasks_that_need_no_download_are_the_same_each_time_and_fit(tokenizer, task):
    window = 3072
    first = make_questions([task], {}, tokenizer, window, limit=5)
    assert first == make_questions([task], {}, tokenizer, window, limit=5)
    for question in first:
        assert len(tokenizer.encode(question.prompt)) + question.answer_tokens <= window


@pytest.mark.slow
def test_variable_tracking_with_the_embedded_tokenizer():
    from hylorada.config import ModelConfig
    from hylorada.loading.backbone import load_backbone

    tokenizer = load_backbone(ModelConfig(), torch.device("cpu")).tokenizer
    questions = make_questions(["ruler_vt"], {}, tokenizer, 1024, limit=5)
    assert questions == make_questions(["ruler_vt"], {}, tokenizer, 1024, limit=5)
    for question in questions:
        assert len(tokenizer.encode(question.prompt)) + question.answer_tokens <= 1024
        assert all(f"VAR {name} =" in question.prompt for name in question.document["outputs"])
