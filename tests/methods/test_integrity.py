"""The gate passes right models and catches each fault, put in on purpose."""

from __future__ import annotations

import contextlib
import copy
import json

import peft
import pytest
import torch
from helpers.families import FAMILIES, LEARNED_FAMILIES, VOCAB, make_model, tokens
from helpers.marks import thinned
from peft import get_peft_model
from transformers import AttentionInterface, AttentionMaskInterface

from hylorada.errors import ConfigError, IntegrityError
from hylorada.methods import HyloradaConfig, adapt, check_integrity, landmarks, s2_attention
from hylorada.methods.position_range import extend_range
from hylorada.methods.s2_attention import by_pattern, enable_s2, s2_attention_forward, s2_mask

TRAINED, LONG = 64, 128


def full_config(family="gpt2", **options):
    """Every component on."""
    return HyloradaConfig(
        **{
            "r": 4,
            "position_bias_enabled": True,
            "landmark_enabled": True,
            "s2_attn_enabled": True,
            "s2_group_size": 32,
            "train_embeddings": family in LEARNED_FAMILIES,
            "train_norms": True,
            "max_length": LONG,
            **options,
        }
    )


def adapted(family="gpt2", **options):
    return adapt(make_model(family, TRAINED), full_config(family, **options), LONG, seed=0)


def gate(model, **options):
    return check_integrity(model, VOCAB, LONG, **options)


def assert_refused(report, check, words):
    assert check in report.failed
    assert words in report.checks[check].detail
    with pytest.raises(IntegrityError) as error:
        report.raise_if_failed()
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 7


# ---- right models pass --------------------------------------------------------------------------


@pytest.mark.parametrize("family", thinned(FAMILIES, ("gpt2", "llama", "opt")))
def test_a_right_model_passes_every_check(family):
    report = gate(adapted(family, s2_shift="heads" if family < "m" else "layers"))
    assert report.ok, report.failed
    assert report.checks["causality"].value == 0.0
    assert report.checks["save_load"].value == 0.0
    assert report.checks["s2_layers"].value == 3
    not_run = {name for name, check in report.checks.items() if check.skipped}
    not_run -= {"packed_documents", "tokenizer"}  # their own tests are below
    assert not_run == {"rope"} if family in LEARNED_FAMILIES else {"position_range"}
    assert report.parameters["position_bias"] == 65
    assert report.position_buckets["position_bias"] == {"reached": 8, "of": 64}
    assert json.loads(json.dumps(report.to_dict()))["ok"]
    report.raise_if_failed()


@pytest.mark.parametrize(
    ("family", "options"),
    thinned(
        [
            ("llama", {"rope_scaling_type": "dynamic"}),
            ("qwen2", {"rope_scaling_type": "yarn", "bucketing": "relative"}),
            ("llama", {"use_dora": True, "position_bias_enabled": False}),
            ("gpt2", {"s2_in_evaluation": True, "s2_group_size": 20}),
            ("gpt2", {"lora_dropout": 0.3}),
            ("opt", {"modules_to_save": ["lm_head"], "s2_attn_enabled": False}),
        ],
        2,
    ),
    ids=["dynamic", "yarn", "dora", "in evaluation", "dropout", "modules to save"],
)
def test_other_right_settings_pass(family, options):
    report = gate(adapted(family, **options))
    assert report.ok, [report.checks[name] for name in report.failed]


def test_plain_lora_at_the_trained_length_passes():
    model = adapt(make_model("llama", TRAINED), HyloradaConfig(r=4), TRAINED)
    report = check_integrity(model, VOCAB, TRAINED)
    assert report.ok, report.failed
    assert report.probe_length == 61
    assert report.checks["s2_layers"].skipped
    assert report.position_buckets == {}


def test_a_trained_checkpointed_adapter_of_another_name_passes():
    model = get_peft_model(make_model("llama", TRAINED), full_config("llama"), adapter_name="mine")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    report = gate(model)
    assert report.ok, report.failed
    assert "trained" in report.checks["identity_at_start"].skipped


def test_a_bfloat16_base_passes():
    model = make_model("gpt2", TRAINED).to(torch.bfloat16)
    report = gate(adapt(model, full_config(), LONG, seed=0))
    assert report.ok, [report.checks[name] for name in report.failed]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_baseline_passes_without_the_checks_of_an_adapter(family):
    model = make_model(family, TRAINED)
    extend_range(model, LONG)
    enable_s2(model, 32, "heads")
    report = gate(model)
    assert report.ok, report.failed
    assert report.checks["no_op"].skipped == "the model has no adapter"
    assert report.checks["causality"].value == 0.0
    assert report.parameters == {}


