"""Compiled layers: they run, they give the same numbers, and what cannot be compiled is refused."""

import copy

import pytest
import torch
import torch._dynamo
from helpers.families import make_model, tokens

from hylorada.architecture import anatomy
from hylorada.errors import ConfigError
from hylorada.kernels.compiled import compiled_layers, refuse_without_compiler
from hylorada.kernels.frozen_layers import use_frozen_kernels
from hylorada.methods import HyloradaConfig, adapt
from hylorada.training.loss import LossModel

CPU = torch.device("cpu")
LENGTH = 101  # no multiple of a group


def adapted(family):
    """Every component, none of them at its first values."""
    config = HyloradaConfig(
        r=2, max_length=128, position_bias_enabled=True, landmark_enabled=True,
        s2_attn_enabled=True, s2_group_size=16, train_norms=True,
    )  # fmt: skip
    model = adapt(make_model(family, trained_length=64), config, max_length=128).train()
    torch.manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.1)
    use_frozen_kernels(model)
    return model


def loss_and_gradients(loss_model, ids):
    loss, _ = loss_model(ids, ids)
    parameters = [p for p in loss_model.parameters() if p.requires_grad]
    return loss.detach(), torch.autograd.grad(loss, parameters)


def close(got, want):
    torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=0)
    for a, b in zip(got[1], want[1], strict=True):
        assert (a - b).norm() <= 1e-3 * b.norm() + 1e-6


@pytest.mark.long  # a minute each; a run that compiles its layers is slow alone
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_layer_runs_compiled_and_gives_the_same_numbers(family):
    model = adapted(family)
    loss_model, ids = LossModel(model, 16), tokens(1, LENGTH)
    layers = len(anatomy.decoder_layers(model))
    names, before = list(model.state_dict()), copy.deepcopy(model.state_dict())
    want = loss_and_gradients(loss_model, ids)
    with compiled_layers(model) as compiled:
        close(loss_and_gradients(loss_model, ids), want)
        assert compiled.calls == layers
        # S2 shifts every other layer, and the first one's input needs no gradient
        assert compiled.graphs == 3
        close(loss_and_gradients(loss_model, ids), want)
        assert (compiled.graphs, compiled.calls) == (3, 2 * layers)
        # another length, and rows of more documents, are graphs of their own, and run compiled
        position_ids = torch.cat([torch.arange(40), torch.arange(37)])[None]
        calls = compiled.calls
        loss_model(tokens(1, 77), tokens(1, 77), position_ids)
        assert compiled.calls == calls + layers
        # what is measured is not compiled, nor what rests
        calls = compiled.calls
        model.eval()(ids)
        model.train()
        with compiled.resting():
            close(loss_and_gradients(loss_model, ids), want)
        assert compiled.calls == calls
        assert list(model.state_dict()) == names
    close(loss_and_gradients(loss_model, ids), want)
    assert compiled.calls == calls
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_cannot_be_compiled_ends_in_one_line():
    model = make_model("llama").train()
    layer = anatomy.decoder_layers(model)[0]
    layer.mlp.register_forward_hook(lambda m, args, out: out if out.sum() > 0 else -out)
    ids = tokens(1, 12)
    with compiled_layers(model), pytest.raises(ConfigError, match="compile=none") as refused:
        model(ids)
    assert "\n" not in str(refused.value)
    assert "LlamaDecoderLayer" in str(refused.value)
    model(ids)


@pytest.mark.parametrize("by_variable", [True, False])
def test_a_layer_that_ran_uncompiled_is_refused(by_variable, monkeypatch):
    if by_variable:
        monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    else:  # what TORCH_COMPILE_DISABLE sets when torch is imported
        monkeypatch.setattr(torch._dynamo.config, "disable", True)
    model = make_model("llama").train()
    with compiled_layers(model) as compiled, pytest.raises(ConfigError, match="without compiling"):
        model(tokens(1, 12))
    assert compiled.calls == 0
    model(tokens(1, 12))


def test_without_a_compiler_it_is_refused(monkeypatch, tmp_path):
    refuse_without_compiler(CPU)
    monkeypatch.setenv("CXX", "no-such-compiler -O3")
    with pytest.raises(ConfigError, match=r"there is no no-such-compiler -O3.*train.compile=none"):
        refuse_without_compiler(CPU)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"a C\+\+ compiler"):
        refuse_without_compiler(CPU)
