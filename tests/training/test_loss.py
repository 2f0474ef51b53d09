"""The chunked loss beside the plain one: same numbers, without the logits."""

import pytest
import torch
import torch.nn.functional as F
from helpers.families import FAMILIES, VOCAB, make_model, tokens
from peft import LoraConfig, get_peft_model

from hylorada.errors import ConfigError
from hylorada.training.loss import (
    LossModel,
    _chunks,
    _rows_at_a_time,
    chunked_cross_entropy,
    next_token_labels,
)

N, D = 61, 24  # odd, so that the last chunk is short


def plain(hidden, weight, bias, labels, num_tokens=None):
    logits = (
        F.linear(hidden, weight, bias).float()
        if hidden.dtype != torch.float64
        else F.linear(hidden, weight, bias)
    )
    total = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum")
    return total / ((labels != -100).sum() if num_tokens is None else num_tokens)


def problem(dtype=torch.float32, bias=True, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, generator=g).to(dtype).requires_grad_()
    weight = (torch.randn(VOCAB, D, generator=g) * 0.5).to(dtype).requires_grad_()
    b = torch.randn(VOCAB, generator=g).to(dtype).requires_grad_() if bias else None
    labels = torch.randint(0, VOCAB, (N,), generator=g)
    labels[[0, 5, 60]] = -100
    labels[16:32] = -100  # a whole chunk of 16 without a target
    return hidden, weight, b, labels


@pytest.mark.parametrize("chunk", [1, 7, 16, 61, 512])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_plain_loss_and_gradients_in_fp64(chunk, bias):
    inputs = problem(torch.float64, bias)
    leaves = [x for x in inputs[:3] if x is not None]
    expected = torch.autograd.grad(plain(*inputs), leaves)
    loss = chunked_cross_entropy(*inputs, chunk=chunk)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, plain(*inputs), rtol=1e-13, atol=0)
    for got, want in zip(torch.autograd.grad(loss, leaves), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-15)


def test_gradcheck_with_a_weight_on_the_loss():
    g = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()
        for shape in ((7, 3), (5, 3), (5,))
    )
    labels = torch.tensor([0, 4, -100, 2, 2, -100, 1])

    def scaled(h, w, b):
        return 3.0 * chunked_cross_entropy(h, w, b, labels, chunk=4)

    assert torch.autograd.gradcheck(scaled, (hidden, weight, bias))


def test_is_as_exact_as_the_plain_loss_in_fp32():
    """Both are compared with fp64; the chunked one may not be the worse by more than noise."""
    hidden, weight, bias, labels = problem()
    exact = torch.autograd.grad(
        plain(hidden.double(), weight.double(), bias.double(), labels), [hidden, weight, bias]
    )
    chunked = torch.autograd.grad(
        chunked_cross_entropy(hidden, weight, bias, labels, chunk=16), [hidden, weight, bias]
    )
    for got, want in zip(chunked, exact, strict=True):
        torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-7)  # fp32 eps times ~100 terms


def test_a_frozen_head_gets_no_gradient_and_nothing_but_the_hidden_gradient_is_kept():
    hidden, weight, bias, labels = problem()
    loss = chunked_cross_entropy(hidden, weight.detach(), bias.detach(), labels, num_tokens=1)
    saved = [t for t in loss.grad_fn.next_functions[0][0].saved_tensors if t is not None]
    assert [tuple(t.shape) for t in saved] == [(N, D)]
    loss.backward()
    expected = torch.autograd.grad(plain(hidden, weight, bias, labels, 1), hidden)[0]
    torch.testing.assert_close(hidden.grad, expected, rtol=1e-4, atol=1e-5)
    assert weight.grad is None


def test_num_tokens_divides_the_sum():
    inputs = problem()
    total = chunked_cross_entropy(*inputs, num_tokens=1)
    torch.testing.assert_close(chunked_cross_entropy(*inputs, num_tokens=128), total / 128)
    scored = int((inputs[3] != -100).sum())
    torch.testing.assert_close(chunked_cross_entropy(*inputs), total / scored)


def test_backward_twice_accumulates_the_same_gradient():
    hidden, weight, bias, labels = problem(torch.float64)
    loss = chunked_cross_entropy(hidden, weight, bias, labels, chunk=16)
    loss.backward(retain_graph=True)
    once = hidden.grad.clone()
    loss.backward()
    torch.testing.assert_close(hidden.grad, 2 * once, rtol=0, atol=0)


def test_nothing_to_score_is_zero_with_zero_gradient():
    hidden, weight, bias, labels = problem()
    loss = chunked_cross_entropy(hidden, weight, bias, torch.full_like(labels, -100), chunk=16)
    loss.backward()
    assert loss.item() == 0.0
    assert hidden.grad.abs().max() == 0.0
    assert weight.grad.abs().max() == 0.0


def test_without_gradients_only_the_loss_is_computed():
    hidden, weight, bias, labels = problem()
    with torch.no_grad():
        loss = chunked_cross_entropy(hidden, weight, bias, labels, chunk=16)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain(hidden, weight, bias, labels).detach())


