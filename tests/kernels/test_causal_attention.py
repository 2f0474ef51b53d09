"""Causal attention through oneDNN beside torch's own."""

import pytest
import torch
import torch.nn.functional as F
from helpers.families import make_model, tokens

from hylorada.kernels import causal_attention as kernel
from hylorada.kernels.causal_attention import causal_attention
from hylorada.kernels.linear import onednn_serves
from hylorada.methods.s2_attention import enable_s2

pytestmark = pytest.mark.skipif(
    not onednn_serves(torch.device("cpu")), reason="this torch has no oneDNN"
)


def inputs(length, heads=4, kv_heads=4, width=16):
    """q, k, v as a fused projection leaves them: strided views of one tensor."""
    torch.manual_seed(0)
    all_heads = heads + 2 * kv_heads
    fused = torch.randn(2, length, all_heads, width).transpose(1, 2)
    return [x.detach().requires_grad_() for x in fused.split([heads, kv_heads, kv_heads], 1)]


def oracle(q, k, v, scale):
    repeats = q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double(), v.double()
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    scores = q @ k.transpose(-1, -2) * scale
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(-1) @ v


@pytest.mark.parametrize("length", [1, 256, 293, 549])  # one token; whole, odd numbers of blocks
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_equals_the_plain_formula(length, kv_heads):
    leaves = inputs(length, kv_heads=kv_heads)
    g = torch.randn(2, 4, length, 16)
    got, want = causal_attention(*leaves, 0.3), oracle(*leaves, 0.3)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-5)  # fp32 sums of 549 terms
    pairs = zip(
        torch.autograd.grad(got, leaves, g), torch.autograd.grad(want, leaves, g.double()),
        strict=True,
    )  # fmt: skip
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=0, atol=5e-5)


def test_default_scale_is_that_of_sdpa():
    leaves = inputs(40)
    torch.testing.assert_close(
        causal_attention(*leaves, None),
        F.scaled_dot_product_attention(*leaves, is_causal=True),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


def test_serves_fp32_of_enough_tokens_only():
    q = torch.empty(1, 4, 512, 16)
    assert kernel.serves(q)
    assert not kernel.serves(q[:, :, :511])
    assert not kernel.serves(q.bfloat16())
    assert not kernel.serves(q.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert not kernel.serves(q)


def test_the_future_does_not_move_the_past_by_a_bit():
    q, k, v = (x.detach() for x in inputs(549))
    other_q, other_k, other_v = (x.clone() for x in (q, k, v))
    for x in (other_q, other_k, other_v):
        x[:, :, 300:] = 7.0
    a, b = causal_attention(q, k, v, None), causal_attention(other_q, other_k, other_v, None)
    assert torch.equal(a[:, :, :300], b[:, :, :300])
    assert not torch.equal(a[:, :, 300:], b[:, :, 300:])


def test_keeps_only_its_inputs_for_the_backward():
    leaves = inputs(300)
    saved = causal_attention(*leaves, None).grad_fn.saved_tensors
    assert {t.data_ptr() for t in saved} == {t.data_ptr() for t in leaves}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("shift", ["layers", "heads"])
def test_s2_attention_is_the_same_with_either_kernel(family, shift, monkeypatch):
    model = make_model(family, trained_length=256).train()
    enable_s2(model, 32, shift)
    ids = tokens(2, 4 * 32 + 37)
    assert not kernel.serves(torch.empty(2, 4, 32, 16))
    results = []
    for shortest in (10**9, 1):
        monkeypatch.setattr(kernel, "SHORTEST", shortest)
        monkeypatch.setattr(kernel, "BLOCK", 8)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        results.append((loss.detach(), torch.cat([g.flatten() for g in gradients])))
    (loss_a, g_a), (loss_b, g_b) = results
    torch.testing.assert_close(loss_a, loss_b, rtol=1e-6, atol=0)
    assert not torch.equal(g_a, g_b)  # the other kernel did run
    assert (g_a - g_b).norm() < 1e-5 * g_a.norm()
