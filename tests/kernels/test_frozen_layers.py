"""Frozen kernels: same function, same parameters, exactly causal, and undone without a trace."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers.families import FAMILIES, make_model, tokens
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import nn
from transformers.activations import FastGELUActivation, NewGELUActivation
from transformers.pytorch_utils import Conv1D

from hylorada.kernels import linear
from hylorada.kernels.frozen_layers import restore, use_frozen_kernels
from hylorada.kernels.frozen_weights import keep_products_in
from hylorada.methods import HyloradaConfig, adapt


def adapted(family, **options):
    options = {"r": 2, "target_modules": "all-linear", "init_lora_weights": False} | options
    model = get_peft_model(make_model(family), LoraConfig(**options))
    return model


def trainable(model):
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def logits_and_gradients(model, ids):
    logits = model(input_ids=ids, use_cache=False).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
    return logits.detach(), torch.autograd.grad(loss, list(trainable(model).values()))


@pytest.mark.parametrize("make", [lambda: nn.Linear(12, 20), lambda: Conv1D(20, 12)])
@pytest.mark.parametrize("train_bias", [False, True])
def test_frozen_linear_equals_the_plain_layer(make, train_bias):
    torch.manual_seed(0)
    plain = make().requires_grad_(False)
    nn.init.normal_(plain.bias).requires_grad_(train_bias)
    fast = copy.deepcopy(plain)
    assert use_frozen_kernels(fast) == 1
    x = torch.randn(3, 7, 12, requires_grad=True)
    g = torch.randn(3, 7, 20)
    outputs = [layer(x) for layer in (plain, fast)]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)
    for cotangent in (g, torch.ones(1).expand(3, 7, 20)):  # contiguous, and with stride 0
        want, got = (torch.autograd.grad(y, x, cotangent, retain_graph=True)[0] for y in outputs)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    if train_bias:
        want, got = (
            torch.autograd.grad(y, layer.bias, g)[0]
            for y, layer in zip(outputs, (plain, fast), strict=True)
        )
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 12), (0, 12), (5, 1, 12), (12,)])
def test_odd_shapes_and_strides(shape):
    fast = nn.Linear(12, 20).requires_grad_(False)
    x = torch.randn(*shape)
    want = fast(x)
    use_frozen_kernels(fast)
    torch.testing.assert_close(fast(x), want, rtol=1e-5, atol=1e-6)
    strided = torch.randn(12, 9).t()
    torch.testing.assert_close(
        fast(strided), F.linear(strided, fast.weight, fast.bias), rtol=1e-5, atol=1e-6
    )


def test_frozen_linear_saves_no_activation():
    fast = nn.Linear(12, 20).requires_grad_(False)
    use_frozen_kernels(fast)
    y = fast(torch.randn(7, 12, requires_grad=True))
    saved = y.grad_fn.saved_tensors
    assert [t.data_ptr() for t in saved] == [fast.weight.data_ptr()]


def test_a_weight_that_trains_takes_the_plain_path():
    fast = nn.Linear(12, 20)
    use_frozen_kernels(fast)
    fast(torch.randn(7, 12)).sum().backward()
    assert fast.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_the_plain_layers(family):
    """In fp64, where only the algebra can differ."""
    model = adapted(family).double()
    ids = tokens(2, 37)
    want_logits, want = logits_and_gradients(model, ids)
    assert use_frozen_kernels(model) > 0
    assert use_frozen_kernels(model) == 0
    got_logits, got = logits_and_gradients(model, ids)
    torch.testing.assert_close(got_logits, want_logits, rtol=1e-10, atol=1e-10)
    for name, g, w in zip(trainable(model), got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-8, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family", FAMILIES)
def test_no_worse_than_the_plain_kernels_against_fp64(family):
    model = adapted(family)
    ids = tokens(1, 37)
    _, exact = logits_and_gradients(copy.deepcopy(model).double(), ids)
    _, plain = logits_and_gradients(model, ids)
    use_frozen_kernels(model)
    _, fast = logits_and_gradients(model, ids)

    def error(gradients):
        pairs = zip(gradients, exact, strict=True)
        return sum(float((g - e).square().sum()) for g, e in pairs) ** 0.5

    assert error(fast) < 3 * error(plain)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_bf16_autocast_stays_as_close_to_fp32_as_the_plain_kernels(family):
    model = adapted(family)
    ids = tokens(1, 37)
    _, exact = logits_and_gradients(model, ids)
    errors = []
    for exchange in (restore, use_frozen_kernels):
        exchange(model)
        with torch.autocast("cpu", torch.bfloat16):
            logits, gradients = logits_and_gradients(model, ids)
        assert logits.dtype == torch.bfloat16
        assert all(g.dtype == torch.float32 for g in gradients)
        pairs = zip(gradients, exact, strict=True)
        errors.append(sum(float((g - e).square().sum()) for g, e in pairs) ** 0.5)
    assert errors[1] < 1.5 * errors[0]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_future_does_not_move_a_past_logit_by_a_bit(family, autocast):
    model = adapted(family).train()
    use_frozen_kernels(model)
    ids = tokens(1, 53)
    other = ids.clone()
    other[:, 29:] = tokens(1, 24, seed=9)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        a, b = (model(input_ids=x, use_cache=False).logits for x in (ids, other))
    assert torch.equal(a[:, :29], b[:, :29])
    assert not torch.equal(a[:, 29:], b[:, 29:])


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_gradient_checkpointing_gives_the_same_gradients(family):
    model = adapted(family).train()
    use_frozen_kernels(model)
    ids = tokens(1, 37)
    _, want = logits_and_gradients(model, ids)
    lm = model.get_base_model()
    enable = getattr(lm, "activation_checkpointing_enable", lm.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    _, got = logits_and_gradients(model, ids)
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g, w)


class TokenScale:
    """The least that a variant needs to take part: a trained factor per token."""

    def __init__(self, scale):
        self.scale = scale

    def scale_of(self, x):
        return self.scale

    def forward(self, module, *, active_adapter, x, result, **kwargs):
        u = module.lora_A[active_adapter](x) * module.scaling[active_adapter]
        return result + module.lora_B[active_adapter](u * self.scale)


@pytest.mark.parametrize("shape", [(2, 9, 1), (1, 9, 1), (9, 1), (1,)])
def test_a_variants_token_scale_and_its_gradient(shape):
    torch.manual_seed(1)
    base = nn.Sequential(nn.Linear(12, 20))
    model = get_peft_model(base, LoraConfig(r=3, target_modules=["0"], init_lora_weights=False))
    layer = next(m for m in model.modules() if isinstance(m, LoraLinear))
    scale = torch.rand(shape).requires_grad_()
    layer.lora_variant["default"] = TokenScale(scale)
    x = torch.randn(2, 9, 12, requires_grad=True)
    g = torch.randn(2, 9, 20)
    leaves = [x, scale, *trainable(model).values()]
    plain = layer(x)
    want = torch.autograd.grad(plain, leaves, g)
    use_frozen_kernels(model)
    fused = layer(x)
    assert type(fused.grad_fn).__name__ == "_LowRankProductBackward"
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)
    for got, expected in zip(torch.autograd.grad(fused, leaves, g), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_what_the_fused_layer_does_not_cover_keeps_pefts_forward():
    ids = tokens(1, 23)

    def output(model):
        torch.manual_seed(3)
        return model(input_ids=ids, use_cache=False).logits.detach()

    def check(model, tolerance=1e-4):
        want = output(model)
        use_frozen_kernels(model)
        torch.testing.assert_close(output(model), want, rtol=tolerance, atol=tolerance)
        return want

    plain = check(adapted("llama"))
    dropped = adapted("llama", lora_dropout=0.5).train()
    assert not torch.allclose(check(dropped), plain, atol=1e-2)
    check(adapted("llama", use_dora=True))
    check(adapted("opt", lora_bias=True))
    two = adapted("llama")
    two.add_adapter("other", two.peft_config["default"])
    two.base_model.set_adapter(["default", "other"])
    check(two)
    hooked = adapted("llama")
    for module in hooked.modules():
        if isinstance(module, LoraLinear):
            module.lora_B["default"].register_forward_hook(lambda m, i, o: o * 2)
    # Its own float32 is up to 1.5e-4 off here, as updates of such a size enlarge any rounding.
    assert not torch.allclose(check(hooked, 5e-4), plain, atol=1e-2)
    disabled = adapted("llama")
    with disabled.disable_adapter():
        assert not torch.allclose(check(disabled), plain, atol=1e-2)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_saving_merging_and_types_do_not_notice(family, tmp_path):
    model = adapted(family)
    reference = copy.deepcopy(model)
    use_frozen_kernels(model)
    keys = list(reference.state_dict())
    assert list(model.state_dict()) == keys
    for a, b in zip(model.modules(), reference.modules(), strict=True):
        assert isinstance(a, type(b))
    model.save_pretrained(tmp_path / "fast")
    reference.save_pretrained(tmp_path / "plain")
    name = "adapter_model.safetensors"
    assert (tmp_path / "fast" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()

    ids = tokens(1, 11)
    merged = model.merge_and_unload()
    want = reference.merge_and_unload()
    for a, b in zip(merged.parameters(), want.parameters(), strict=True):
        assert torch.equal(a, b)
    restore(merged)
    assert torch.equal(merged(ids).logits, want(ids).logits)


def test_restore_leaves_no_trace():
    model = adapted("gpt2")
    before = [type(m) for m in model.modules()]
    count = use_frozen_kernels(model)
    assert restore(model) == count
    assert [type(m) for m in model.modules()] == before
    assert restore(model) == 0


@pytest.mark.parametrize("activation", [NewGELUActivation, FastGELUActivation])
def test_tanh_gelu_is_the_same_function(activation):
    plain = activation()
    fast = nn.Sequential(activation())
    use_frozen_kernels(fast)
    x = torch.linspace(-9, 9, 4001, requires_grad=True)
    g = torch.randn(4001)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 5e-6)):
        # 1e-9: "gelu_fast" writes its constant with ten digits
        y_plain, y_fast = plain(x.to(dtype)), fast(x.to(dtype))
        torch.testing.assert_close(y_fast, y_plain, rtol=0, atol=tolerance)
        want, got = (torch.autograd.grad(y, x, g.to(dtype))[0] for y in (y_plain, y_fast))
        torch.testing.assert_close(got, want, rtol=0, atol=5e-6)


def test_without_onednn_the_plain_kernels_serve(monkeypatch):
    model = adapted("gpt2")
    ids = tokens(1, 19)
    use_frozen_kernels(model)
    want_logits, want = logits_and_gradients(model, ids)
    monkeypatch.setattr(linear, "_ONEDNN_LINEAR", None)
    got_logits, got = logits_and_gradients(model, ids)
    torch.testing.assert_close(got_logits, want_logits, rtol=1e-4, atol=1e-4)
    for g, w in zip(got, want, strict=True):
        assert (g - w).norm() < 1e-4 * w.norm()


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_every_adapted_layer_of_the_method_is_fused_and_equal(family):
    """Position bias trained, landmarks, S2 with an odd length: the whole method, in fp64."""
    model = adapt(
        make_model(family, trained_length=64),
        HyloradaConfig(
            r=2, max_length=128, position_bias_enabled=True, landmark_enabled=True,
            s2_attn_enabled=True, s2_group_size=16,
        ),
        max_length=128,
    ).double().train()  # fmt: skip
    torch.manual_seed(5)
    with torch.no_grad():
        for p in trainable(model).values():
            p.add_(torch.randn_like(p) * 0.1)
    ids = tokens(2, 101)
    want_logits, want = logits_and_gradients(model, ids)
    use_frozen_kernels(model)
    layers = [m for m in model.modules() if isinstance(m, LoraLinear)]
    outputs = []
    hooks = [m.register_forward_hook(lambda m, i, o: outputs.append(o.grad_fn)) for m in layers]
    got_logits, got = logits_and_gradients(model, ids)
    for hook in hooks:
        hook.remove()
    assert [type(f).__name__ for f in outputs] == ["_LowRankProductBackward"] * len(layers)
    torch.testing.assert_close(got_logits, want_logits, rtol=1e-9, atol=1e-9)
    for name, g, w in zip(trainable(model), got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_the_gradient_of_b_is_rounded_to_bf16_once():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(12, 20))
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["0"], init_lora_weights=False)
    model = get_peft_model(base, config)
    use_frozen_kernels(model)
    layer = next(m for m in model.modules() if isinstance(m, LoraLinear))
    x, g = torch.randn(40, 12), torch.randn(40, 20).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    (got,) = torch.autograd.grad(y, layer.lora_B["default"].weight, g)
    u = F.linear(x.bfloat16(), layer.lora_A["default"].weight.bfloat16())
    assert torch.equal(got, torch.mm(u.t(), g).t().float() * (5 / 3))


class PackedLinear(nn.Linear):
    """As a 4-bit layer looks: a subclass with a packed weight and a forward of its own."""

    def __init__(self) -> None:
        super().__init__(12, 20)
        packed = torch.zeros(120, 1, dtype=torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, x):
        return x.new_zeros(*x.shape[:-1], 20)


def test_a_layer_with_packed_weights_is_left_alone():
    model = nn.Sequential(PackedLinear(), nn.Linear(20, 5)).requires_grad_(False)
    assert use_frozen_kernels(model) == 1
    assert type(model[0]) is PackedLinear
    assert keep_products_in(model, torch.bfloat16) == 105
    assert model[0].weight.dtype == torch.uint8
    assert model[0].bias.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.ones(3, 12)).shape == (3, 5)
