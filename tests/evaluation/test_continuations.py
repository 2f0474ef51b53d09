"""What follows a prompt has the ids that it has in the whole text, whatever the tokenizer does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.text_tokenizers import KINDS, make_tokenizer
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hylorada.errors import DataError
from hylorada.evaluation.continuations import PromptEncoder, closing_tokens
from hylorada.evaluation.lost_in_middle import evaluate_retrieval
from hylorada.evaluation.retrieval_prompts import (
    KeyValues,
    generate_key_values,
    passkey_prompts,
)

CLOSED = {"llama2-bos-eos": "</s>", "spanning": "</s>", "unigram": "</s>", "wordpiece": "[SEP]"}
CLOSED |= {"byt5": "</s>", "prefixed": "</s>"}
SPANNING = ("spanning", "unigram")  # a token reaches across the boundary


def whole_ids(kind, text):
    """The ids of a text, less the token that this kind of tokenizer closes it with."""
    tokenizer = make_tokenizer(kind)
    ids = tokenizer(text)["input_ids"]
    if kind in CLOSED:
        assert tokenizer.convert_ids_to_tokens(ids[-1]) == CLOSED[kind]
        ids = ids[:-1]
    return ids


def questions(form="uuid", keys=4, count=2):
    if form == "passkey":
        return passkey_prompts(2 * keys, count, depths=(0.5,), choices=5)
    return [e.prompt(0.5, i) for i, e in enumerate(generate_key_values(keys, count, form=form))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["uuid", "hex", "passkey"])
def test_ids_are_those_of_prompt_and_candidate_as_one_text(kind, form):
    encoder = PromptEncoder(make_tokenizer(kind))
    for keys in (3, 40):  # a short prompt, and one of which only the end is read again
        for prompt in questions(form, keys):
            tokens = encoder.prompt(prompt.text, prompt.candidates)
            assert tokens.ids == whole_ids(kind, prompt.text)
            assert (tokens.shared < len(tokens.ids)) == (kind in SPANNING)
            joined = [tokens.ids[: tokens.shared] + c for c in tokens.candidates]
            assert joined == [whole_ids(kind, prompt.text + c) for c in prompt.candidates]
            assert tokens.tokens() == max(map(len, [*joined, tokens.ids]))


def test_a_candidate_alone_is_another_text_to_sentencepiece():
    """What was scored before: two spaces, of which the text has one."""
    tokenizer = make_tokenizer("llama2")
    (prompt,) = questions(count=1)
    candidate = prompt.candidates[0]
    alone = tokenizer(candidate, add_special_tokens=False)["input_ids"]
    tokens = PromptEncoder(tokenizer).prompt(prompt.text, prompt.candidates)
    assert tokenizer.decode(tokens.ids[1:] + alone)[1:] == f"{prompt.text} {candidate}"
    assert tokenizer.decode(tokens.ids[1:] + tokens.candidates[0])[1:] == prompt.text + candidate


@pytest.mark.parametrize("kind", KINDS)
def test_ranked_as_a_plain_forward_pass_over_each_whole_text_ranks(kind):
    tokenizer = make_tokenizer(kind)
    torch.manual_seed(0)
    settings = GPT2Config(
        vocab_size=len(tokenizer), n_positions=1024, n_embd=32, n_layer=2, n_head=4,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(settings).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8)  # opinions strong enough that ranks are no matter of rounding
    right = []
    prompts = questions("hex", keys=8, count=12)
    for prompt in prompts:
        totals = []
        for candidate in prompt.candidates:
            ids = torch.tensor([whole_ids(kind, prompt.text + candidate)])
            with torch.no_grad():
                log_p = model(ids).logits[0, :-1].double().log_softmax(-1)
            # Of the whole text: what all have in common counts for all alike.
            totals.append(float(log_p.gather(1, ids[0, 1:, None]).sum()))
        order = np.argsort(totals)
        assert totals[order[-1]] - totals[order[-2]] > 1e-3
        right.append(float(order[-1] == prompt.gold))
    answers = []
    evaluate_retrieval(model, tokenizer, prompts, 1024, progress=lambda a, _: answers.append(a[-1]))
    assert [answer.ranked for answer in answers] == right


def test_an_answer_is_generated_after_the_whole_prompt(monkeypatch):
    """With a token that spans the boundary, ranking starts before the prompt's end; saying not."""
    from hylorada.evaluation import lost_in_middle as module

    read = []

    class Spy(module.Prefix):
        def __init__(self, model, prompt_ids):
            read.append(list(prompt_ids))
            super().__init__(model, prompt_ids)

    monkeypatch.setattr(module, "Prefix", Spy)
    tokenizer = make_tokenizer("spanning")
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_positions=512, n_embd=8, n_layer=1, n_head=1)
    )
    (prompt,) = questions(count=1)
    evaluate_retrieval(model, tokenizer, [prompt], 512, scorings=("ranked", "generated"))
    ids = whole_ids("spanning", prompt.text)
    shared = PromptEncoder(tokenizer).prompt(prompt.text, prompt.candidates).shared
    assert read == [ids[:shared], ids]


