"""Own kernels rest inside `left_out`, for this thread alone."""

from __future__ import annotations

import threading

from helpers.families import make_model

from hylorada.kernels.frozen_layers import FrozenConv1D, own_kernels, restore, use_frozen_kernels
from hylorada.kernels.switch import are_left_out, left_out


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
