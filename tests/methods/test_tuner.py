"""The method as peft sees it: attach, save, load, switch off, merge, several adapters."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from helpers.families import FAMILIES, LEARNED_FAMILIES, make_model, tokens
from helpers.shaken import shaken
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from hylorada.architecture import anatomy
from hylorada.errors import ConfigError, DataError
from hylorada.methods import HyloradaConfig, adapt
from hylorada.methods.integrity.adapters import count_by_component
from hylorada.methods.position_range import extend_range

LENGTH = 150  # of models trained on 64 tokens; no multiple of anything


def everything(family: str, **fields: object) -> HyloradaConfig:
    """Every component on, and a range longer than the model's."""
    on = {
        "position_bias_enabled": True, "landmark_enabled": True, "s2_attn_enabled": True,
        "s2_group_size": 16, "train_norms": True, "train_embeddings": family in LEARNED_FAMILIES,
        "max_length": LENGTH,
    }  # fmt: skip
    return HyloradaConfig(**{**on, **fields})


def logits(model: torch.nn.Module, ids: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens(2, LENGTH) if ids is None else ids).logits


def extended(family: str) -> torch.nn.Module:
    """The base model with its range extended and nothing attached."""
    model = make_model(family)
    extend_range(model, LENGTH)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_attached_saved_loaded_disabled_and_unloaded(family, tmp_path):
    base = make_model(family)
    short = tokens(2, 37)
    before = logits(base, short)
    reference = logits(extended(family))
    model = adapt(base, everything(family), seed=0)
    assert torch.equal(logits(model), reference)  # the identity, at step 0

    shaken(model)
    trained = logits(model)
    assert (trained - reference).abs().max() > 1e-2
    with model.disable_adapter():
        assert torch.equal(logits(model), reference)
        assert model.config._attn_implementation == "sdpa"
    assert torch.equal(logits(model), trained)

    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model(family), tmp_path)
    assert torch.equal(logits(loaded), trained)
    renamed = PeftModel.from_pretrained(
        make_model(family), tmp_path, adapter_name="lora", low_cpu_mem_usage=True
    )
    assert torch.equal(logits(renamed), trained)
    assert not any(p.requires_grad for p in loaded.parameters())
    resumed = PeftModel.from_pretrained(make_model(family), tmp_path, is_trainable=True)
    assert count_by_component(resumed) == count_by_component(model)
    for again in (loaded, renamed):  # S2 is back for training, in every layer
        assert again.base_model.s2_layers == 3
    assert (logits(loaded.train()) - trained).abs().max() > 1e-4

    unloaded = model.unload()
    assert torch.equal(logits(unloaded, short), before)
    assert unloaded.config.max_position_embeddings == 64
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unloaded.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_trainable_tensor_has_a_gradient_by_the_third_step(family):
    model = adapt(make_model(family), everything(family), seed=0).train()
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-2)
    ids = tokens(2, LENGTH)
    without: list[set[str]] = []
    for _ in range(3):
        optimizer.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        without.append({n for n, p in trainable.items() if p.grad is None or not p.grad.any()})
        optimizer.step()
    shared = "base_model.lora_{}.default.{}".format
    first = {shared("position_bias", n) for n in "bw"}
    first |= {shared("landmark", n) for n in ("W_g", "P", "alpha_s")}
    assert without[0] == first | {n for n in trainable if ".lora_A." in n}
    assert without[1] == {shared("position_bias", "w")}
    assert without[2] == set()


def test_a_has_orthonormal_rows_and_b_is_zero_also_on_a_bf16_model():
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        model = adapt(make_model("gpt2").to(dtype), HyloradaConfig(), seed=0)
        for layer in (m for m in model.modules() if isinstance(m, LoraLayer)):
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            assert a.dtype == b.dtype == torch.float32
            assert torch.allclose(a @ a.T, torch.eye(8), atol=tolerance)
            assert not b.any()
            assert layer.scaling["default"] == 16 / 8**0.5
    with pytest.raises(ConfigError, match="lora_init"):
        HyloradaConfig(init_lora_weights="orthogonal")  # peft's, which is neither


