"""Faults that passed the gate once, or were refused for another reason; put in on purpose."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.families import VOCAB, make_model
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.olmo3.modeling_olmo3 import Olmo3RotaryEmbedding

from hylorada.methods import HyloradaConfig, adapt, check_integrity, landmarks, position_bias
from hylorada.methods.integrity import positions
from hylorada.methods.integrity.probe import Probe, as_found
from hylorada.methods.position_range import extend_range
from hylorada.methods.positions import Positions, bucket

TRAINED, LONG = 64, 128


def adapted(family="llama", length=LONG, **options):
    settings = {
        "r": 4, "position_bias_enabled": True, "landmark_enabled": True, "max_length": length,
        **options,
    }  # fmt: skip
    return adapt(make_model(family, TRAINED), HyloradaConfig(**settings), length, seed=0)


def failure(model, name, length=LONG, **options):
    """The sentence of a check that must fail, and be told first."""
    report = check_integrity(model, VOCAB, length, **options)
    assert report.failed, "every check passed"
    assert name in report.failed
    return report.checks[name].detail


def bucket_check(model, length=LONG, packed=False):
    """The one check alone, of many models."""
    with as_found(model):
        probe = Probe(model, VOCAB, 61, seed=0)
        probe.perturb(list(probe.groups))
        return positions.positions(probe, length, packed)


# ---- positions ----------------------------------------------------------------------------------


def _off_by_one(p, *rest):
    return bucket(p + 1, *rest)


def _floor_of_log2_without_plus_one(p, buckets, bucketing, max_length):
    return bucket((p - 1).clamp(min=0), buckets, bucketing, max_length)


def _off_at_one_place(p, buckets, bucketing, max_length):
    found = bucket(p, buckets, bucketing, max_length)
    return torch.where(p == max_length - 1, found - 1, found)


@pytest.mark.parametrize("wrong", [_off_by_one, _floor_of_log2_without_plus_one, _off_at_one_place])
@pytest.mark.parametrize("bucketing", ["log2", "relative"])
@pytest.mark.parametrize(
    ("module", "part"), [(position_bias, "position_bias"), (landmarks, "landmark")]
)
def test_a_bucket_that_is_off_by_one_is_caught(monkeypatch, module, part, bucketing, wrong):
    model = adapted(bucketing=bucketing, position_buckets=16)
    monkeypatch.setattr(module, "bucket", wrong)
    check = bucket_check(model)
    assert not check.ok
    assert f"{part} finds bucket" in check.detail
    assert "lies in bucket" in check.detail


def test_the_gate_asks_for_buckets(monkeypatch):
    model = adapted()
    monkeypatch.setattr(position_bias, "bucket", _off_by_one)
    assert "position_bias finds bucket" in failure(model, "positions")


def test_positions_that_are_off_by_one_are_caught(monkeypatch):
    publish = Positions.publish

    def shifted(self, attention, args, kwargs):
        publish(self, attention, args, {**kwargs, "position_ids": kwargs["position_ids"] + 1})

    monkeypatch.setattr(Positions, "publish", shifted)
    detail = failure(adapted(), "positions")
    assert "position_bias is given position 1 for the token at 0 in one pass" in detail


def test_positions_that_restart_with_a_cache_are_caught(monkeypatch):
    publish = Positions.publish

    def restarted(self, attention, args, kwargs):
        ids = kwargs["position_ids"]
        publish(self, attention, args, {**kwargs, "position_ids": ids - ids[:, :1]})

    monkeypatch.setattr(Positions, "publish", restarted)
    assert "with a cache" in failure(adapted(), "positions")


@pytest.mark.parametrize("bucketing", ["log2", "relative"])
@pytest.mark.parametrize("length", [97, 4099])
def test_right_buckets_pass_at_any_length(bucketing, length):
    model = adapted(length=length, bucketing=bucketing)
    check = bucket_check(model, length, packed=True)
    assert check.ok, check.detail
    assert f"each of {length} positions" in check.detail


# ---- requests, rows, evaluation -----------------------------------------------------------------


def test_a_landmark_state_that_survives_the_request_is_caught(monkeypatch):
    kept = {}

    def layer_of(cache, name):  # one for all caches
        return kept.setdefault(name, landmarks.LandmarkCacheLayer(name))

    model = adapted()
    monkeypatch.setattr(landmarks, "_layer_of", layer_of)
    detail = failure(model, "requests")
    assert "decoding with a cache" in detail
    assert "keeps something of one request for the next" in detail


@pytest.mark.parametrize("training_only", [True, False])
def test_a_running_mean_in_a_layer_is_caught_and_named(training_only):
    model, seen = make_model("llama", TRAINED), []

    def drift(module, args, output):
        if training_only and not module.training:
            return output
        seen.append(output.mean())
        return output + 0.1 * torch.stack(seen).mean()

    model.model.layers[1].mlp.register_forward_hook(drift)
    detail = failure(model, "requests", TRAINED)
    assert detail.startswith("model.layers.1.mlp (LlamaMLP) keeps something of one request")


@pytest.mark.parametrize("size", [0.1, 1e-6])
def test_rows_that_see_each_other_are_caught_and_named(size):
    model = make_model("llama", TRAINED)
    model.model.layers[0].self_attn.register_forward_hook(
        lambda _, args, output: (output[0] + size * output[0].mean(0, keepdim=True), *output[1:])
    )
    detail = failure(model, "rows", TRAINED)
    assert detail.startswith("model.layers.0.self_attn (LlamaAttention) lets the rows of a batch")


class Stubborn(torch.nn.Dropout):
    """It does not hear of `eval`."""

    def train(self, mode=True):
        return super().train(True)


def test_dropout_left_on_in_evaluation_is_named():
    model = make_model("gpt2", TRAINED)
    model.transformer.h[1].mlp.dropout = Stubborn(0.1)
    report = check_integrity(model, VOCAB, TRAINED)
    assert report.failed[0] == "evaluation_mode"
    detail = report.checks["evaluation_mode"].detail
    assert detail.startswith("transformer.h.1.mlp.dropout (Stubborn) draws at random in evaluation")
    assert "dropout is left on" in detail


def test_dropout_without_the_mode_is_named_too():
    model = make_model("llama", TRAINED)
    model.model.norm.register_forward_hook(lambda _, args, output: F.dropout(output, 0.1))
    assert "model.norm (LlamaRMSNorm) draws at random" in failure(model, "evaluation_mode", TRAINED)


# ---- the tokenizer ------------------------------------------------------------------------------


def bos_tokenizer(template):
    vocab = {"<s>": 0, "</s>": 1, "the": 2, "?": 3}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("<s> <s> $A", "puts '<s>' 2 times before a text"),
        ("<s> $A </s> </s>", "puts '</s>' 2 times after a text"),
        ("<s> $A", ""),
        ("<s> $A </s>", ""),
        ("$A", ""),
    ],
)
def test_a_tokenizer_that_doubles_its_special_tokens_is_caught(template, words):
    report = check_integrity(make_model("llama", TRAINED), bos_tokenizer(template), TRAINED)
    check = report.checks["tokenizer"]
    assert check.ok == (not words)
    assert words in check.detail


# ---- what acts outside the layers, or hardly ----------------------------------------------------


def test_an_adapter_that_acts_in_the_wrapper_is_refused():
    config = LoraConfig(
        r=4, target_modules=["q_proj"], alora_invocation_tokens=[3, 4], task_type="CAUSAL_LM"
    )
    model = get_peft_model(make_model("llama", TRAINED), config)
    report = check_integrity(model, VOCAB, TRAINED)
    assert report.failed[0] == "scored_logits"
    assert "PeftModelForCausalLM.forward gives other logits" in (
        report.checks["scored_logits"].detail
    )


def test_a_component_that_moves_logits_by_little_more_than_rounding_is_a_warning():
    report = check_integrity(adapted(lora_alpha=1e-5, landmark_enabled=False), VOCAB, LONG)
    assert report.ok, report.failed
    assert len(report.warnings) == 2
    lora, bias = report.warnings
    assert lora.startswith("lora: changing its parameters moves the logits by ")
    assert "less than 10 times rounding (" in lora
    assert "in float32)" in lora
    assert bias.startswith("position_bias: ")
    assert report.to_dict()["warnings"] == report.warnings


def test_rounding_is_that_of_the_runs_precision():
    model = adapted(lora_alpha=0.05, landmark_enabled=False, position_bias_enabled=False)
    assert check_integrity(model, VOCAB, LONG).warnings == []
    (warning,) = check_integrity(model, VOCAB, LONG, autocast=torch.bfloat16).warnings
    assert "in bfloat16" in warning


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_components_of_usual_size_give_no_warning(family):
    assert check_integrity(adapted(family), VOCAB, LONG).warnings == []


# ---- rotary tables ------------------------------------------------------------------------------


def scaled(model, factor=2.0):
    """Every table of a model rescaled, as `extend_range` notes it."""
    parameters = model.config.rope_parameters
    linear = {"rope_type": "linear", "factor": factor}
    model.config.rope_parameters = (
        {kind: {**own, **linear} for kind, own in parameters.items()}
        if all(isinstance(own, dict) for own in parameters.values())
        else {**parameters, **linear}
    )
    for name, module in list(model.named_modules()):
        if any(buffer.endswith("inv_freq") for buffer in module._buffers):
            model.set_submodule(name, type(module)(config=model.config))
    model.config.hylorada_range = {
        "kind": "rope", "from": TRAINED, "to": LONG, "factor": factor, "type": "linear",
    }  # fmt: skip
    return model.eval()


def of_kind(kind, **settings):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=TRAINED, pad_token_id=0, bos_token_id=0,
        eos_token_id=0, **settings,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() >= 2:
                p.normal_(0.0, 0.12)
    return model


def test_scaling_of_a_table_that_is_never_read_is_refused():
    """Falcon with ALiBi has a rotary module that is never called."""
    model = of_kind("falcon", alibi=True)
    check = check_integrity(model, VOCAB, TRAINED).checks["rope"]
    assert check.skipped == "no logit depends on the model's rotary table"
    detail = failure(scaled(model), "rope")
    assert "RoPE scaling changes no logit: FalconForCausalLM never reads its rotary table" in detail
    assert check_integrity(of_kind("falcon"), VOCAB, TRAINED).checks["rope"].ok


@pytest.mark.parametrize("rope_type", ["linear", "yarn", "dynamic"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_scaling_is_proven_by_logits(family, rope_type):
    model = make_model(family, TRAINED)
    extend_range(model, LONG, rope_type=rope_type)
    check = check_integrity(model, VOCAB, LONG).checks["rope"]
    assert check.ok, check.detail
    assert check.value > 1e-3
    assert "the logits move by" in check.detail


LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}


class OneTable(Olmo3RotaryEmbedding):
    """It has two tables and reads one."""

    def forward(self, x, position_ids, layer_type):
        return super().forward(x, position_ids, "full_attention")


def test_every_one_of_several_tables_is_held_against_the_logits():
    model = scaled(of_kind("olmo3", **LAYERS))
    check = check_integrity(model, VOCAB, LONG).checks["rope"]
    assert check.ok, check.detail
    model.model.rotary_emb = OneTable(config=model.config)
    detail = failure(model, "rope")
    assert "of model.rotary_emb.sliding_attention_inv_freq changes no logit" in detail


def test_a_table_that_does_not_follow_its_config_is_refused():
    model = scaled(of_kind("olmo3", **LAYERS))
    model.model.rotary_emb.full_attention_inv_freq.mul_(1.01)
    assert "does not follow rope_parameters" in failure(model, "rope")