def test_a_long_run_is_probed_on_a_short_text():
    model = make_model("llama", TRAINED)
    config = full_config("llama", max_length=32768, s2_group_size=2048)
    report = check_integrity(adapt(model, config, 32768, seed=0), VOCAB, 32768)
    assert report.ok, report.failed
    assert report.probe_length == 61
    assert report.checks["s2_layers"].value == 3
    assert report.position_buckets["position_bias"]["reached"] == 16


# ---- the model is left as it was ----------------------------------------------------------------


def _snapshot(model):
    lm = model.get_base_model()
    return {
        "state": copy.deepcopy(model.state_dict()),
        "buffers": {n: (id(b), b.clone()) for n, b in model.named_buffers()},
        "identities": [id(p) for p in model.parameters()],
        "trains": [p.requires_grad for p in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in model.modules()
        ],
        "config": copy.deepcopy(lm.config.to_dict()),
        "attention": lm.config._attn_implementation,
        "positions": model.base_model.positions.position_ids_BT,
        "random": torch.random.get_rng_state(),
    }


def _same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    return a == b


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_model_is_left_exactly_as_found(family, broken):
    model = adapted(family, **({"rope_scaling_type": "dynamic"} if family == "llama" else {}))
    model.train()
    model.get_base_model().get_input_embeddings().eval()  # a mode of its own
    model(input_ids=tokens(2, 100), labels=tokens(2, 100), use_cache=False).loss.backward()
    if broken:
        model.base_model._remove_hooks()
    before = _snapshot(model)
    assert gate(model).ok != broken
    after = _snapshot(model)
    for part in before:
        assert _same(before[part], after[part]), part


# ---- every fault is caught ----------------------------------------------------------------------


def test_a_landmark_that_reads_the_future_is_caught():
    model = adapted(landmark_pooling="sequence_mean")
    report = gate(model)
    assert report.failed == ["causality"]
    assert_refused(report, "causality", "landmark reads the future")
    assert report.checks["causality"].value > 0
    allowed = gate(model, allow_leak=True)
    assert allowed.ok
    assert "allowed" in allowed.checks["causality"].detail
    assert allowed.checks["cache_parity"].skipped