@pytest.mark.parametrize("fields", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_lora_rslora_and_dora_are_pefts_own(fields, tmp_path):
    shared = {"r": 4, "lora_alpha": 16, "task_type": "CAUSAL_LM", **fields}
    torch.manual_seed(0)
    by_peft = get_peft_model(
        make_model("gpt2"),
        LoraConfig(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, **shared),
    )
    ours = HyloradaConfig(lora_init="kaiming", **{"use_rslora": False, **shared})
    torch.manual_seed(0)
    by_us = adapt(make_model("gpt2"), ours)
    ids = tokens(2, 37)
    for model in (by_peft, by_us):
        torch.manual_seed(1)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
        for _ in range(2):
            model.train()(ids, labels=ids, use_cache=False).loss.backward()
            optimizer.step()
        model.eval()
    expected = logits(by_peft, ids)
    assert torch.equal(logits(by_us, ids), expected)
    by_us.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model("gpt2"), tmp_path)
    assert torch.equal(logits(loaded, ids), expected)


def test_arms_with_one_seed_share_a_and_adapt_leaves_the_generator_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    arms = [HyloradaConfig(), everything("gpt2"), HyloradaConfig(use_dora=True)]
    models = [adapt(make_model("gpt2"), c, seed=3) for c in arms]
    weights = [{n: p for n, p in m.named_parameters() if ".lora_A." in n} for m in models]
    for other in weights[1:]:
        assert all(torch.equal(p, other[n]) for n, p in weights[0].items())
    torch.set_rng_state(state)
    expected = torch.rand(3)
    torch.set_rng_state(state)
    model = make_model("gpt2")
    torch.set_rng_state(state)
    adapt(model, everything("gpt2"), seed=3)
    assert torch.equal(torch.rand(3), expected)


def test_gpt2_gets_the_papers_811k_and_no_c_fc():
    with torch.device("meta"):
        model = adapt(GPT2LMHeadModel(GPT2Config()), HyloradaConfig())
    assert count_by_component(model) == {"lora": 811_008}
    assert not any("c_fc" in n and "lora" in n for n, _ in model.named_parameters())


@pytest.mark.parametrize(("family", "auto", "attention"), [
    ("gpt2", {"attn.c_attn", "attn.c_proj", "mlp.c_proj"}, {"attn.c_attn", "attn.c_proj"}),
    ("llama", {f"self_attn.{p}_proj" for p in "qkvo"}
     | {f"mlp.{p}_proj" for p in ("gate", "up", "down")}, {f"self_attn.{p}_proj" for p in "qkvo"}),
    ("gpt_neox", {"attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h",
                  "mlp.dense_4h_to_h"}, {"attention.query_key_value", "attention.dense"}),
    ("opt", {f"self_attn.{p}_proj" for p in ("q", "k", "v", "out")} | {"fc1", "fc2"},
     {f"self_attn.{p}_proj" for p in ("q", "k", "v", "out")}),
])  # fmt: skip
def test_targets_by_architecture(family, auto, attention):
    for shorthand, expected in (("auto", auto), ("attention", attention)):
        model = adapt(make_model(family), HyloradaConfig(target_modules=shorthand))
        assert set(model.peft_config["default"].target_modules) == expected
        adapted = {n for n, m in model.named_modules() if isinstance(m, LoraLayer)}
        assert len(adapted) == 3 * len(expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_trained_norms_are_all_of_the_residual_path_and_nothing_else(family):
    model = adapt(make_model(family), HyloradaConfig(train_norms=True))
    wrapped = {
        n.removeprefix("base_model.model.")
        for n, m in model.named_modules() if isinstance(m, ModulesToSaveWrapper)
    }  # fmt: skip
    assert wrapped == set(anatomy.norm_names(make_model(family)))


def test_plain_peft_calls_do_the_same_and_the_config_is_not_touched():
    config = everything("gpt2")
    before = config.to_dict()
    torch.manual_seed(0)
    by_peft = get_peft_model(make_model("gpt2"), config)
    by_us = adapt(make_model("gpt2"), config, max_length=LENGTH)
    assert config.to_dict() == {**before, "base_model_name_or_path": config.base_model_name_or_path}
    assert by_peft.base_model.s2_layers == by_us.base_model.s2_layers == 3
    assert torch.equal(logits(by_peft), logits(by_us))


@pytest.mark.parametrize("share", [{"s2_full_layers": 0.3}, {"s2_full_heads": 0.5}])
def test_what_attends_fully_is_saved_with_the_adapter(share, tmp_path):
    model = shaken(adapt(make_model("llama"), HyloradaConfig(
        s2_attn_enabled=True, s2_group_size=8, s2_in_evaluation=True, max_length=LENGTH, **share
    )))  # fmt: skip
    model.save_pretrained(tmp_path)
    assert torch.equal(
        logits(PeftModel.from_pretrained(make_model("llama"), tmp_path)), logits(model)
    )
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | dict.fromkeys(share, 0.0)))
    without = PeftModel.from_pretrained(make_model("llama"), tmp_path)
    assert (logits(without) - logits(model)).abs().max() > 1e-4


