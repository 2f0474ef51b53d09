"""RMS norms in few operations: proven on the layer itself, equal to it, frozen or trained."""

import copy

import pytest
import torch
from torch import nn
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from hylorada.kernels.frozen_layers import restore, use_frozen_kernels

WIDTH = 13
LAYERS = {
    "llama": lambda: LlamaRMSNorm(WIDTH, 1e-5),
    "gemma": lambda: GemmaRMSNorm(WIDTH),
    "t5": lambda: T5LayerNorm(WIDTH),
    "torch": lambda: nn.RMSNorm(WIDTH, eps=1e-6),
}


def made(name):
    torch.manual_seed(0)
    layer = LAYERS[name]()
    nn.init.normal_(layer.weight)
    return layer, copy.deepcopy(layer)


def in_double(name, layer, x):
    """The formula, written out."""
    weight, x = layer.weight.double(), x.double()
    eps = getattr(layer, "variance_epsilon", getattr(layer, "eps", None))
    normed = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    return (weight + 1 if name == "gemma" else weight) * normed


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(7, WIDTH), (2, 3, 5, WIDTH), (1, WIDTH), (0, WIDTH), (WIDTH,)])
def test_output_and_gradients_are_those_of_the_formula(name, shape):
    plain, fast = made(name)
    assert use_frozen_kernels(fast) == 1
    x = torch.randn(*shape) * torch.logspace(-5, 2, shape[0] if len(shape) > 1 else 1).view(
        -1, *[1] * (len(shape) - 1)
    )
    x.requires_grad_()
    g = torch.randn(*shape)
    outputs = [plain(x), fast(x), in_double(name, plain, x).float()]
    assert type(outputs[1].grad_fn).__name__ == "_RMSNormBackward"
    torch.testing.assert_close(outputs[1], outputs[2], rtol=1e-5, atol=1e-6)
    slopes = [
        torch.autograd.grad(y, (x, layer.weight), g)
        for y, layer in zip(outputs, (plain, fast, plain), strict=True)
    ]
    # No worse than the layer's own, whose float32 is a matter of scale too.
    for own, got, want in zip(*slopes, strict=True):
        if want.numel():
            assert (got - want).norm() <= 3 * (own - want).norm() + 1e-6 * want.norm()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("weight", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_precision_is_the_layers_own(name, weight, autocast):
    plain, fast = made(name)
    plain.to(weight), fast.to(weight)
    exchanged = use_frozen_kernels(fast)
    assert exchanged == 1 or (name in ("torch", "t5") and weight == torch.bfloat16)
    rows = torch.randn(4, WIDTH)
    for x in (rows, rows.bfloat16()):
        if name == "torch" and x.dtype != weight and not autocast:
            continue
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            want, got = plain(x), fast(x)
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=0.02, atol=0.02)


def test_a_frozen_norm_gives_its_input_the_same_gradient():
    plain, fast = made("llama")
    plain.requires_grad_(False), fast.requires_grad_(False)
    use_frozen_kernels(fast)
    x, g = torch.randn(5, WIDTH, requires_grad=True), torch.randn(5, WIDTH)
    want, got = (torch.autograd.grad(layer(x), x, g)[0] for layer in (plain, fast))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


class Halved(LlamaRMSNorm):
    """As its name says not: half of what it should be."""

    def forward(self, hidden_states):
        return super().forward(hidden_states) * 0.5


class Gated(LlamaRMSNorm):
    def forward(self, hidden_states, gate=None):
        normed = super().forward(hidden_states)
        return normed if gate is None else normed * gate


def test_a_layer_that_computes_something_else_is_left_alone():
    others = [nn.LayerNorm(WIDTH, bias=False), CohereLayerNorm(WIDTH), Halved(WIDTH)]
    model = nn.Sequential(*others)
    assert use_frozen_kernels(model) == 0
    broken = LlamaRMSNorm(WIDTH)
    nn.init.constant_(broken.weight, float("nan"))
    assert use_frozen_kernels(broken) == 0


def test_what_is_asked_beside_rows_takes_the_layers_own_forward():
    layer = Gated(WIDTH)
    x, gate = torch.randn(2, 4, WIDTH)
    want = layer(x, gate)
    assert use_frozen_kernels(layer) == 1
    assert torch.equal(layer(x, gate), want)
    double = layer.double()
    assert type(double(x.double().requires_grad_()).grad_fn).__name__ != "_RMSNormBackward"


def test_random_numbers_and_types_do_not_notice():
    layer, same = made("gemma")
    torch.manual_seed(3)
    want = torch.randn(2)
    torch.manual_seed(3)
    assert use_frozen_kernels(layer) == 1
    assert torch.equal(torch.randn(2), want)
    assert isinstance(copy.deepcopy(layer), GemmaRMSNorm)
    assert restore(layer) == 1
    assert type(layer) is GemmaRMSNorm
    x = torch.randn(3, WIDTH)
    assert torch.equal(layer(x), same(x))
