"""The gate asks the model as it trains: kernels in place, its length, its groups, its precision."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers.families import FAMILIES, LEARNED_FAMILIES, VOCAB, make_model, tokens
from helpers.tiny_runs import make_config, make_model_folder, make_texts

from hylorada.config import RunConfig
from hylorada.errors import IntegrityError
from hylorada.kernels import frozen_layers
from hylorada.methods import HyloradaConfig, adapt, check_integrity, segments
from hylorada.methods.integrity import as_trained, half_precision
from hylorada.process.signals import Stop
from hylorada.runner.gate import prove
from hylorada.runner.run import run
from hylorada.training import loss

TRAINED, LONG = 64, 192


def adapted(family="llama", length=LONG, **options):
    settings = {
        "r": 4, "position_bias_enabled": True, "landmark_enabled": True, "s2_attn_enabled": True,
        "s2_group_size": length // 3 // 2 * 2, "train_norms": True, "max_length": length,
        "train_embeddings": family in LEARNED_FAMILIES, **options,
    }  # fmt: skip
    return adapt(make_model(family, TRAINED), HyloradaConfig(**settings), length, seed=0)


def proven(model, length=LONG, bf16=False, **changes):
    config = RunConfig()
    config.length.max_length = length
    config.train.loss_chunk = 50
    config.dataset.packing = changes.pop("packing", "documents")
    config.integrity.allow_leak = changes.pop("allow_leak", False)
    config.train.gradient_checkpointing = changes.pop("checkpointing", False)
    assert not changes
    return prove(model, VOCAB, config, torch.bfloat16 if bf16 else None, Stop())


def fault(report, name):
    """The sentence of a check that only the model as it trains fails."""
    assert report.failed == [name], [report.checks[n] for n in report.failed]
    with pytest.raises(IntegrityError):
        report.raise_if_failed()
    return report.checks[name].detail


# ---- right models pass --------------------------------------------------------------------------


def all_but(slow, families):
    """Families, of which some run in CI only."""
    return [
        pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in families
    ]


@pytest.mark.parametrize("family", all_but(("qwen2", "qwen3", "gpt_neox"), FAMILIES))
def test_a_right_model_passes_and_the_report_says_what_was_probed(family):
    report = proven(adapted(family))
    assert report.ok, [report.checks[name] for name in report.failed]
    assert report.checks["training_causality"].value == 0.0
    assert report.checks["training_parity"].value < 1e-4
    assert report.probed["short"]["tokens"] == 61
    assert report.probed["in_place"] | {"kernels": ""} == {
        "tokens": LONG, "rows": 2, "s2_group_size": 64, "precision": "float32", "kernels": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "conditions"),
    [
        ({}, {"bf16": True}),
        ({"lora_dropout": 0.2}, {}),
        ({}, {"checkpointing": True}),
        ({"s2_attn_enabled": False}, {"packing": "reset"}),
        ({}, {"packing": "reset", "bf16": True}),
        ({"use_dora": True, "position_bias_enabled": False}, {}),
    ],
    ids=["bf16", "dropout", "checkpointing", "packed", "packed bf16", "dora"],
)
@pytest.mark.parametrize("family", all_but(("qwen2",), ("gpt2", "qwen2")))
def test_other_right_conditions_pass(family, options, conditions):
    report = proven(adapted(family, **options), **conditions)
    assert report.ok, [report.checks[name] for name in report.failed]


def test_a_model_is_left_as_it_was():
    model = adapted("gpt2", lora_dropout=0.1).train()
    before = copy.deepcopy(model.state_dict())
    config, random = copy.deepcopy(model.config.to_dict()), torch.get_rng_state()
    model(input_ids=tokens(1, 70), use_cache=False)
    random = torch.get_rng_state()
    assert proven(model, checkpointing=True).ok
    assert torch.equal(torch.get_rng_state(), random)
    assert model.config.to_dict() == config
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.get_base_model().transformer.h)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert frozen_layers.restore(model) == 0


# ---- faults that the short probe cannot see -----------------------------------------------------


def leaking(function):
    """A product whose rows see the mean of all rows, a little."""
    return lambda x, *rest: function(x, *rest) + 1e-6 * function(x, *rest).mean(0)


@pytest.mark.slow
def test_a_leak_in_the_frozen_kernels_is_refused_and_named(monkeypatch):
    model = adapted()
    monkeypatch.setattr(frozen_layers, "fast_linear", leaking(frozen_layers.fast_linear))
    assert check_integrity(model, VOCAB, LONG).ok  # before the kernels are exchanged
    detail = fault(proven(model), "training_causality")
    assert "lets the rows of a batch see each other" in detail
    assert "FrozenLoraLinear" in detail or "FrozenLinear" in detail


def test_a_kernel_that_reads_the_next_token_is_refused_and_named(monkeypatch):
    forward = frozen_layers.FrozenLoraLinear.forward

    def peeking(self, x, *args, **kwargs):
        ahead = torch.cat([x[:, 1:], x[:, -1:]], 1)
        return forward(self, x + 1e-5 * ahead, *args, **kwargs)

    monkeypatch.setattr(frozen_layers.FrozenLoraLinear, "forward", peeking)
    detail = fault(proven(adapted()), "training_causality")
    assert "self_attn.q_proj (FrozenLoraLinear) reads the future" in detail
    assert f"at {LONG} tokens" in detail


@pytest.mark.slow
def test_a_leak_in_long_segments_is_refused(monkeypatch):
    """In segments of 512 tokens or more, which no short probe has."""
    model = adapted("gpt2", 1100, s2_group_size=520)

    def leaky(q, k, v, mask, dropout, causal, **rest):
        causal = causal and q.shape[2] < 512
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, **rest)

    monkeypatch.setattr(segments, "F", SimpleNamespace(scaled_dot_product_attention=leaky))
    report = proven(model, 1100)
    assert report.failed == ["training_causality"]
    assert "attn (GPT2Attention) reads the future" in report.checks["training_causality"].detail


def test_a_leak_at_length_alone_is_refused():
    model = adapted()
    model.get_base_model().model.layers[2].mlp.register_forward_hook(
        lambda _, args, output: output + 1e-6 * args[0].mean(1, keepdim=True)
        if output.shape[1] > 100 else output
    )  # fmt: skip
    detail = fault(proven(model), "training_causality")
    assert detail.startswith("model.layers.2.mlp (LlamaMLP) reads the future")


def test_a_leak_under_autocast_alone_is_refused():
    model = adapted()
    model.get_base_model().model.layers[0].mlp.register_forward_hook(
        lambda _, args, output: output + 0.1 * args[0].mean(1, keepdim=True).to(output.dtype)
        if torch.is_autocast_enabled("cpu") else output
    )  # fmt: skip
    assert proven(model).ok
    frozen_layers.restore(model)
    report = proven(model, bf16=True)
    assert "model.layers.0.mlp (LlamaMLP) reads the future" in (fault(report, "training_causality"))


def test_state_in_a_kernel_is_refused(monkeypatch):
    forward, kept = frozen_layers.FrozenLinear.forward, {}

    def remembering(self, x):
        y = forward(self, x)
        last, kept[id(self)] = kept.get(id(self), 0 * y), y.detach()
        return y + 1e-4 * last.mean()

    monkeypatch.setattr(frozen_layers.FrozenLinear, "forward", remembering)
    model = adapted(target_modules=["q_proj"])
    detail = fault(proven(model), "training_causality")
    assert "(FrozenLinear) keeps something of one request for the next" in detail


@pytest.mark.slow
def test_a_document_that_reads_the_one_before_it_at_length_is_refused():
    model = adapted(s2_attn_enabled=False)

    def blind(module, args, kwargs):
        if kwargs["hidden_states"].shape[1] > 100:
            kwargs["attention_mask"] = None
        return args, kwargs

    for layer in model.get_base_model().model.layers:
        layer.self_attn.register_forward_pre_hook(blind, with_kwargs=True)
    detail = fault(proven(model, packing="reset"), "training_causality")
    assert "LlamaAttention) reads the document packed before its own" in detail


def test_a_kernel_that_computes_something_else_is_refused(monkeypatch):
    forward = frozen_layers.FrozenLoraLinear.forward
    monkeypatch.setattr(
        frozen_layers.FrozenLoraLinear,
        "forward",
        lambda self, x, *a, **k: forward(self, x, *a, **k) * 1.01,
    )
    detail = fault(proven(adapted()), "training_parity")
    assert "hidden states differ most from what the model's own kernels give" in detail
    assert "are wrong on this model" in detail


STORED = pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=["", "bf16 base"])


def rounding(stored=torch.float32, **options):
    """A model that rounds, with what training says of its kernels."""
    settings = {"r": 4, "s2_group_size": LONG // 3 // 2 * 2, "max_length": LONG, **options}
    base = make_model("llama", TRAINED).to(stored)
    model = adapt(base, HyloradaConfig(s2_attn_enabled=True, **settings), LONG, seed=0)
    before = {name: (p, p.data_ptr(), p.dtype) for name, p in model.named_parameters()}
    check = proven(model, bf16=True).checks["training_parity"]
    for name, p in model.named_parameters():
        assert (p, p.data_ptr(), p.dtype) == before[name], name
    return check


@STORED
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_where_rounding_passes_the_limit_the_models_own_rounding_decides(
    monkeypatch, stored, dropout
):
    monkeypatch.setitem(as_trained.PARITY, torch.bfloat16, 1e-4)  # as a deep model rounds
    right = rounding(stored, lora_dropout=dropout)
    assert right.ok, right.detail
    assert right.value > right.limit == 1e-4
    assert ", beyond 0.0001, which rounding explains: from the same" in right.detail


@STORED
@pytest.mark.parametrize("only_half", [False, True])
def test_beyond_the_limit_a_wrong_kernel_is_told_from_rounding(monkeypatch, stored, only_half):
    monkeypatch.setitem(as_trained.PARITY, torch.bfloat16, 1e-4)
    forward = frozen_layers.FrozenLoraLinear.forward

    def wrong(self, x, *args, **kwargs):
        half = torch.is_autocast_enabled("cpu") or self.weight.dtype.itemsize == 2
        return forward(self, x, *args, **kwargs) * (1.05 if half or not only_half else 1.0)

    monkeypatch.setattr(frozen_layers.FrozenLoraLinear, "forward", wrong)
    detail = rounding(stored).detail
    assert detail.endswith("are wrong on this model")


def test_where_weights_are_not_whole_the_way_to_tell_is_named(monkeypatch):
    monkeypatch.setitem(as_trained.PARITY, torch.bfloat16, 1e-4)
    monkeypatch.setattr(as_trained, "has_exact_weights", lambda model: False)
    check = rounding()
    assert not check.ok
    assert check.detail.endswith("this is rounding; only a whole base in float32 could tell")


@pytest.mark.parametrize("factor", [1.0, 1.2])
def test_one_token_that_is_wrong_in_float32_too_has_no_excuse(monkeypatch, factor):
    """Of a thousand tokens one may be thrown off by chance, but not where nothing is rounded."""
    monkeypatch.setitem(as_trained.PARITY, torch.bfloat16, 1e-4)
    forward = frozen_layers.FrozenLoraLinear.forward

    def wrong(self, x, *args, **kwargs):
        out = forward(self, x, *args, **kwargs)
        return torch.cat([out[:, :-1], out[:, -1:] * factor], dim=1)

    monkeypatch.setattr(frozen_layers.FrozenLoraLinear, "forward", wrong)
    assert proven(adapted(), bf16=True).checks["training_parity"].ok == (factor == 1.0)


def heavy_tailed(tokens, seed):
    """Distances as SmolLM2 has them: most alike, a few far, and the furthest by chance."""
    draw = torch.Generator().manual_seed(seed)
    rare_T = torch.rand(tokens, generator=draw).clamp(min=1e-6)
    return (0.0075 + 0.00037 * rare_T.pow(-0.8)).clamp(max=1.4)


@pytest.mark.parametrize("tokens", [5, 257, 4096])
def test_whose_rounding_it_is_is_told_by_all_tokens_and_not_by_the_furthest(tokens):
    pairs = [(heavy_tailed(tokens, n), heavy_tailed(tokens, 1000 + n)) for n in range(200)]
    refused = sum(not half_precision.states_round_alike(*pair) for pair in pairs)
    assert refused <= 6
    for ours, own in pairs[:20]:
        assert not half_precision.states_round_alike(ours * 5, own)
        assert not half_precision.states_round_alike(ours * float("nan"), own)
        one = ours.clone()
        one[tokens // 2] = float("nan")
        assert not half_precision.states_round_alike(one, own)
        one[tokens // 2] = 1e3  # further than any state can be
        assert not half_precision.states_round_alike(one, own)
        many = ours.clone()
        many[: 2 + tokens // 50] = 1.4
        assert not half_precision.states_round_alike(many, own)


def test_gradients_of_short_texts_tell_kernels_from_chance():
    own = [0.02, 0.9, 0.02, 0.03, 0.02, 0.02, 1.7, 0.02, 0.02]  # two texts with a token thrown off
    ours = [0.03, 0.02, 0.02, 0.02, 1.2, 0.03, 0.02, 0.8, 1.1]
    assert half_precision.gradients_round_alike(ours, own)
    assert not half_precision.gradients_round_alike([0.05] * 9, own)
    assert not half_precision.gradients_round_alike([*ours[:8], float("inf")], own)
    assert not half_precision.gradients_round_alike([*ours[:8], float("nan")], own)


@pytest.mark.parametrize("where", ["everywhere", "in bf16", "nowhere"])
def test_beyond_the_limit_a_wrong_gradient_is_told_from_rounding(monkeypatch, where):
    monkeypatch.setitem(as_trained.PARITY, torch.bfloat16, 1e-4)
    backward = frozen_layers._LowRankProduct.backward

    def wrong(ctx, g):
        grads = backward(ctx, g)
        if where == "nowhere" or (where == "in bf16" and g.dtype != torch.bfloat16):
            return grads
        dx, dw, dbias, da, *rest = grads
        return dx, dw, dbias, da * 2, *rest

    monkeypatch.setattr(frozen_layers._LowRankProduct, "backward", staticmethod(wrong))
    check = proven(adapted(), bf16=True).checks["training_parity"]
    assert check.ok == (where == "nowhere")
    assert ("the gradients of lora differ most" in check.detail) == (where != "nowhere")


def test_a_wrong_gradient_in_a_kernel_is_refused(monkeypatch):
    backward = frozen_layers._LowRankProduct.backward

    def wrong(ctx, g):
        dx, dw, dbias, da, db, *rest = backward(ctx, g)
        return dx, dw, dbias, None if da is None else da * 1.05, db, *rest

    monkeypatch.setattr(frozen_layers._LowRankProduct, "backward", staticmethod(wrong))
    detail = fault(proven(adapted()), "training_parity")
    assert detail.startswith("the gradients of lora differ most")


def test_a_wrong_loss_is_refused(monkeypatch):
    original = loss.chunked_cross_entropy
    monkeypatch.setattr(loss, "chunked_cross_entropy", lambda *a, **k: original(*a, **k) * 1.01)
    assert fault(proven(adapted()), "training_parity").startswith("the ")


def test_a_control_arm_that_reads_the_future_is_allowed_at_length_too():
    model = adapted("gpt2", landmark_pooling="sequence_mean")
    report = proven(model, allow_leak=True)
    assert report.ok
    detail = report.checks["training_causality"].detail
    assert detail.startswith("landmark reads the future")
    assert "allowed" in detail


# ---- in a run -----------------------------------------------------------------------------------


def test_a_run_is_stopped_before_it_measures_and_leaves_its_report(tmp_path, monkeypatch):
    make_model_folder(tmp_path / "model")
    make_texts(tmp_path / "texts")
    monkeypatch.setattr(frozen_layers, "fast_linear", leaking(frozen_layers.fast_linear))
    with pytest.raises(IntegrityError, match=r"integrity.training_causality: ") as caught:
        run(make_config(tmp_path), tmp_path / "run")
    assert caught.value.exit_code == 7
    assert not (tmp_path / "outputs" / ".cache").exists()
    written = (tmp_path / "run" / "integrity.json").read_text()
    assert '"in_place"' in written