def test_the_saved_config_is_resolved_and_always_written_alike(tmp_path):
    adapt(make_model("llama"), HyloradaConfig.for_length(128, trained_length=64)).save_pretrained(
        tmp_path
    )
    saved = json.loads((Path(tmp_path) / "adapter_config.json").read_text())
    assert saved["peft_type"].startswith("HYLORADA (")
    assert saved["target_modules"] == sorted(saved["target_modules"])
    assert saved["train_embeddings"] is False  # the rule says so, but Llama has none
    assert saved["rope_scaling_type"] == "linear"
    assert saved["rope_scaling_factor"] == 2.0
    assert saved["chosen_by_rule"] == []
    assert isinstance(PeftConfig.from_pretrained(tmp_path), HyloradaConfig)


def test_a_pure_adapter_merges_and_keeps_its_range():
    model = shaken(adapt(make_model("gpt2"), HyloradaConfig(train_norms=True, max_length=LENGTH)))
    expected = logits(model)
    merged = model.merge_and_unload()
    assert torch.allclose(logits(merged), expected, atol=1e-4)  # float32: W + BA, then one product
    assert merged.config.n_positions == LENGTH


def test_batches_of_mixed_adapters_work_only_without_shared_parts():
    model = shaken(adapt(make_model("gpt2"), HyloradaConfig()))
    ids = tokens(2, 9)
    with torch.no_grad():
        mixed = model(ids, adapter_names=["default", "__base__"]).logits
        assert torch.allclose(mixed[0], model(ids).logits[0], atol=1e-5)  # float32
        with model.disable_adapter():
            assert torch.allclose(mixed[1], model(ids).logits[1], atol=1e-5)
    model = adapt(make_model("gpt2"), everything("gpt2")).eval()
    with pytest.raises(ConfigError, match="one batch per adapter"):
        model(tokens(2, 9), adapter_names=["default", "__base__"])


def test_two_adapters_keep_apart():
    model = shaken(adapt(make_model("gpt2"), everything("gpt2"), seed=0), seed=1)
    first = logits(model)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    model.add_adapter("second", everything("gpt2", s2_attn_enabled=False, num_landmarks=3))
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trainable
    assert torch.equal(logits(model), first)

    model.set_adapter("second")
    assert torch.equal(logits(model), logits(extended("gpt2")))
    assert model.base_model.s2_layers == 0
    assert model.config._attn_implementation == "sdpa"
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(".second." in n for n in names)
    assert len(names) == len(trainable)

    shaken(model, seed=2)
    second = logits(model)
    model.set_adapter("default")
    assert model.base_model.s2_layers == 3
    assert torch.equal(logits(model), first)
    model.set_adapter("second")
    model.delete_adapter("default")
    assert torch.equal(logits(model), second)
    assert not [n for n, _ in model.named_parameters() if ".default." in n]


