"""Another method of peft on an extended base: where it goes, what trains, what the gate says."""

from __future__ import annotations

import pytest
import torch
from helpers.architectures import make_zoo_model
from helpers.families import CONFIGS, VOCAB, make_model, tokens
from peft import IA3Config, VeraConfig, get_peft_model

from hylorada.config import LoraConfig, MethodConfig, PositionRangeConfig
from hylorada.errors import ConfigError
from hylorada.methods import check_integrity
from hylorada.methods.integrity.adapters import count_by_component
from hylorada.methods.peft_methods import attach_peft_method
from hylorada.methods.position_range import extend_range

TRAINED, LENGTH = 64, 96
VERA, IA3 = {"peft_type": "VERA", "r": 8}, {"peft_type": "IA3"}


def method(peft, **changes):
    settings = {"train_embeddings": "false", "train_norms": "false", **changes}
    return MethodConfig("mine", LoraConfig(enabled=False), peft=peft, **settings)


def attached(family, peft, length=LENGTH, **changes):
    return attach_peft_method(make_model(family, TRAINED), method(peft, **changes), length, seed=1)


def adapter(model):
    return model.peft_config["default"]


@pytest.mark.parametrize("peft", [VERA, IA3], ids=["VERA", "IA3"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_it_is_pefts_own_on_the_base_extended_as_for_every_arm(family, peft):
    config = {"VERA": VeraConfig, "IA3": IA3Config}[peft["peft_type"]]
    base = make_model(family, TRAINED)
    extend_range(base, LENGTH)
    torch.manual_seed(1)
    oracle = get_peft_model(base, config(task_type="CAUSAL_LM", **{**peft, "peft_type": None}))
    found = attached(family, peft)
    assert (found.range_report.from_length, found.range_report.to_length) >= (TRAINED, LENGTH)
    ids = tokens(1, LENGTH)
    with torch.no_grad():
        assert torch.equal(found.model(ids).logits, oracle(ids).logits)
    theirs = {name: p for name, p in oracle.named_parameters() if p.requires_grad}
    ours = {name: p for name, p in found.model.named_parameters() if p.requires_grad}
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert count_by_component(found.model).keys() == {peft["peft_type"].lower()}


@pytest.mark.parametrize("peft", [VERA, IA3], ids=["VERA", "IA3"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_right_one_passes_the_gate(family, peft):
    report = check_integrity(attached(family, peft).model, VOCAB, LENGTH)
    assert report.ok, [report.checks[name] for name in report.failed]
    assert not report.checks["identity_at_start"].skipped


def test_a_vector_that_reaches_nothing_is_found():
    model = attached("llama", IA3).model
    layer = model.get_base_model().model.layers[1].self_attn.k_proj
    layer.forward = layer.base_layer.forward
    report = check_integrity(model, VOCAB, LENGTH)
    assert "gradient_coverage" in report.failed
    assert "layers.1.self_attn.k_proj.ia3_l.default" in report.checks["gradient_coverage"].detail


@pytest.mark.parametrize(("peft", "name"), [(VERA, "vera_lambda_d"), (IA3, "ia3_l")])
def test_a_frozen_vector_is_found(peft, name):
    model = attached("llama", peft).model
    path, vector = next((n, p) for n, p in model.named_parameters() if name in n)
    vector.requires_grad_(False)
    report = check_integrity(model, VOCAB, LENGTH)
    assert report.failed == ["parameter_audit"]
    assert report.checks["parameter_audit"].detail.startswith(f"{path} is part of the adapter but")


def test_where_peft_knows_no_modules_those_of_lora_here_are_taken():
    for family, peft, expected in (
        ("llama", VERA, {"q_proj", "v_proj"}),  # peft's
        ("olmo", VERA, {
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
            "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
        }),
        ("opt", {"peft_type": "LN_TUNING"}, {
            "self_attn_layer_norm", "final_layer_norm", "model.decoder.final_layer_norm",
        }),
        ("llama", {**VERA, "target_modules": "attention"}, {
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        }),
    ):  # fmt: skip
        base = make_model(family) if family in CONFIGS else make_zoo_model(family)
        model = attach_peft_method(base, method(peft), LENGTH).model
        found = adapter(model).target_modules
        assert {n.removeprefix("model.") for n in found} == {
            n.removeprefix("model.") for n in expected
        }, family


def test_ia3_where_peft_knows_no_modules(monkeypatch):
    from hylorada.methods import peft_methods

    monkeypatch.setattr(peft_methods, "_IA3_TARGETS", {})
    config = adapter(attached("llama", IA3).model)
    assert set(config.feedforward_modules) == {"mlp.down_proj"}
    assert set(config.target_modules) == {
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.down_proj",
    }  # fmt: skip


def test_embeddings_and_norms_train_as_copies_where_they_are_asked_for():
    model = attached("gpt2", VERA, train_embeddings="true", train_norms="true").model
    assert count_by_component(model).keys() == {"vera", "position_embeddings", "norms"}
    assert check_integrity(model, VOCAB, LENGTH).ok


def test_the_adaptive_rule_is_followed_where_it_can_be_and_said_where_it_cannot():
    found = attached("llama", VERA, 4096, train_embeddings="auto", train_norms="auto")
    assert count_by_component(found.model).keys() == {"vera", "norms"}
    assert found.left_out.keys() == {"position_bias", "landmark", "s2_attn", "train_embeddings"}
    assert "has no learned position embeddings" in found.left_out["train_embeddings"]
    assert "VERA is peft's" in found.left_out["landmark"]


@pytest.mark.parametrize(
    ("family", "peft", "changes", "words"),
    [
        ("gpt2", {"peft_type": "LOHA"}, {}, r"\(LOHA\) on GPT2LMHeadModel: .*Conv1D.* not supp"),
        ("gpt2", {**VERA, "target_modules": ["nowhere"]}, {}, r"\(VERA\) on .*No layers types"),
        ("llama", VERA, {"train_embeddings": "true"}, "no learned position embeddings"),
        (
            *("llama", VERA, {"position_range": PositionRangeConfig(learned_init="tile")}),
            "learned_init=tile has no effect: LlamaForCausalLM has rotary position embeddings",
        ),
        ("gpt2", {"peft_type": "TRAINABLE_TOKENS"}, {"train_norms": "true"}, "cannot train whole"),
        ("llama", {"peft_type": "LN_TUNING"}, {"train_norms": "true"}, "trains the norms itself"),
    ],
)
def test_what_cannot_be_on_a_model_is_one_line(family, peft, changes, words):
    with pytest.raises(ConfigError, match=words):
        attached(family, peft, **changes)


def test_what_would_train_in_bfloat16_is_refused():
    base = make_model("gpt2", TRAINED).to(torch.bfloat16)
    with pytest.raises(ConfigError, match=r"train_norms: .*bfloat16; set model.dtype=float32"):
        attach_peft_method(base, method(VERA, train_norms="true"), LENGTH)
