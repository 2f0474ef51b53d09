"""One model through a method at a length: the path of a run, without data and with one step."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hylorada import compose
from hylorada.config import MethodConfig, PerplexityConfig
from hylorada.errors import HyloradaError
from hylorada.evaluation.lost_in_middle import evaluate_retrieval
from hylorada.evaluation.perplexity import evaluate_perplexity
from hylorada.evaluation.retrieval_prompts import RetrievalPrompt
from hylorada.methods import adapt
from hylorada.methods.adaptive_rule import from_method
from hylorada.methods.integrity import check_integrity
from hylorada.methods.position_range import extend_range
from hylorada.training.loss import LossModel

METHODS = ("baseline", "lora", "longlora", "hylorada")
GROUP = 16  # tokens in a group of shifted attention


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, each a token; id 0 ends a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<|end|>", *alphabet])}
    made = Tokenizer(models.BPE(vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")


@cache
def _composed(name: str) -> Any:
    with compose.opened_hydra() as hydra:
        config = compose.to_typed(compose.compose(hydra, [f"method={name}"]))
    return config.method


def method_config(name: str) -> MethodConfig:
    """A preset of conf/, with groups as small as the texts here."""
    method = copy.deepcopy(_composed(name))
    method.s2_attn.group_size = GROUP
    return method


@dataclass
class Text:
    """A document for the perplexity."""

    tokens: np.ndarray
    name: str = "text"
    words: int = 10
    bytes: int = 100


def travel(model: Any, method: MethodConfig, length: int) -> Any:
    """Attach, prove, train one step, measure; the model as it came out.

    Raises:
        HyloradaError: a refusal.
    """
    config = from_method(method, length, model.config)
    if config is None:
        wanted = method.position_range
        extend_range(model, length, wanted.learned_init, wanted.rope_type, wanted.rope_factor)
    else:
        model = adapt(model, config, length, seed=0)
    check_integrity(model, tokenizer(), length).raise_if_failed()
    rng = np.random.default_rng(0)
    text = rng.integers(1, 250, 2 * length)
    if config is not None:
        _one_step(model, torch.from_numpy(text[:length])[None])
    settings = PerplexityConfig(conventions=["blocks"], max_blocks=2)
    result = evaluate_perplexity(model, [Text(text)], settings, length)["blocks"]
    assert np.isfinite(result.sum_nll)
    evaluate_retrieval(
        model, tokenizer(), _prompts(length), length, scorings=("ranked", "generated")
    )
    return model


def _one_step(model: Any, ids_BT: torch.Tensor) -> None:
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    sum_nll, tokens = LossModel(model)(ids_BT, ids_BT)
    loss = sum_nll / tokens
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in trained)
    optimizer.step()
    model.eval()


def _prompts(length: int) -> list[RetrievalPrompt]:
    values = ["1", "23", "456"]
    pairs = ", ".join(f"k{i}: {v}" for i, v in enumerate(values))
    return [
        RetrievalPrompt(
            example=i,
            depth=0.5,
            text=f"{pairs}; k{i}:",
            answer=values[i],
            candidates=tuple(f" {v}" for v in values),
            gold=i,
        )
        for i in range(2)
    ]


def outcome(model: Any, name: str, length: int) -> tuple[str, dict[str, str]]:
    """ "passes", or the line with which it was refused; and what the adapter leaves out.

    Raises:
        Exception: anything but a refusal; that is a bug.
    """
    try:
        made = travel(model, method_config(name), length)
    except HyloradaError as error:
        return str(error), {}
    configs = getattr(made, "peft_config", {})
    return "passes", dict(configs["default"].left_out) if configs else {}