@pytest.mark.parametrize("kind", KINDS)
def test_what_closes_a_text_is_known(kind):
    tokenizer = make_tokenizer(kind)
    closing = tokenizer.convert_ids_to_tokens(closing_tokens(tokenizer))
    assert closing == ([CLOSED[kind]] if kind in CLOSED else [])
    if kind in CLOSED and kind != "byt5":  # what the text itself ends with stays
        text = f"one {CLOSED[kind]}"
        ids = PromptEncoder(tokenizer).text(text)
        assert tokenizer.convert_ids_to_tokens(ids[-1]) == CLOSED[kind]


def count_calls(tokenizer, call):
    """Characters that a tokenizer is given during a call."""
    seen = 0

    class Counting:
        def __call__(self, text, **settings):
            nonlocal seen
            seen += sum(map(len, [text] if isinstance(text, str) else text))
            return tokenizer(text, **settings)

    call(PromptEncoder(Counting()))
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_prompt_is_not_read_once_for_each_candidate(kind):
    (prompt,) = questions(keys=40, count=1)
    seen = count_calls(make_tokenizer(kind), lambda e: e.prompt(prompt.text, prompt.candidates))
    assert seen < 5 * len(prompt.text)


def test_where_the_end_of_a_prompt_is_no_witness_the_whole_is_read():
    """Pairs of one letter: how the end is split depends on how many stand before it."""
    vocabulary = {"x": 0, "a": 1, "aa": 2, "b": 3}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "a")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    candidates = ("a", "ab", "aab")
    for count in (300, 301):
        text = "x" + "a" * count
        tokens = PromptEncoder(tokenizer).prompt(text, candidates)
        for candidate, ids in zip(candidates, tokens.candidates, strict=True):
            assert tokens.ids[: tokens.shared] + ids == tokenizer(text + candidate)["input_ids"]
    assert count_calls(tokenizer, lambda e: e.prompt("x" + "a" * 301, candidates)) > 3 * 302


def test_candidates_that_the_tokenizer_cannot_tell_apart_share_the_credit():
    tokenizer = make_tokenizer("wordpiece")
    same = KeyValues(tuple((str(i), "\u2603") for i in range(5)), "2", "\u2603").prompt(0.5, 0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_positions=512, n_embd=8, n_layer=1, n_head=1)
    )
    result = evaluate_retrieval(model, tokenizer, [same], 512)["ranked"]
    assert result.accuracy == pytest.approx(1 / 5)


def test_a_candidate_without_tokens_and_a_prompt_of_one_token_are_refused():
    with pytest.raises(DataError, match="no token for ' '"):
        PromptEncoder(make_tokenizer("wordpiece")).prompt("value:", [" a", " "])
    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    with pytest.raises(DataError, match=r"no token for|one token of a whole prompt"):
        PromptEncoder(tokenizer).prompt("value:", [" a", " b"])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_put_after_an_answer_brings_no_space(kind):
    tokenizer = make_tokenizer(kind)
    (prompt,) = questions(count=1)
    text = prompt.text + prompt.candidates[0]
    ids = PromptEncoder(tokenizer).after(text, "\n\n")
    expected = {"wordpiece": ""}.get(kind, "\n\n")
    assert tokenizer.decode(ids) == expected