def _rolled_attention(module, query, key, value, attention_mask, **kwargs):
    """Shift by `torch.roll`, as LongLoRA's code does: the last tokens join the first segment."""
    n, g = query.shape[2], module.config.s2_group_size
    if not module.training or n <= g or module.layer_idx % 2 == 0:
        return s2_attention_forward(module, query, key, value, attention_mask, **kwargs)
    query, key, value = (x.roll(-(g // 2), 2) for x in (query, key, value))
    module.layer_idx -= 1  # plain segments of what was rolled
    try:
        output, _ = s2_attention_forward(module, query, key, value, attention_mask, **kwargs)
    finally:
        module.layer_idx += 1
    return output.roll(g // 2, 1), None


AttentionInterface.register("s2_rolled", _rolled_attention)
AttentionMaskInterface.register("s2_rolled", s2_mask)


def test_rolled_attention_is_caught():
    model = adapted()
    model.get_base_model().set_attn_implementation("s2_rolled")
    report = gate(model)
    assert_refused(report, "causality", "s2 attention reads the future")


@pytest.mark.parametrize(
    "family", thinned([name for name in FAMILIES if name != "opt"], ("gpt2", "llama"))
)
def test_packed_documents_that_keep_apart_pass(family):
    check = gate(adapted(family), packed=True).checks["packed_documents"]
    assert check.ok
    assert not check.skipped
    assert check.value == 0.0


def test_a_model_that_does_not_see_packed_documents_is_caught():
    """OPT makes its positions itself and never learns where a document starts."""
    report = gate(adapted("opt"), packed=True)
    assert_refused(report, "packed_documents", "OPTForCausalLM reads the document packed before")


def test_a_model_that_is_not_causal_is_caught_without_an_adapter():
    model = make_model("gpt2", TRAINED)
    for block in model.transformer.h:
        block.attn.is_causal = False
    report = check_integrity(model, VOCAB, TRAINED)
    assert_refused(report, "causality", "transformer.h.0.attn (GPT2Attention) reads the future")


def test_a_position_bias_that_is_never_applied_is_caught():
    model = adapted()
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.lora_variant.clear()
    report = gate(model)
    assert_refused(report, "no_op", "position_bias")
    assert_refused(report, "gradient_coverage", "lora_position_bias.default.b gets no gradient")


def test_a_landmark_whose_hook_is_gone_is_caught():
    model = adapted(position_bias_enabled=False)
    model.base_model._remove_hooks()
    report = gate(model)
    assert_refused(report, "no_op", "landmark")
    assert report.checks["no_op"].value == 0.0
    assert_refused(report, "gradient_coverage", "lora_landmark.default.L gets no gradient")


def test_positions_that_are_no_longer_published_are_caught():
    model = adapted()
    model(input_ids=tokens(1, 40))  # leaves its positions behind
    model.base_model._remove_hooks()
    report = gate(model)
    assert {"no_op", "gradient_coverage", "causality"} <= set(report.failed)
    assert_refused(report, "no_op", "")


def test_a_detached_tensor_is_caught():
    model = adapted()
    layer = model.get_base_model().transformer.h[1].attn.c_attn
    layer.lora_A["default"].register_forward_hook(lambda module, args, output: output.detach())
    report = gate(model)
    assert report.failed == ["gradient_coverage"]
    assert_refused(report, "gradient_coverage", "h.1.attn.c_attn.lora_A.default.weight gets no")


def test_a_base_parameter_that_trains_is_caught():
    model = adapted()
    model.get_base_model().transformer.wte.weight.requires_grad_(True)
    report = gate(model)
    assert_refused(report, "parameter_audit", "transformer.wte.weight trains although no component")


def test_a_frozen_part_of_the_adapter_is_caught():
    model = adapted()
    model.base_model.lora_landmark["default"].W_g.requires_grad_(False)
    report = gate(model)
    assert_refused(
        report, "parameter_audit", "lora_landmark.default.W_g is part of the adapter but"
    )


def test_an_adapter_loaded_for_inference_is_not_trainable():
    model = adapted()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert_refused(gate(model), "parameter_audit", "nothing trains")


def test_a_start_that_is_not_the_identity_is_caught():
    model = adapted()
    with torch.no_grad():
        model.base_model.lora_landmark["default"].L.add_(0.1)
    report = gate(model)
    assert report.failed == ["identity_at_start"]
    assert_refused(report, "identity_at_start", "does not start as the identity")


def test_s2_that_no_layer_takes_is_caught_and_not_repaired():
    model = adapted()
    model.get_base_model().config._attn_implementation = "sdpa"
    report = gate(model)
    assert model.get_base_model().config._attn_implementation == "sdpa"
    assert_refused(report, "s2_layers", "0 of 3 attention layers")


@pytest.mark.parametrize("shift", ["layers", "heads"])
def test_layers_that_attend_fully_are_as_many_as_were_asked_for(shift):
    report = gate(adapted("llama", s2_shift=shift, s2_full_layers=0.3))
    assert report.ok, report.failed
    check = report.checks["s2_layers"]
    assert (check.value, check.limit) == (2, 2)
    assert check.detail == "2 of 3 attention layers take it, 1 attend fully"


def test_a_layer_that_forgot_to_attend_fully_is_caught():
    model = adapted("llama", s2_full_layers=0.3)
    for module in model.modules():
        vars(module).pop("s2_full", None)
    assert_refused(gate(model), "s2_layers", "3 of 3, not 2, attention layers take shifted")


@pytest.mark.parametrize(("family", "share", "some"), [("llama", 0.5, 2), ("gpt2", 0.25, 3)])
def test_heads_that_attend_fully_pass_the_gate_and_are_told(family, share, some):
    report = gate(adapted(family, s2_full_heads=share, s2_in_evaluation=True))
    assert report.ok, report.failed
    detail = f"3 of 3 attention layers take it, in {some} of 4 heads"
    assert report.checks["s2_layers"].detail == detail


def test_heads_that_forgot_to_attend_fully_and_those_that_nobody_asked_for_are_caught():
    model = adapted("llama", s2_full_heads=0.5)
    model.get_base_model().config.s2_full_heads = 0
    told = "in layer 0 4 of 4 heads run in segments, not fewer of them; call enable_s2"
    assert_refused(gate(model), "s2_layers", told)
    model = adapted("llama")
    model.get_base_model().config.s2_full_heads = 2
    told = "in layer 0 2 of 4 heads run in segments, not all of them; call enable_s2"
    assert_refused(gate(model), "s2_layers", told)


def test_heads_that_attend_fully_in_name_only_are_caught(monkeypatch):
    def in_segments(*arguments):
        *given, attend, _ = arguments
        segments = lambda q, k, v, mask: attend(q, k, v, mask, bool(given[0].layer_idx % 2))  # noqa: E731
        return by_pattern(*given, attend, segments)

    monkeypatch.setattr(s2_attention, "by_pattern", in_segments)
    model = adapted("gpt2", s2_full_heads=0.5)
    assert_refused(gate(model), "s2_layers", "computes what the same without full heads does")


def _s2_in_name_only(module, query, key, value, attention_mask, **kwargs):
    s2_attention_forward(module, query, key, value, attention_mask, **kwargs)
    module.training, kept = False, module.training
    try:
        return s2_attention_forward(module, query, key, value, attention_mask, **kwargs)
    finally:
        module.training = kept


AttentionInterface.register("s2_in_name", _s2_in_name_only)
AttentionMaskInterface.register("s2_in_name", s2_mask)


def test_s2_that_attends_fully_is_caught():
    model = adapted()
    model.get_base_model().set_attn_implementation("s2_in_name")
    assert_refused(gate(model), "s2_layers", "computes what full attention does")


def test_rope_settings_written_after_construction_are_caught():
    model = make_model("llama", TRAINED)
    model.config.rope_parameters = {
        **model.config.rope_parameters, "rope_type": "linear", "factor": 2.0,
    }  # fmt: skip
    report = gate(model)
    assert_refused(report, "rope", "model.rotary_emb does not follow rope_parameters")


def test_rope_scaling_that_never_happened_is_caught():
    model = adapted("llama")
    model.get_base_model().config.rope_parameters["rope_type"] = "default"
    assert_refused(gate(model), "rope", "RoPE scaling (auto) is on but the config has none")


def test_rope_frequencies_rounded_to_bfloat16_are_caught():
    model = make_model("llama", TRAINED).to(torch.bfloat16)
    assert_refused(check_integrity(model, VOCAB, TRAINED), "rope", "in float32")


def test_too_few_learned_positions_are_caught():
    report = check_integrity(make_model("opt", TRAINED), VOCAB, LONG, probe_length=TRAINED)
    assert_refused(report, "position_range", "has rows for 64 positions, max_length is 128")


def test_a_landmark_that_forgets_between_two_pieces_is_caught(monkeypatch):
    forgetful = lambda cache, name: landmarks.LandmarkCacheLayer(name)  # noqa: E731
    monkeypatch.setattr(landmarks, "_layer_of", forgetful)
    report = gate(adapted())
    assert report.failed == ["cache_parity"]
    assert_refused(report, "cache_parity", "loses its state")
    assert report.checks["cache_parity"].value > 10 * report.checks["cache_parity"].limit


@contextlib.contextmanager
def _saving(monkeypatch, change):
    """Let ``change(name, tensor)`` decide what is written; None drops the tensor."""
    original = peft.peft_model.get_peft_model_state_dict

    def altered(*args, **kwargs):
        state = original(*args, **kwargs)
        changed = {name: change(name, tensor) for name, tensor in state.items()}
        return {name: tensor for name, tensor in changed.items() if tensor is not None}

    with monkeypatch.context() as patch:
        patch.setattr(peft.peft_model, "get_peft_model_state_dict", altered)
        yield


@pytest.mark.parametrize(
    "dropped",
    ["lora_position_bias.w", "lora_landmark.P", "h.2.ln_1.weight", "h.0.attn.c_attn.lora_B"],
)
def test_a_tensor_dropped_on_save_is_caught(monkeypatch, dropped):
    model = adapted()
    with _saving(monkeypatch, lambda name, tensor: None if dropped in name else tensor):
        report = gate(model)
    assert report.failed == ["save_load"]
    assert_refused(report, "save_load", dropped.split(".")[-1])
    assert "is not saved" in report.checks["save_load"].detail


def test_a_tensor_rounded_on_save_is_caught(monkeypatch):
    model = adapted()
    with _saving(monkeypatch, lambda name, tensor: tensor.bfloat16() if "W_g" in name else tensor):
        report = gate(model)
    assert report.failed == ["save_load"]
    assert_refused(report, "save_load", "is not saved; check modules_to_save")


def test_a_setting_lost_on_save_is_caught(monkeypatch):
    model = adapted()
    saved = HyloradaConfig.to_dict
    monkeypatch.setattr(HyloradaConfig, "to_dict", lambda s: {**saved(s), "use_rslora": False})
    report = gate(model)
    assert report.failed == ["save_load"]


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"probe_length": 5}, "must lie between 12 and"),
        ({"probe_length": 500}, "must lie between 12 and"),
        (
            {"tokenizer_or_vocab_size": VOCAB + 1},
            "the tokenizer has 98 tokens, the model embeds 97",
        ),
    ],
)
def test_a_probe_that_does_not_fit_is_refused(options, words):
    settings = {"tokenizer_or_vocab_size": VOCAB, "max_length": TRAINED, **options}
    with pytest.raises(ConfigError, match=words):
        check_integrity(make_model("gpt2", TRAINED), **settings)
