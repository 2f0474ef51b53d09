"""Rotary embedding in few operations: proven on the model's function, equal, and rounded once."""

import pytest
import torch
from helpers.architectures import make_zoo_model
from helpers.families import make_model, tokens
from transformers.models.glm import modeling_glm
from transformers.models.llama import modeling_llama

from hylorada.kernels import rotary
from hylorada.kernels.frozen_layers import restore, use_frozen_kernels


def tables(tokens, width, rows=1, dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(2, rows, tokens, width, dtype=dtype).unbind()


@pytest.mark.parametrize("rows", [1, 2])
def test_the_rotation_and_its_gradient_are_those_of_the_models_function(rows):
    cos, sin = tables(5, 6, rows)
    q = torch.randn(2, 5, 3, 6, dtype=torch.float64).transpose(1, 2).requires_grad_()
    k = torch.randn(2, 5, 1, 6, dtype=torch.float64).transpose(1, 2).requires_grad_()
    original = modeling_llama.apply_rotary_pos_emb
    results = []
    for rotate in (original, lambda *args: rotary._rotate(original, *args)):
        turned = rotate(q, k, cos, sin)
        results.append([*turned, *torch.autograd.grad(sum(x.sin().sum() for x in turned), (q, k))])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert type(rotary._rotate(original, q, k, cos, sin)[0].grad_fn).__name__ == "_RotationBackward"
    # what it was not proven for goes to the model's function
    by_tokens = [x.transpose(1, 2) for x in (q, k)]
    want, got = original(*by_tokens, cos, sin, 2), rotary._rotate(original, *by_tokens, cos, sin, 2)
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


def test_under_autocast_it_is_rounded_once_to_what_its_readers_would_cast_it_to():
    cos, sin = tables(7, 8, dtype=torch.float32)
    q = torch.randn(1, 2, 7, 8).bfloat16()
    original = modeling_llama.apply_rotary_pos_emb
    with torch.autocast("cpu", torch.bfloat16):
        want = original(q, q, cos, sin)[0]
        got = rotary._rotate(original, q, q, cos, sin)[0]
    assert want.dtype == torch.float32
    assert got.dtype == torch.bfloat16
    # a multiplication and an addition in one have another last bit, so a bf16 now and then
    assert (got != want.bfloat16()).float().mean() < 0.02
    torch.testing.assert_close(got.float(), want, rtol=2**-7, atol=1e-6)


def test_which_functions_are_taken():
    cpu = torch.device("cpu")
    assert rotary._is_rotation(modeling_llama.apply_rotary_pos_emb, cpu)
    assert not rotary._is_rotation(modeling_glm.apply_rotary_pos_emb, cpu)  # pairs of neighbours


@pytest.mark.parametrize(
    ("family", "taken"),
    [("llama", True), ("qwen3", True), ("gemma", True), ("phi", True), ("stablelm", True),
     ("glm", False), ("gptj", False), ("gpt2", False)],
)  # fmt: skip
def test_a_models_attention_takes_it_if_its_function_does_and_no_other_model_notices(family, taken):
    model, other = make_zoo_model(family), make_zoo_model(family)
    ids = tokens(2, 23)
    want = model(ids).logits.detach()
    use_frozen_kernels(model)
    calls = []
    apply = rotary._Rotation.apply
    try:
        rotary._Rotation.apply = lambda *args: calls.append(1) or apply(*args)
        got = model(ids).logits
        assert bool(calls) is taken
        calls.clear()
        assert torch.equal(other(ids).logits, want)
        restore(model)
        assert torch.equal(model(ids).logits, want)
        assert not calls
    finally:
        rotary._Rotation.apply = apply
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_a_cache_is_read_as_before():
    model = make_model("llama")
    ids = tokens(1, 20)
    want = model.generate(ids, max_new_tokens=5, do_sample=False)
    use_frozen_kernels(model)
    assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False), want)
