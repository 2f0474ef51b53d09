"""s(p) against an independent oracle: plain LoRA of peft with a hook that scales what B gives."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.families import FAMILIES, make_model, tokens
from helpers.shaken import EXACT, shaken
from torch import nn

from hylorada.architecture import anatomy
from hylorada.methods import HyloradaConfig, adapt
from hylorada.methods.position_bias import PositionBias
from hylorada.methods.positions import bucket, buckets_reached

BIAS = {"position_bias_enabled": True}


def test_log2_buckets_are_exact_where_a_float_logarithm_is_not():
    positions = [0, 1, 2, 3, 1022, 1023, 1024, 2**21 - 2, 2**21 - 1, 2**24, 2**25 - 2, 2**40 - 1]
    expected = [(p + 1).bit_length() - 1 for p in positions]
    assert bucket(torch.tensor([positions]), 64, "log2", 0).tolist() == [expected]


def test_buckets_stay_inside_the_table_and_pad_positions_count_as_the_first():
    positions = torch.tensor([[-1, 0, 9, 10_000]])
    assert bucket(positions, 4, "log2", 0).tolist() == [[0, 0, 3, 3]]
    assert bucket(positions, 8, "relative", 80).tolist() == [[0, 0, 0, 7]]


def test_relative_buckets_are_equal_slices():
    got = bucket(torch.arange(100)[None], 8, "relative", 100)[0]
    assert got.tolist() == [p * 8 // 100 for p in range(100)]


@pytest.mark.parametrize(("length", "reached"), [(512, 10), (4096, 13), (8192, 14), (32768, 16)])
def test_how_many_of_64_log2_buckets_a_length_reaches(length, reached):
    assert buckets_reached(length, 64, "log2") == reached
    assert buckets_reached(length, 64, "relative") == 64


def test_the_bias_has_65_parameters_and_starts_at_one():
    bias = PositionBias(64, "log2", 0)
    assert sum(p.numel() for p in bias.parameters()) == 65
    assert bias(torch.arange(5000)[None]).eq(1).all()
    assert bias.is_identity()


@pytest.mark.parametrize("bucketing", ["log2", "relative"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_of_b_and_w_is_that_of_the_formula(bucketing, dtype):
    torch.manual_seed(0)
    bias = PositionBias(7, bucketing, 60).to(dtype)
    with torch.no_grad():
        bias.b.normal_(), bias.w.normal_()
    packed = torch.cat([torch.arange(23), torch.arange(40)])
    for ids in (torch.arange(63)[None], torch.stack([packed, torch.arange(63)])):
        number = bucket(ids, 7, bucketing, 60)
        want = 1 + bias.w.double().sigmoid() * bias.b.double().tanh()[number]
        got, g = bias(ids), torch.randn(ids.shape, dtype=dtype)
        torch.testing.assert_close(got, want.to(dtype))
        pairs = [torch.autograd.grad(s, [bias.b, bias.w], g.to(s.dtype)) for s in (got, want)]
        for a, b in zip(*pairs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_scale_for_all_layers_of_a_forward_pass(checkpointing):
    model = shaken(adapt(make_model("llama"), HyloradaConfig(**BIAS), seed=1)).train()
    if checkpointing:
        anatomy.causal_lm(model).gradient_checkpointing_enable({"use_reentrant": False})
    bias, made = model.base_model.lora_position_bias["default"], []
    bias.register_forward_hook(lambda *_: made.append(1))
    ids = tokens(1, 19)
    for passes in (1, 2):
        model(ids, labels=ids, use_cache=False).loss.backward()
        assert len(made) == passes


def test_what_one_pass_made_serves_no_other_that_needs_its_own():
    """One tensor of positions throughout: gradients, none, moved parameters; and a copy."""
    model = shaken(adapt(make_model("llama"), HyloradaConfig(**BIAS), seed=1)).double().train()
    bias, ids = model.base_model.lora_position_bias["default"], tokens(1, 19)
    positions = torch.arange(19)[None]

    def loss(of):
        return of(ids, labels=ids, position_ids=positions, use_cache=False).loss

    def gradient(of):
        of.zero_grad()
        return torch.autograd.grad(loss(of), of.base_model.lora_position_bias["default"].b)[0]

    want = gradient(model)
    anatomy.causal_lm(model).gradient_checkpointing_enable({"use_reentrant": False})
    first = loss(model)
    with torch.no_grad():
        loss(model)
    with torch.inference_mode():
        loss(model)
    second = loss(model)
    for of in (first, second):
        assert torch.allclose(torch.autograd.grad(of, bias.b)[0], want, **EXACT)
    twin = copy.deepcopy(model)  # which nothing of the passes above hinders
    with torch.no_grad():
        bias.b.mul_(2)
        twin.base_model.lora_position_bias["default"].b.mul_(2)
    assert torch.equal(gradient(model), gradient(twin))
    assert not torch.allclose(gradient(model), want, rtol=1e-3)


def oracle_logits(model: nn.Module, bias: PositionBias, ids: torch.Tensor, position_ids):
    """The same adapter without the variant; a hook multiplies the output of each B by s(p)."""
    plain = copy.deepcopy(model)
    scale_BT = bias(position_ids).detach()

    def scaled(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        shape = scale_BT.expand(ids.shape)
        return output * (shape.reshape(-1, 1) if output.dim() == 2 else shape.unsqueeze(-1))

    for module in plain.modules():
        if hasattr(module, "lora_variant"):
            module.lora_variant.clear()
            module.lora_B["default"].register_forward_hook(scaled)
    return plain(ids, position_ids=position_ids, use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("packed", [False, True])
def test_the_update_of_every_layer_is_scaled_by_position(family, packed):
    model = shaken(adapt(make_model(family), HyloradaConfig(**BIAS), seed=1)).double()
    ids = tokens(2, 37)
    position_ids = torch.arange(37)[None]
    if packed:
        position_ids = torch.cat([torch.arange(14), torch.arange(23)])[None].expand(2, -1)
    bias = model.base_model.lora_position_bias["default"]
    assert not bias.is_identity()
    with torch.no_grad():
        got = model(ids, position_ids=position_ids, use_cache=False).logits
        expected = oracle_logits(model, bias, ids, position_ids)
        bias.b.zero_()
        without = model(ids, position_ids=position_ids, use_cache=False).logits
    assert torch.allclose(got, expected, **EXACT)
    assert (got - without).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_two_batches_before_one_backward_keep_their_own_positions(family, use_reentrant):
    """Under activation checkpointing the first batch is recomputed after the second one ran."""
    config = HyloradaConfig(**BIAS, landmark_enabled=True, s2_attn_enabled=True, s2_group_size=8)
    model = shaken(adapt(make_model(family), config, seed=1)).double().train()
    ids = tokens(2, 29)
    batches = [torch.arange(29)[None], torch.cat([torch.arange(11), torch.arange(18)])[None]]

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        losses = [
            model(ids, labels=ids, position_ids=p.expand(2, -1), use_cache=False).loss * (i + 1)
            for i, p in enumerate(batches)
        ]
        sum(losses).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}

    plain = gradients()
    model.enable_input_require_grads()  # reentrant checkpointing needs it
    anatomy.causal_lm(model).gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    again = gradients()
    for name, gradient in plain.items():
        assert torch.allclose(again[name], gradient, **EXACT), name


def test_a_trained_bias_cannot_be_merged_and_an_untrained_one_merges_exactly():
    config = HyloradaConfig(**BIAS)
    model = shaken(adapt(make_model("gpt2"), config, seed=1)).double()
    ids = tokens(1, 20)
    bias = model.base_model.lora_position_bias["default"]
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(ValueError, match=r"cannot be merged.*position bias"):
            merge()
    layer = next(m for m in model.modules() if hasattr(m, "lora_variant"))
    with pytest.raises(ValueError, match="depends on the position"):
        layer.merge()
    with torch.no_grad():
        bias.b.zero_()
        expected = model(ids).logits
        model.merge_adapter()
        assert torch.allclose(model(ids).logits, expected, **EXACT)
        model.unmerge_adapter()
        assert torch.allclose(model(ids).logits, expected, **EXACT)
        assert torch.allclose(model.merge_and_unload()(ids).logits, expected, **EXACT)


@pytest.mark.parametrize("other", [{"use_dora": True}, {"lora_bias": True}])
def test_what_cannot_be_combined_with_the_bias_is_refused(other):
    with pytest.raises(ValueError, match="cannot be combined"):
        HyloradaConfig(**BIAS, **other)


def test_a_layer_outside_the_decoder_is_refused_when_it_runs_before_any_attention():
    model = make_model("opt")
    model.model.decoder.project_in = nn.Linear(32, 32)
    model = adapt(model, HyloradaConfig(**BIAS, target_modules=["project_in", "q_proj"]))
    with pytest.raises(ValueError, match="adapt only layers of the decoder"):
        model(tokens(1, 5))
