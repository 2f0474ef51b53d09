"""Mixtures of experts: rounding that follows the text is no leak, and a leak is no rounding."""

from __future__ import annotations

import pytest
import torch
from helpers.families import VOCAB, make_model
from transformers import AutoConfig, AutoModelForCausalLM

from hylorada.methods import HyloradaConfig, adapt, check_integrity
from hylorada.methods.integrity.rounding import RowByRow, Shapes, movement

SMALL = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
KINDS = {
    "mixtral": {"num_local_experts": 4},
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 48,
    },
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 20},
}  # fmt: skip


def experts(kind, seed=0, implementation="grouped_mm"):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL, **KINDS[kind]))
    model.set_experts_implementation(implementation)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() >= 2:
                p.normal_(0.0, 0.15)
    return model.eval()


def past_logits(model, seed):
    """Before the cut, of a text and of the same with other tokens from there on."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCAB, (1, 61), generator=generator)
    changed = ids.clone()
    changed[:, 31:] = (changed[:, 31:] + 5) % VOCAB

    @torch.no_grad()
    def run(ids):
        return model(input_ids=ids, use_cache=False).logits[0, :31]

    return lambda: run(ids), lambda: run(changed)


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_rounding_is_told_from_a_leak(kind, implementation):
    rounded = []
    for seed in range(6):
        model = experts(kind, seed, implementation)
        moved = movement(*past_logits(model, seed))
        assert moved.leak == 0.0
        rounded.append(moved.rounding)
        # A leak far below that rounding: the mean of all tokens, a little of it.
        model.model.layers[0].mlp.register_forward_hook(
            lambda _, args, output: output + 1e-7 * args[0].mean(1, keepdim=True)
        )
        assert movement(*past_logits(model, seed)).leak > 0.0
    if kind not in ("mixtral",):
        assert max(rounded) > 0.0  # the fault that this is about


@pytest.mark.parametrize("kind", ["olmoe", "qwen2_moe"])
def test_right_mixtures_of_experts_pass(kind):
    for seed in range(2):
        report = check_integrity(experts(kind, seed), VOCAB, 64, seed=seed, packed=True)
        assert report.ok, [report.checks[name] for name in report.failed]
    config = HyloradaConfig(r=4, position_bias_enabled=True, landmark_enabled=True)
    config.target_modules = ["q_proj", "v_proj"]
    report = check_integrity(adapt(experts(kind), config, 64, seed=0), VOCAB, 64)
    assert report.ok, [report.checks[name] for name in report.failed]


@pytest.mark.parametrize("size", [1e-3, 1e-7])
def test_a_layer_of_experts_that_reads_the_future_is_refused_and_named(size):
    model = experts("olmoe")
    model.model.layers[1].mlp.register_forward_hook(
        lambda _, args, output: output + size * args[0].mean(1, keepdim=True)
    )
    report = check_integrity(model, VOCAB, 64)
    check = report.checks["causality"]
    assert not check.ok
    assert check.detail.startswith("model.layers.1.mlp (OlmoeSparseMoeBlock) reads the future")


@pytest.mark.slow
def test_a_landmark_that_reads_the_future_is_blamed_on_experts_too():
    config = HyloradaConfig(r=4, landmark_enabled=True, landmark_pooling="sequence_mean")
    config.target_modules = ["q_proj"]
    report = check_integrity(adapt(experts("olmoe"), config, 64, seed=0), VOCAB, 64)
    assert "causality" in report.failed
    assert "landmark reads the future" in report.checks["causality"].detail


def test_experts_that_choose_their_tokens_read_the_future():
    """Expert choice: the best tokens of the whole text are taken, a leak by design."""
    model = experts("olmoe")

    def choose(module, args, output):
        scores = args[0].flatten(0, 1).mean(-1)
        best = scores >= scores.topk(20).values[-1]
        return torch.where(best.view(1, -1, 1), output, 0 * output)

    model.model.layers[0].mlp.register_forward_hook(choose)
    report = check_integrity(model, VOCAB, 64)
    assert "model.layers.0.mlp (OlmoeSparseMoeBlock) reads the future" in (
        report.checks["causality"].detail
    )


@pytest.mark.parametrize("size", [1e-2, 1e-6])
def test_where_no_shape_follows_the_text_any_change_is_a_leak(size):
    """The excuse of experts is not had by others, however small the change."""
    model = make_model("llama")
    model.model.layers[1].mlp.register_forward_hook(
        lambda _, args, output: output + size * args[0].mean(1, keepdim=True)
    )
    report = check_integrity(model, VOCAB, 64)
    assert "model.layers.1.mlp (LlamaMLP) reads the future" in report.checks["causality"].detail


def test_row_by_row_the_same_is_computed():
    run, _ = past_logits(experts("qwen2_moe"), 0)
    plain = run()
    with RowByRow():
        torch.testing.assert_close(run(), plain, rtol=1e-4, atol=1e-5)  # rounding of ~100 terms
    with Shapes() as seen:
        run()
    assert seen.routed
    dense, _ = past_logits(make_model("llama"), 0)
    with Shapes() as seen:
        dense()
    assert not seen.routed
    assert set(seen.rows) == {61}
