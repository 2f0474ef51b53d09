"""Weights cast once: the same numbers to the last bit, and no cast is left in a step."""

import copy

import pytest
import torch
from helpers.families import FAMILIES, make_model, tokens
from peft import LoHaConfig, LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode

from hylorada.architecture import anatomy
from hylorada.architecture.logits import output_head
from hylorada.kernels.frozen_layers import use_frozen_kernels
from hylorada.kernels.frozen_weights import keep_products_in
from hylorada.methods import HyloradaConfig, adapt
from hylorada.training.loss import LossModel

BF16 = torch.bfloat16


def whole_method(family):
    config = HyloradaConfig(
        r=2, max_length=128, position_bias_enabled=True, landmark_enabled=True,
        s2_attn_enabled=True, s2_group_size=16, train_norms=True,
    )  # fmt: skip
    model = adapt(make_model(family), config, max_length=128, seed=1).train()
    torch.manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.1)
    return model


def one_step(model):
    """Loss, and every gradient, under bf16 autocast."""
    ids = tokens(2, 101)
    with torch.autocast("cpu", BF16):
        loss, count = LossModel(model, 64)(ids, ids)
    (loss / count).backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


class Casts(TorchDispatchMode):
    """Collects the names of the frozen parameters that are cast to another precision."""

    def __init__(self, model):
        super().__init__()
        self.owners = {
            p.untyped_storage().data_ptr(): n
            for n, p in model.named_parameters()
            if not p.requires_grad and p.dim() > 1
        }
        self.cast = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("dtype") not in (
            None,
            args[0].dtype,
        ):
            owner = self.owners.get(args[0].untyped_storage().data_ptr())
            if owner is not None:
                self.cast.append(owner)
        return func(*args, **kwargs)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_the_same_to_the_last_bit(family):
    plain = whole_method(family)
    use_frozen_kernels(plain)
    cast = copy.deepcopy(plain)
    output_head(cast)  # measured when a model is loaded, in float32
    assert keep_products_in(cast, BF16) > 0
    assert keep_products_in(cast, BF16) == 0
    (want_loss, want), (got_loss, got) = one_step(plain), one_step(cast)
    assert torch.equal(got_loss, want_loss)
    assert want.keys() == got.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert all(p.dtype == torch.float32 for p in cast.parameters() if p.requires_grad)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_frozen_matrix_is_cast_in_a_step(family):
    model = whole_method(family)
    use_frozen_kernels(model)
    tied = anatomy.causal_lm(model).config.tie_word_embeddings
    with Casts(model) as before:
        one_step(model)
    assert len(set(before.cast)) > 10
    keep_products_in(model, BF16)
    with Casts(model) as after:
        one_step(model)
    # A head tied to the embeddings is also read by them, in float32.
    assert all("embed" in name or "wte" in name for name in after.cast)
    assert bool(after.cast) == tied


def test_what_else_reads_a_weight_keeps_it():
    def kept(model):
        use_frozen_kernels(model)
        keep_products_in(model, BF16)
        names = [n for n, p in model.named_parameters() if p.dim() > 1 and p.dtype == torch.float32]
        return {n.rpartition(".layers.")[2].partition(".")[2] for n in names if "lora_" not in n}

    targets = ["q_proj", "down_proj"]
    plain = get_peft_model(make_model("llama"), LoraConfig(target_modules=targets))
    assert kept(plain) == {"model.model.embed_tokens.weight"}
    for config in (
        LoraConfig(target_modules=targets, use_dora=True),
        LoHaConfig(target_modules=targets),
    ):
        found = kept(get_peft_model(make_model("llama"), config))
        assert {n for n in found if "base_layer" in n} == {
            "self_attn.q_proj.base_layer.weight", "mlp.down_proj.base_layer.weight",
        }  # fmt: skip


def test_a_weight_that_trains_stays_in_float32():
    trained = make_model("llama").requires_grad_(False)
    trained.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    use_frozen_kernels(trained)
    keep_products_in(trained, BF16)
    found = {n: p.dtype for n, p in trained.named_parameters()}
    assert found["model.layers.0.mlp.up_proj.weight"] == torch.float32
    assert found["model.layers.1.mlp.up_proj.weight"] == BF16
    assert found["model.embed_tokens.weight"] == torch.float32


@pytest.mark.parametrize("method", ["dora", "loha"])
def test_adapters_that_compute_from_the_weights_give_the_same_numbers(method):
    config = {
        "dora": LoraConfig(target_modules="all-linear", use_dora=True, init_lora_weights=False),
        "loha": LoHaConfig(target_modules="all-linear", init_weights=False),
    }[method]
    model = get_peft_model(make_model("llama"), config).eval()
    use_frozen_kernels(model)
    ids = tokens(1, 37)

    def logits():
        with torch.no_grad(), torch.autocast("cpu", BF16):
            return model(input_ids=ids).logits

    want = logits()
    keep_products_in(model, BF16)
    assert torch.equal(logits(), want)
