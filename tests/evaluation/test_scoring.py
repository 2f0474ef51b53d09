"""`token_nll` against the model's own full logits and a loop over tokens."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from helpers.families import FAMILIES, make_model, tokens
from peft import LoraConfig, get_peft_model

from hylorada.architecture.labels import IGNORE
from hylorada.evaluation.scoring import evaluation_mode, token_nll

# float32, some 30 additions per logit: differences stay below 1e-5 nats.
TOLERANCE = 2e-5


def naive_nll(model, input_ids_BT, targets_BT):
    """The definition: softmax over all of the model's logits, one token after the other."""
    logits_BTV = model(input_ids=input_ids_BT, use_cache=False).logits.double()
    out = torch.zeros(input_ids_BT.shape, dtype=torch.float64)
    for b in range(out.shape[0]):
        for t in range(out.shape[1]):
            target = int(targets_BT[b, t])
            if target != IGNORE:
                row = logits_BTV[b, t]
                out[b, t] = math.log(sum(math.exp(v) for v in row.tolist())) - row[target]
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_full_logits(family):
    model = make_model(family)
    ids_BT = tokens(2, 37)
    targets_BT = tokens(2, 37, seed=1)
    targets_BT[0, :11] = IGNORE
    targets_BT[1, 5] = IGNORE
    with evaluation_mode(model):
        got = token_nll(model, ids_BT, targets_BT, chunk=7)
        want = naive_nll(model, ids_BT, targets_BT)
    assert got.dtype == torch.float32
    assert (got.double() - want).abs().max() < TOLERANCE
    assert got[0, :11].eq(0).all()
    assert got[1, 5] == 0


def test_without_targets_it_predicts_the_next_token():
    model = make_model("llama")
    ids_BT = tokens(2, 19)
    with evaluation_mode(model):
        got = token_nll(model, ids_BT)
        want = model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss
    assert got[:, -1].eq(0).all()
    assert (got.sum() / (2 * 18) - want).abs() < TOLERANCE


@pytest.mark.parametrize("chunk", [1, 6, 24, 1000])
def test_the_chunk_does_not_matter(chunk):
    model = make_model("gpt2")
    ids_BT = tokens(2, 13)
    with evaluation_mode(model):
        assert torch.allclose(
            token_nll(model, ids_BT, chunk=chunk), token_nll(model, ids_BT), atol=TOLERANCE
        )


def test_nothing_to_score_is_all_zero():
    model = make_model("gpt2")
    ids_BT = tokens(1, 5)
    with evaluation_mode(model):
        assert token_nll(model, ids_BT, torch.full_like(ids_BT, IGNORE)).eq(0).all()


def test_a_trained_adapter_counts():
    """Through a PeftModel the adapters act: the NLL is the adapted model's, not the base's."""
    base = make_model("llama")
    ids_BT = tokens(1, 21)
    with evaluation_mode(base):
        before = token_nll(base, ids_BT)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.5)
    with evaluation_mode(model):
        after = token_nll(model, ids_BT)
        want = naive_nll(model, ids_BT, torch.cat([ids_BT[:, 1:], ids_BT[:, :1] * 0 + IGNORE], 1))
    assert (after - before).abs().max() > 0.05
    assert (after.double() - want).abs().max() < TOLERANCE


def test_bf16_autocast_is_near_and_float32_at_the_end():
    model = make_model("qwen2")
    ids_BT = tokens(1, 33)
    with evaluation_mode(model):
        exact = token_nll(model, ids_BT)
    with evaluation_mode(model, torch.bfloat16):
        rounded = token_nll(model, ids_BT)
    assert rounded.dtype == torch.float32
    difference = (exact - rounded).abs().max()
    # 8 bits of mantissa: logits of size ~2 move by a few hundredths, and they do move.
    assert 0 < difference < 0.2


def test_every_training_flag_is_restored_even_after_an_error():
    model = make_model("gpt2").train()
    model.transformer.h[1].eval()
    flags = [module.training for module in model.modules()]

    def enter_and_fail():
        with evaluation_mode(model):
            assert not any(module.training for module in model.modules())
            assert not torch.is_grad_enabled()
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        enter_and_fail()
    assert [module.training for module in model.modules()] == flags
    assert torch.is_grad_enabled()


def test_training_goes_on_after_an_evaluation():
    """Nothing that evaluation leaves in a module may be unusable under autograd."""
    model = make_model("llama")
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config)
    ids_BT = tokens(1, 90)  # beyond the 64 trained positions: dynamic RoPE replaces its table
    with evaluation_mode(model):
        token_nll(model, ids_BT)
    model.train()
    model(input_ids=ids_BT, labels=ids_BT).loss.backward()
    assert model.model.embed_tokens.weight.grad.isfinite().all()


def test_cudnn_attention_is_off_inside_and_as_it_was_afterwards():
    model = make_model("gpt2")
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        for switch in (True, False):
            torch.backends.cuda.enable_cudnn_sdp(switch)
            with contextlib.suppress(KeyError), evaluation_mode(model):
                assert not torch.backends.cuda.cudnn_sdp_enabled()
                raise KeyError
            assert torch.backends.cuda.cudnn_sdp_enabled() is switch
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