def test_a_model_that_is_adapted_is_not_adapted_again():
    base = make_model("gpt2")
    model = adapt(base, everything("gpt2"))
    for adapted in (model, base):
        with pytest.raises(ConfigError, match=r"carries an adapter; load its base.*unload"):
            adapt(adapted, everything("gpt2"))
    again = adapt(model.unload(), everything("gpt2"), seed=0)
    assert torch.equal(logits(again), logits(extended("gpt2")))


def test_a_second_adapter_of_another_range_is_refused():
    model = adapt(make_model("gpt2"), everything("gpt2"))
    with pytest.raises(ConfigError, match=r"one position range.*max_length"):
        model.add_adapter("second", HyloradaConfig(max_length=2 * LENGTH))


def test_trained_copies_are_float32_and_work_in_a_bf16_model_with_and_without_autocast():
    model = adapt(make_model("gpt2").bfloat16(), everything("gpt2"), seed=0).train()
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    ids = tokens(1, LENGTH)
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            model(ids, labels=ids, use_cache=False).loss.backward()
        groups = ("lora_B", "wpe", "ln_f", "lora_landmark.default.L")
        for part in groups:
            of_part = [p for n, p in model.named_parameters() if part in n]
            assert any(p.grad is not None and p.grad.any() for p in of_part), (part, enabled)


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_autocast_stays_near_float32(family):
    model = shaken(adapt(make_model(family), everything(family), seed=0), scale=0.02)
    expected = logits(model)
    with torch.autocast("cpu", torch.bfloat16):
        got = logits(model)
    # bf16 has 8 bits: 2**-8 per product, a few layers deep
    assert (got - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_a_file_that_lacks_tensors_is_an_error_not_a_warning(tmp_path):
    model = shaken(adapt(make_model("gpt2"), everything("gpt2")))
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors["base_model.lora_position_bias.b"]
    save_file(tensors, path)
    with pytest.raises(DataError, match=r"1 of its tensors.*lora_position_bias"):
        PeftModel.from_pretrained(make_model("gpt2"), tmp_path)


def test_a_deep_copy_is_independent():
    model = shaken(adapt(make_model("llama"), everything("llama")))
    twin = copy.deepcopy(model)
    expected = logits(model)
    assert torch.equal(logits(twin), expected)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if "lora_position_bias" in name or "lora_landmark" in name:
                parameter.zero_()
    assert torch.equal(logits(model), expected)
    assert not torch.equal(logits(twin), expected)
    assert twin.base_model.positions is not model.base_model.positions


@pytest.mark.parametrize(("family", "fields", "message"), [
    ("llama", {"train_embeddings": True}, "no learned position embeddings"),
    ("gpt2", {"rope_scaling_type": "linear", "max_length": 128}, "no rotary position embedding"),
    ("gpt2", {"rope_scaling_factor": 2.0, "max_length": 128}, "no rotary position embedding"),
])  # fmt: skip
def test_what_a_model_cannot_have_is_refused_with_a_sentence(family, fields, message):
    with pytest.raises(ConfigError, match=message):
        adapt(make_model(family), HyloradaConfig(**fields))


def test_one_length_only():
    config = HyloradaConfig(max_length=128)
    with pytest.raises(ConfigError, match="use one length"):
        adapt(make_model("gpt2"), config, max_length=256)
    with pytest.raises(ConfigError, match="not below max_length"):
        adapt(make_model("gpt2"), HyloradaConfig(s2_attn_enabled=True), max_length=2048)
