"""Own kernels rest inside `left_out`, for this thread alone, and the numbers agree to rounding."""

from __future__ import annotations

import threading

import torch
from helpers.families import make_model, tokens

from hylorada.kernels import causal_attention
from hylorada.kernels.frozen_layers import FrozenConv1D, own_kernels, restore, use_frozen_kernels
from hylorada.kernels.switch import are_left_out, left_out
from hylorada.methods.s2_attention import enable_s2


def frozen(family: str = "gpt2"):
    model = make_model(family, 1200).requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(True)
    return model


def test_nothing_is_exchanged_while_kernels_rest():
    model = frozen()
    with left_out():
        assert use_frozen_kernels(model) == 0
    with left_out(False):
        assert use_frozen_kernels(model) > 0
    assert isinstance(model.transformer.h[0].mlp.c_fc, FrozenConv1D)
    restore(model)


def test_the_inner_of_two_blocks_does_not_wake_them():
    model = frozen()
    with left_out():
        with left_out(False):
            assert are_left_out()
        with own_kernels(model):
            assert are_left_out()
        assert are_left_out()
        assert restore(model) == 0
    assert not are_left_out()


def test_another_thread_keeps_its_kernels():
    seen = []
    with left_out():
        thread = threading.Thread(target=lambda: seen.append(are_left_out()))
        thread.start()
        thread.join()
        assert are_left_out()
    assert seen == [False]


def test_activation_checkpointing_recomputes_under_the_same_switch(monkeypatch):
    """Attention of the backward pass is that of the forward pass, with kernels and without."""
    model = frozen()
    enable_s2(model, 560, "heads")
    model.train().activation_checkpointing_enable({"use_reentrant": False})
    served, original = [], causal_attention.causal_attention

    def counted(*args):
        served.append(1)
        return original(*args)

    monkeypatch.setattr(causal_attention, "causal_attention", counted)
    ids = tokens(1, 1120)

    def gradient() -> tuple[int, int, torch.Tensor]:
        served.clear()
        model.zero_grad()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        forward = len(served)
        loss.backward()
        return forward, len(served) - forward, model.get_input_embeddings().weight.grad.clone()

    forward, again, own = gradient()
    assert forward == again > 0
    with left_out():
        forward, again, plain = gradient()
    assert forward == again == 0
    torch.testing.assert_close(own, plain, rtol=1e-3, atol=1e-6)
