"""Gradient checkpointing: the same gradients, which layers, from where, and random states."""

import pytest
import torch
from helpers.families import make_model, tokens

from hylorada.architecture import anatomy
from hylorada.config import TrainConfig
from hylorada.methods import HyloradaConfig, adapt
from hylorada.training.loss import LossModel
from hylorada.training.recomputation import as_configured, draws, gradient_checkpointing

LENGTH = 29


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_gradient_checkpointing_recomputes_and_gives_the_same_gradients(family):
    ids = tokens(2, LENGTH)
    gradients, calls = {}, {}
    for enabled in (False, True):
        model = make_model(family).train()
        loss_model = LossModel(model, 16)  # looks how the model makes its logits
        count = calls.setdefault(enabled, [])
        layer = anatomy.attention_modules(model)[0]
        layer.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        with gradient_checkpointing(model, enabled):
            sum_nll, _ = loss_model(ids, ids)
            sum_nll.backward()
        gradients[enabled] = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert (len(calls[False]), len(calls[True])) == (1, 2)
    for name, gradient in gradients[False].items():
        assert torch.equal(gradient, gradients[True][name]), name


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(("every", "offload"), [(1, True), (2, False), (2, True), (5, False)])
def test_some_layers_are_recomputed_and_what_from_may_wait_elsewhere(family, every, offload):
    ids = tokens(2, LENGTH)
    gradients, ran, kept = [], [], []
    for enabled in (False, True):
        model = make_model(family).train()
        loss_model = LossModel(model, 16)
        for i, layer in enumerate(anatomy.attention_modules(model)):
            layer.register_forward_pre_hook(lambda *_, i=i: ran.append(i))
        pack = torch.autograd.graph.save_on_cpu.__init__

        def noted(self, *args, pack=pack, **kwargs):
            kept.append(1)
            pack(self, *args, **{**kwargs, "pin_memory": False})  # a CPU has none

        with (
            pytest.MonkeyPatch.context() as patch,
            gradient_checkpointing(model, enabled, every, offload),
        ):
            patch.setattr(torch.autograd.graph.save_on_cpu, "__init__", noted)
            loss_model(ids, ids)[0].backward()
        gradients.append([p.grad for p in model.parameters()])
    layers = range(len(anatomy.attention_modules(model)))
    assert len(layers) > 1
    recomputed = [i for i in layers if i % every == 0]
    assert sorted(ran) == sorted([*layers, *layers, *recomputed])
    assert bool(kept) is offload
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("dropout", ["lora", "attention", None])
def test_random_states_are_kept_for_layers_that_draw_and_for_no_others(dropout, monkeypatch):
    base = make_model("llama")
    for attention in anatomy.attention_modules(base):
        attention.attention_dropout = 0.3 if dropout == "attention" else 0.0
    lora = {"r": 2, "lora_dropout": 0.3 if dropout == "lora" else 0.0, "lora_init": "kaiming"}
    model = adapt(base, HyloradaConfig(**lora), max_length=LENGTH)
    model.eval()
    torch.manual_seed(4)
    want = torch.rand(3)
    torch.manual_seed(4)
    assert draws(model, None) is (dropout is not None)
    assert torch.equal(torch.rand(3), want)
    assert not any(module.training for module in model.modules())

    ids = tokens(2, LENGTH)
    loss_model = LossModel(model, 16)
    gradients, asked = [], []
    get = torch.get_rng_state
    for enabled in (False, True):
        torch.manual_seed(5)
        settings = TrainConfig(gradient_checkpointing=enabled)
        with as_configured(model.train(), settings, None), monkeypatch.context() as patch:
            patch.setattr(torch, "get_rng_state", lambda: asked.append(1) or get())
            loss_model(ids, ids)[0].backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
        model.zero_grad()
    assert bool(asked) is (dropout is not None)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
