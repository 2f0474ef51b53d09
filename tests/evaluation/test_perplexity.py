"""Perplexity against a loop that scores one token at a time, and what the record holds."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from helpers.documents import Tokens, make_documents
from helpers.families import VOCAB, make_model

from hylorada.config import PerplexityConfig
from hylorada.errors import ConfigError, DataError, DivergedError
from hylorada.evaluation.perplexity import evaluate_perplexity
from hylorada.evaluation.perplexity_result import DocumentScore, PerplexityResult, perplexity

TOLERANCE = 1e-5  # relative; float32 log-probabilities, float64 sums


def naive(model, documents, convention, window, stride):
    """Sum and count over tokens, each scored by its own forward pass with its own context."""
    total, count, by_context = 0.0, 0, {}
    for document in documents:
        ids = torch.from_numpy(document.tokens.astype(np.int64))
        for t in range(1, len(ids)):
            if convention == "blocks":
                start = (t - 1) // window * window
            elif t <= window:
                start = 0
            else:  # the window that first reaches token t
                last = window + -(-(t - window) // stride) * stride
                start = min(last, len(ids) - 1) - window
            with torch.no_grad():
                logits_V = model(input_ids=ids[None, start:t]).logits[0, -1].double()
            nll = float(-torch.log_softmax(logits_V, 0)[ids[t]])
            total, count = total + nll, count + 1
            old = by_context.get(t - start, (0.0, 0))
            by_context[t - start] = (old[0] + nll, old[1] + 1)
    return total, count, by_context


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_equals_scoring_one_token_at_a_time(family, batch_size):
    model = make_model(family)
    documents = make_documents([41, 1, 12, 16, 17, 0])
    settings = PerplexityConfig(stride=5, batch_size=batch_size, position_buckets=3)
    results = evaluate_perplexity(model, documents, settings, window=16, chunk=11)
    assert list(results) == ["blocks", "sliding"]
    for convention, result in results.items():
        total, count, by_context = naive(model, documents, convention, 16, 5)
        assert result.tokens == count == 40 + 11 + 15 + 16
        assert result.sum_nll == pytest.approx(total, rel=TOLERANCE)
        assert result.ppl == pytest.approx(math.exp(total / count), rel=TOLERANCE)
        for bucket in result.by_position:
            # a prediction at position p has p + 1 tokens of context
            inside = [v for c, v in by_context.items() if bucket.start <= c - 1 < bucket.end]
            assert bucket.tokens == sum(n for _, n in inside)
            assert bucket.sum_nll == pytest.approx(sum(s for s, _ in inside), rel=TOLERANCE)


def test_the_parts_add_up_to_the_whole():
    documents = make_documents([41, 1, 12, 16, 17, 0, 90])
    results = evaluate_perplexity(make_model("gpt2"), documents, PerplexityConfig(), window=16)
    for result in results.values():
        for parts in (result.by_position, result.by_document):
            assert sum(p.tokens for p in parts) == result.tokens
            assert sum(p.sum_nll for p in parts) == pytest.approx(result.sum_nll, rel=1e-12)
        edges = [(b.start, b.end) for b in result.by_position]
        assert edges == [(2 * i, 2 * i + 2) for i in range(8)]
        assert [d.name for d in result.by_document] == [f"document-{i}" for i in (0, 2, 3, 4, 6)]
    assert results["blocks"].tokens == results["sliding"].tokens


def test_words_and_bytes_are_the_splits_and_absent_for_a_part():
    documents = make_documents([41, 1, 12])
    model = make_model("gpt2")
    whole = evaluate_perplexity(model, documents, PerplexityConfig(), window=16)["blocks"]
    assert whole.words == 410 + 11 + 122
    assert whole.bytes == 2050 + 51 + 602
    assert whole.word_ppl == pytest.approx(math.exp(whole.sum_nll / whole.words))
    assert whole.bits_per_byte == pytest.approx(whole.sum_nll / math.log(2) / whole.bytes)
    part = evaluate_perplexity(model, documents, PerplexityConfig(max_blocks=2), window=16)
    for result in part.values():
        assert result.tokens < result.scorable_tokens == whole.tokens
        assert result.words is result.bytes is result.word_ppl is result.bits_per_byte is None


def test_a_part_of_a_split_by_tokens_is_so_many_whole_windows():
    documents = make_documents([200, 30, 170])  # 397 to score
    model = make_model("gpt2")

    def scored(**limits):
        found = evaluate_perplexity(model, documents, PerplexityConfig(**limits), window=16)
        assert found["blocks"].tokens == found["sliding"].tokens
        return found["blocks"].tokens

    assert scored(max_tokens=397) == scored(max_tokens=0) == 397
    assert scored(max_tokens=396) == scored(max_blocks=396 // 16)
    assert scored(max_tokens=100) == scored(max_blocks=6) == scored(max_tokens=390, max_blocks=6)
    assert scored(max_tokens=3) == 16
    settings = PerplexityConfig(conventions=["blocks", "sliding"], max_tokens=100)
    run = evaluate_perplexity(model, documents, settings, window=48)["blocks"]
    own = evaluate_perplexity(model, documents, settings, window=16, cover=48)["sliding"]
    assert own.tokens == run.tokens == 96


def test_a_base_in_its_own_window_scores_the_tokens_of_the_run():
    documents = make_documents([200, 30, 170])
    model = make_model("gpt2")
    settings = PerplexityConfig(max_blocks=3, stride=40)
    run = evaluate_perplexity(model, documents, settings, window=48)["blocks"]
    own = evaluate_perplexity(model, documents, settings, window=16, cover=48)["sliding"]
    assert own.tokens == run.tokens
    assert [(d.name, d.tokens) for d in own.by_document] == [
        (d.name, d.tokens) for d in run.by_document
    ]
    assert (own.window, own.stride) == (16, 8)


def test_the_record_is_json_and_says_what_it_is():
    documents = make_documents([41, 12])
    settings = PerplexityConfig(split="validation", position_buckets=4)
    results = evaluate_perplexity(make_model("gpt2"), documents, settings, window=16)
    record = json.loads(json.dumps(results["sliding"].to_dict(), allow_nan=False))
    assert record["convention"] == "sliding"
    assert (record["window"], record["stride"], record["split"]) == (16, 8, "validation")
    assert record["value"] == pytest.approx(math.exp(record["sum_nll"] / record["tokens"]))
    assert set(record["by_position"][0]) == {"start", "end", "sum_nll", "tokens", "ppl"}
    assert set(record["by_document"][0]) == {"name", "sum_nll", "tokens"}
    assert results["blocks"].to_dict()["stride"] is None


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop_after", [1, 4, 7])
def test_an_interrupted_evaluation_continues_to_the_same_bits(stop_after):
    model = make_model("llama").train()
    documents = make_documents([41, 60, 12])
    settings = PerplexityConfig(position_buckets=3)
    whole = evaluate_perplexity(model, documents, settings, window=16)

    seen = []

    def interrupt(progress):
        seen.append(progress)
        if len(seen) == stop_after:
            raise Stop

    with pytest.raises(Stop):
        evaluate_perplexity(model, documents, settings, window=16, progress=interrupt)
    assert all(module.training for module in model.modules())
    state = json.loads(json.dumps(seen[-1].state()))

    rest = []
    again = evaluate_perplexity(
        model, documents, settings, window=16, state=state, progress=rest.append
    )
    assert again == whole
    everything = []
    evaluate_perplexity(model, documents, settings, window=16, progress=everything.append)
    assert len(rest) + stop_after == len(everything)
    last = everything[-1]
    assert last.done == last.total == whole["sliding"].tokens
    assert last.sum_nll == whole["sliding"].sum_nll


def test_a_state_of_other_documents_is_refused():
    model = make_model("gpt2")
    seen = []
    settings = PerplexityConfig()
    evaluate_perplexity(model, make_documents([41]), settings, window=16, progress=seen.append)
    with pytest.raises(ConfigError, match="other documents or settings"):
        evaluate_perplexity(
            model, make_documents([42]), settings, window=16, state=seen[-1].state()
        )


def test_a_split_without_two_tokens_is_an_error():
    with pytest.raises(DataError, match="split 'test' has no document of at least two tokens"):
        evaluate_perplexity(make_model("gpt2"), make_documents([1, 0]), PerplexityConfig(), 16)


def test_a_model_that_gives_nan_is_an_error_that_names_the_document():
    model = make_model("gpt2")
    with torch.no_grad():
        model.lm_head.weight[0] = float("nan")
    with pytest.raises(DivergedError, match="document-1"):
        evaluate_perplexity(model, make_documents([1, 12]), PerplexityConfig(), 16)


def test_a_hopeless_model_overflows_to_infinity_not_to_an_exception():
    assert perplexity(8000.0, 10) == math.inf
    assert perplexity(0.0, 0) is None


def test_tokens_may_be_any_integer_type():
    model = make_model("gpt2")
    ids = np.arange(1, 40) % VOCAB
    values = set()
    for kind in (np.uint8, np.uint16, np.int32, np.int64):
        documents = [Tokens("d", ids.astype(kind), 1, 1)]
        result = evaluate_perplexity(model, documents, PerplexityConfig(), 16)["blocks"]
        values.add(result.sum_nll)
    assert len(values) == 1


@pytest.mark.parametrize(
    ("conventions", "scored"),
    [(["word"], ["word"]), (["word", "sliding"], ["sliding"]), (["blocks", "word"],) * 2],
)
def test_the_word_convention_divides_the_sliding_sum_by_the_words(conventions, scored):
    documents = make_documents([41, 1, 12, 60])
    model = make_model("llama")
    total, count, _ = naive(model, documents, "sliding", 16, 5)
    settings = PerplexityConfig(conventions=conventions, stride=5)
    calls = []
    results = evaluate_perplexity(model, documents, settings, window=16, progress=calls.append)
    assert list(results) == conventions
    word = results["word"]
    assert (word.tokens, word.stride) == (count, 5)
    words = sum(document.words for document in documents)
    assert word.to_dict()["value"] == pytest.approx(math.exp(total / words), rel=TOLERANCE)
    # nothing is scored twice
    assert list(dict.fromkeys(progress.convention for progress in calls)) == scored


def test_a_published_number_of_words_is_the_divisor():
    settings = PerplexityConfig(conventions=["word"])
    documents = make_documents([41, 12])
    model = make_model("gpt2")
    word = evaluate_perplexity(model, documents, settings, window=16, words=77)["word"]
    assert word.words == 77
    assert word.ppl == pytest.approx(math.exp(word.sum_nll / 77))


@pytest.mark.parametrize("by", ["blocks", "tokens"])
def test_a_part_of_a_split_has_no_word_perplexity(by):
    limits = {"max_blocks": 1} if by == "blocks" else {"max_tokens": 39}
    settings = PerplexityConfig(conventions=["word"], **limits)
    with pytest.raises(ConfigError, match="word is a number of the whole split"):
        evaluate_perplexity(make_model("gpt2"), make_documents([41]), settings, window=16)


def test_the_paper_convention_is_the_mean_over_paragraphs_cut_at_the_window():
    model = make_model("gpt2")
    paragraphs = make_documents([7, 41, 16, 2, 1], seed=1)
    settings = PerplexityConfig(conventions=["paper", "blocks"])
    documents = make_documents([30])
    results = evaluate_perplexity(model, documents, settings, window=16, paragraphs=paragraphs)
    each = []
    for paragraph in paragraphs[:-1]:  # the last has nothing to predict
        total, count, _ = naive(model, [Tokens("", paragraph.tokens[:17], 0, 0)], "blocks", 16, 16)
        each.append(math.exp(total / count))
    paper = results["paper"]
    assert paper.ppl == pytest.approx(sum(each) / len(each), rel=TOLERANCE)
    assert paper.tokens == 6 + 16 + 15 + 1
    assert paper.stride is None
    assert results["blocks"].tokens == 29  # of the documents
    with pytest.raises(ConfigError, match="paper needs paragraphs"):
        evaluate_perplexity(model, documents, settings, window=16)


def test_a_mean_over_paragraphs_beyond_the_range_of_floats_is_infinite():
    each = [DocumentScore(name, 708.9, 1) for name in "abc"]  # exp: 0.9e308, 3 of them too much
    result = PerplexityResult("paper", 16, None, "test", 3 * 708.9, 3, 3, 3, 3, [], each)
    assert result.ppl == math.inf
