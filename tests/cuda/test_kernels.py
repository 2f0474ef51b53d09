"""Attention and loss on a GPU against the CPU and against the definition."""

import pytest
import torch
from helpers.families import make_model, tokens

from hylorada.kernels import grouped_heads
from hylorada.methods.s2_attention import enable_s2
from hylorada.training.loss import LossModel, chunked_cross_entropy

LENGTH = 61


def loss_and_gradients(family, device, s2):
    model = make_model(family).train().to(device)
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
