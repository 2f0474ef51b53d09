"""Candidates that share a prompt score as if each had been read alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.architectures import make_zoo_model
from helpers.families import FAMILIES, make_model, tokens
from helpers.rigged import Characters, Copier

from hylorada.architecture.logits import output_head
from hylorada.evaluation import candidates as module
from hylorada.evaluation.candidates import Prefix
from hylorada.evaluation.scoring import evaluation_mode

TOLERANCE = 2e-5  # float32 logits of size ~2, up to seven of them added
LENGTHS = (3, 1, 7, 2, 7, 4)


def naive(model, prompt, candidates):
    sums = []
    for candidate in candidates:
        ids = torch.tensor([prompt + candidate])
        log_p = model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
        sums.append(sum(float(log_p[len(prompt) + i - 1, t]) for i, t in enumerate(candidate)))
    return np.array(sums)


def task():
    prompt = tokens(1, 23)[0].tolist()
    return prompt, [tokens(1, n, seed=10 + i)[0].tolist() for i, n in enumerate(LENGTHS)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("budget", [1, 2**28])
def test_equals_reading_prompt_and_candidate_alone(family, budget, monkeypatch):
    monkeypatch.setitem(module._BUDGET_BYTES, "cpu", budget)  # 1: one candidate at a time
    model = make_model(family)
    prompt, candidates = task()
    with evaluation_mode(model):
        prefix = Prefix(model, prompt)
        got = prefix.log_likelihoods(candidates)
        assert np.abs(got - naive(model, prompt, candidates)).max() < TOLERANCE
        # The prefix is as it was: asked again in another order it says the same.
        again = prefix.log_likelihoods(candidates[::-1])
    assert np.abs(again[::-1] - got).max() < TOLERANCE


# A window, latent attention, recurrent and convolutional states, no cache at all.
OTHERS = (
    "gemma3_text", "mistral, window", "deepseek_v3", "gpt_oss", "lfm2", "qwen3_next", "jamba",
    "falcon_h1", "mamba", "rwkv", "openai-gpt", "xglm", "bart", "recurrent_gemma", "minimax",
)  # fmt: skip


@pytest.mark.parametrize("family", OTHERS)
def test_holds_whatever_a_model_keeps(family):
    model = make_zoo_model(family)
    prompt, candidates = task()
    expected = list(prompt)
    with evaluation_mode(model):
        prefix = Prefix(model, prompt)
        got = prefix.log_likelihoods(candidates)
        assert np.abs(got - naive(model, prompt, candidates)).max() < TOLERANCE
        for _ in range(3):
            logits = model(input_ids=torch.tensor([expected]), use_cache=False).logits
            expected.append(int(logits[0, -1].argmax()))
        assert prefix.greedy(3) == expected[len(prompt) :]


def test_which_models_read_the_prompt_once():
    once = {family for family in OTHERS if Prefix(make_zoo_model(family), [5, 6, 7]).cache}
    assert once == {"gemma3_text", "mistral, window", "deepseek_v3", "gpt_oss", "xglm", "bart"}


def test_long_prompts_are_read_in_small_batches(monkeypatch):
    model = make_zoo_model("lfm2")
    prompt, candidates = task()
    with evaluation_mode(model):
        whole = Prefix(model, prompt).log_likelihoods(candidates)
        monkeypatch.setattr(module, "_BUDGET_TOKENS", 1)
        assert np.abs(Prefix(model, prompt).log_likelihoods(candidates) - whole).max() < TOLERANCE


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_holds_for_every_component_of_hylorada(family):
    from hylorada.methods import HyloradaConfig, adapt

    config = HyloradaConfig.for_length(
        96, trained_length=64, position_bias_enabled=True, landmark_enabled=True,
        train_embeddings=family == "gpt2", train_norms=True,
    )  # fmt: skip
    model = adapt(make_model(family), config, max_length=96, seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.2)
    prompt, candidates = task()
    with evaluation_mode(model):
        got = Prefix(model, prompt).log_likelihoods(candidates)
        assert np.abs(got - naive(model, prompt, candidates)).max() < TOLERANCE


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_greedy_equals_the_argmax_without_a_cache(family):
    model = make_model(family)
    prompt, candidates = task()
    expected = list(prompt)
    with evaluation_mode(model):
        for _ in range(6):
            logits = model(input_ids=torch.tensor([expected]), use_cache=False).logits
            expected.append(int(logits[0, -1].argmax()))
        prefix = Prefix(model, prompt)
        prefix.log_likelihoods(candidates)  # ranking first must not change the generation
        assert prefix.greedy(6) == expected[len(prompt) :]
        stop = expected[len(prompt) + 2]
        cut = expected[len(prompt) :].index(stop)
        assert Prefix(model, prompt).greedy(6, [stop]) == expected[len(prompt) :][:cut]


def test_the_prompt_is_read_once():
    model, tokenizer = Copier(), Characters()
    prompt = tokenizer("x" * 500)["input_ids"]
    candidates = [tokenizer(f"{i:04d}")["input_ids"] for i in range(75)]
    output_head(model)  # is found out once for a model, by running it
    model.model.tokens_read = 0
    with evaluation_mode(model):
        Prefix(model, prompt).log_likelihoods(candidates)
    # The first token of a candidate is predicted by the prompt, the last one predicts nothing.
    assert model.model.tokens_read == 500 + 75 * 3