def test_bf16_autocast_keeps_the_softmax_in_fp32():
    """With logits around 300 a bf16 softmax would be off by whole nats (bf16 eps there is 1)."""
    hidden, weight, bias, labels = problem()
    with torch.no_grad():
        hidden *= 20
    with torch.autocast("cpu", torch.bfloat16):
        loss = chunked_cross_entropy(hidden, weight, bias, labels, chunk=16)
        reference = plain(hidden, weight, bias, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, reference, rtol=1e-6, atol=0)  # same bf16 logits, fp32 after
    got = torch.autograd.grad(loss, hidden)[0]
    want = torch.autograd.grad(reference, hidden)[0]
    assert got.dtype == torch.float32
    assert (got - want).norm() / want.norm() < 0.01  # bf16 rounding of the gradient, 2^-8


def test_rejects_wrong_shapes_and_chunks():
    hidden, weight, bias, labels = problem()
    with pytest.raises(ValueError, match="do not fit"):
        chunked_cross_entropy(hidden, weight, bias, labels[1:])
    with pytest.raises(ConfigError, match="loss_chunk=-1"):
        chunked_cross_entropy(hidden, weight, bias, labels, chunk=-1)


@pytest.mark.parametrize(
    ("device", "chunk", "vocabulary", "rows"),
    [
        ("cpu", 512, 50257, 128),  # 8 MB of float32
        ("cpu", 0, 50257, 128),
        ("cpu", 512, 300, 512),
        ("cpu", 0, 300, 6990),
        ("cuda", 512, 50257, 512),
        ("cuda", 0, 50257, 2048),
        ("cuda", 0, 256000, 1048),  # 1 GB
    ],
)
def test_how_many_tokens_have_logits_at_a_time(device, chunk, vocabulary, rows):
    assert _rows_at_a_time(chunk, vocabulary, torch.device(device)) == rows


def test_chunks_by_device_give_the_same_loss():
    hidden, weight, bias, labels = problem()
    losses = [chunked_cross_entropy(hidden, weight, bias, labels, chunk=c) for c in (0, 3)]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)


def test_next_token_labels_shift_by_one_and_ignore_the_end():
    labels = torch.tensor([[5, 6, -100, 8]])
    assert next_token_labels(labels).tolist() == [[6, -100, 8, -100]]


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_model_equals_the_models_own_loss_and_gradients(family):
    ids = tokens(2, 37)
    labels = ids.clone()
    labels[1, 20:] = -100
    model = make_model(family)
    adapted = get_peft_model(
        model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    )
    trainable = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    own = adapted(input_ids=ids, labels=labels, use_cache=False).loss
    expected = torch.autograd.grad(own, list(trainable.values()))

    sum_nll, count = LossModel(adapted, chunk=16)(ids, labels)
    assert int(count) == 36 + 19
    loss = sum_nll / count
    torch.testing.assert_close(loss, own, rtol=1e-6, atol=0)
    got = torch.autograd.grad(loss, list(trainable.values()))
    for name, g, e in zip(trainable, got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_micro_batches_of_different_size_weigh_by_their_tokens():
    model = make_model("llama")
    loss_model = LossModel(model, chunk=16)
    ids = tokens(2, 37)
    labels = ids.clone()
    labels[1, 5:] = -100
    whole, n = loss_model(ids, labels)
    parts = [loss_model(ids[i : i + 1], labels[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(whole / n, sum(s for s, _ in parts) / sum(c for _, c in parts))
    assert [int(c) for _, c in parts] == [36, 4]


def test_packed_documents_score_as_they_do_alone():
    model = make_model("llama")
    loss_model = LossModel(model, chunk=16)
    a, b = tokens(1, 20, seed=1), tokens(1, 17, seed=2)
    labels = torch.cat([a, b], 1)
    labels[0, 20] = -100  # the first token of a document has no predecessor
    positions = torch.cat([torch.arange(20), torch.arange(17)])[None]
    packed, n = loss_model(torch.cat([a, b], 1), labels, position_ids=positions)
    (nll_a, n_a), (nll_b, n_b) = loss_model(a, a), loss_model(b, b)
    assert int(n) == int(n_a + n_b)
    torch.testing.assert_close(packed, nll_a + nll_b, rtol=1e-5, atol=0)


def test_an_adapter_on_the_head_is_refused():
    model = make_model("gpt2")
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"]))
    with pytest.raises(ConfigError, match="output head"):
        LossModel(model)


def test_what_is_not_scored_gets_no_gradient_at_all():
    hidden, weight, bias, labels = problem()
    gradient = torch.autograd.grad(chunked_cross_entropy(hidden, weight, bias, labels), hidden)[0]
    assert torch.equal(gradient.any(1), labels != -100)


def test_only_labels_of_the_host_are_asked_which_chunks_are_scored():
    scored = torch.arange(10) > 6
    assert _chunks(scored, 4) == [slice(4, 8), slice(8, 10)]
    assert _chunks(scored.to("meta"), 4) == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert _chunks(scored[:0], 4) == []
