"""Attention and loss on a GPU against the CPU and against the definition."""

import copy

import pytest
import torch
from helpers.families import make_model, tokens
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from hylorada.architecture import anatomy
from hylorada.kernels import grouped_heads
from hylorada.kernels.compiled import compiled_layers, refuse_without_compiler
from hylorada.kernels.frozen_layers import use_frozen_kernels
from hylorada.methods.s2_attention import enable_s2
from hylorada.training.loss import LossModel, chunked_cross_entropy

LENGTH = 61


def loss_and_gradients(family, device, s2, fast=False):
    model = make_model(family).train().to(device)
    if fast:
        use_frozen_kernels(model)
    if s2:
        enable_s2(model, 8, "layers")
    ids = tokens(2, LENGTH).to(device)
    loss, _ = LossModel(model, 16)(ids, ids)
    loss.backward()
    return loss.cpu(), {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("s2", [False, True], ids=["sdpa", "s2"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_loss_and_gradients_are_those_of_the_cpu(device, family, s2):
    grouped_heads.use_here(device)
    there, on_device = loss_and_gradients(family, device, s2)
    here, on_cpu = loss_and_gradients(family, torch.device("cpu"), s2)
    torch.testing.assert_close(there, here, rtol=1e-4, atol=0)
    for name, gradient in on_cpu.items():
        off = (on_device[name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert off < 1e-3, name


def test_grouped_heads_in_float32_build_no_matrix_of_scores(device):
    length, heads = 4096, 8
    q, k, v = (torch.randn(1, h, length, 64, device=device) for h in (heads, 2, 2))
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    layer = torch.nn.Module()
    layer.num_key_value_groups, layer.is_causal = heads // 2, True
    grouped_heads.sdpa(layer, q, k, v, None)
    assert torch.cuda.max_memory_allocated(device) - before < heads * length**2 * 4 / 4


@pytest.mark.parametrize("labels", ["all", "some", "none"])
def test_chunked_loss_against_float64(device, labels):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 32, generator=generator)
    weight = torch.randn(97, 32, generator=generator)
    target = torch.randint(0, 97, (300,), generator=generator)
    target[{"all": slice(0), "some": slice(7, 200), "none": slice(None)}[labels]] = -100
    exact = [t.double().requires_grad_() for t in (hidden, weight)]
    want = torch.nn.functional.cross_entropy(exact[0] @ exact[1].T, target, reduction="sum")
    want.backward()
    found = [t.to(device).requires_grad_() for t in (hidden, weight)]
    got = chunked_cross_entropy(*found, None, target.to(device), chunk=64, num_tokens=1)
    got.backward()
    torch.testing.assert_close(got.cpu().double(), want, rtol=1e-5, atol=1e-9)
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a.grad.cpu().double(), b.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_norm_is_torchs_own_kernel_where_input_and_weight_are_of_one_precision(device, precision):
    plain = LlamaRMSNorm(64).to(device, precision)
    torch.nn.init.normal_(plain.weight)
    fast = copy.deepcopy(plain)
    assert use_frozen_kernels(fast) == 1
    x = torch.randn(7, 64, device=device, dtype=precision, requires_grad=True)
    g = torch.randn_like(x)
    want, got = plain(x), fast(x)
    assert "RmsNorm" in type(got.grad_fn).__name__
    close = {"rtol": 1e-5, "atol": 1e-5} if precision == torch.float32 else {"rtol": 0, "atol": 0.1}
    torch.testing.assert_close(got, want, **close)
    slopes = [torch.autograd.grad(y, (x, m.weight), g) for y, m in ((want, plain), (got, fast))]
    limit = 1e-4 if precision == torch.float32 else 0.03
    for own, ours in zip(*slopes, strict=True):
        assert (own - ours).float().norm() < limit * own.norm()


def test_norms_and_rotary_embedding_in_few_operations_are_those_of_the_model(device):
    own, fast = (loss_and_gradients("llama", device, s2=True, fast=f) for f in (False, True))
    torch.testing.assert_close(fast[0], own[0], rtol=1e-5, atol=0)
    for name, gradient in own[1].items():
        assert (fast[1][name] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-6, name


def test_compiled_layers_give_the_same_loss(device):
    refuse_without_compiler(device)
    model = make_model("llama").train().to(device)
    use_frozen_kernels(model)
    loss_model, ids = LossModel(model, 16), tokens(2, LENGTH).to(device)
    want, _ = loss_model(ids, ids)
    with compiled_layers(model) as compiled:
        got, _ = loss_model(ids, ids)
        got.backward()
    assert compiled.calls == len(anatomy.decoder_layers(model))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=0)
