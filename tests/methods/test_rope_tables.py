"""A table for each kind of layer: rescaled where it must be, as models built with the setting."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.architectures import TRAINED, make_config, make_zoo_model
from transformers import AutoModelForCausalLM

from hylorada.architecture import anatomy
from hylorada.errors import ConfigError
from hylorada.methods.position_range import extend_range, restore_range
from hylorada.methods.rope_tables import rope_tables

LONG = 150  # 2.3 times: the factor is 3
BY_KIND = ("olmo3", "gemma3_text", "modernbert-decoder", "mimo_v2_flash")


def logits(model, length=LONG):
    ids = torch.randint(1, 250, (1, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def tables(model):
    return {t.kind: (t.inv_freq.clone(), _scale(t)) for t in rope_tables(model)}


def _scale(table):
    prefix = f"{table.kind}_" if table.kind else ""
    return getattr(table.module, f"{prefix}attention_scaling", 1.0)


@pytest.mark.parametrize("rope_type", ["linear", "yarn", "dynamic"])
@pytest.mark.parametrize("family", BY_KIND)
def test_the_table_of_the_global_layers_is_rescaled_as_its_makers_would(family, rope_type):
    model = make_zoo_model(family)
    before = tables(model)
    config = make_config(family)
    wanted = {**config.rope_parameters["full_attention"], "rope_type": rope_type, "factor": 3.0}
    if rope_type == "yarn":
        wanted["original_max_position_embeddings"] = TRAINED
    config.rope_parameters = {**config.rope_parameters, "full_attention": wanted}
    if rope_type != "dynamic":
        config.max_position_embeddings = 3 * TRAINED
    oracle = AutoModelForCausalLM.from_config(config).eval()
    oracle.load_state_dict(model.state_dict())
    report = extend_range(model, LONG, rope_type=rope_type)
    assert torch.equal(logits(model), logits(oracle))
    after = tables(model)
    assert torch.equal(after["sliding_attention"][0], before["sliding_attention"][0])
    assert not torch.equal(after["full_attention"][0], before["full_attention"][0])
    assert (report.kind, report.type, report.factor) == ("rope", rope_type, 3.0)


@pytest.mark.parametrize("family", BY_KIND)
def test_a_window_longer_than_the_training_is_rescaled_too(family):
    config = make_config(family)
    config.sliding_window = 2 * TRAINED
    model = AutoModelForCausalLM.from_config(config)
    before = tables(model)
    extend_range(model, LONG)
    after = tables(model)
    for kind, (inv_freq, _) in before.items():
        assert torch.allclose(after[kind][0] * 3, inv_freq), kind


@pytest.mark.parametrize("family", [*BY_KIND, "gemma3", "gemma4_text", "zaya"])
def test_restoring_and_saving(family, tmp_path):
    model = make_zoo_model(family)
    before, config, short = tables(model), model.config.to_dict(), logits(model)
    report = extend_range(model, LONG)
    assert extend_range(model, LONG).kind == "none"
    long = logits(model)
    copy.deepcopy(model).save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), long)
    assert anatomy.trained_length(again.config) == TRAINED
    restore_range(model, report)
    assert model.config.to_dict() == config
    assert tables(model).keys() == before.keys()
    assert torch.equal(logits(model), short)
    assert not torch.equal(long, short)


def test_a_proportional_table_takes_the_factor_that_is_part_of_it():
    model = make_zoo_model("gemma4_text")
    before = tables(model)["full_attention"][0]
    assert model.config.rope_parameters["full_attention"]["rope_type"] == "proportional"
    report = extend_range(model, LONG)
    assert torch.allclose(tables(model)["full_attention"][0] * 3, before)
    assert (report.type, report.factor) == ("linear", 3.0)
    with pytest.raises(ConfigError, match="rope_type=proportional"):
        extend_range(make_zoo_model("gemma4_text"), LONG, rope_type="yarn")


@pytest.mark.parametrize("family", ["mistral, window", "cohere2", "exaone4, window"])
def test_layers_with_a_window_below_the_trained_length_need_no_rescaling(family):
    """Two tokens that see each other with RoPE are never farther apart than in training."""
    model = make_zoo_model(family)
    before, short = model.config.to_dict(), logits(model)
    report = extend_range(model, LONG)
    assert report.kind == "none"
    assert report.to_length == LONG
    assert "see 16 tokens, fewer than it was trained on" in report.reason
    assert model.config.to_dict() == before
    assert torch.equal(logits(model), short)
    with pytest.raises(ConfigError, match="RoPE scaling has nothing to do"):
        extend_range(model, LONG, rope_type="linear")


@pytest.mark.parametrize("family", ["cohere2", "exaone4, window"])
def test_full_attention_without_positions_is_what_the_model_does(family):
    """That global layers of these models use no RoPE: their output does not follow the table."""
    model = make_zoo_model(family)
    inputs: dict[int, tuple] = {}
    for i, layer in enumerate(model.model.layers):
        layer.self_attn.register_forward_hook(
            lambda module, args, kwargs, output, i=i: inputs.update({i: (module, kwargs, output)}),
            with_kwargs=True,
        )
    logits(model, 40)
    kinds = model.config.layer_types
    with torch.no_grad():
        for i, (module, kwargs, output) in list(inputs.items()):
            cos, sin = kwargs["position_embeddings"]
            other = module(**{**kwargs, "position_embeddings": (sin, cos)})
            same = torch.equal(other[0], output[0])
            assert same == (kinds[i] == "full_attention"), (i, kinds[i])


def scaled_llama(**more):
    config = make_config("llama")
    config.rope_parameters = {**config.rope_parameters, "rope_type": "linear", "factor": 4.0}
    for name, value in more.items():
        setattr(config, name, value)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(("told", "factor", "reach"), [(64, 12.0, 192), (256, 4.0, 0)])
def test_which_reading_is_true_is_the_users_to_say(told, factor, reach):
    model = scaled_llama(hylorada_trained_length=told)
    plain = make_config("llama").rope_parameters
    report = extend_range(model, LONG)
    assert model.config.rope_parameters == {**plain, "rope_type": "linear", "factor": factor}
    assert anatomy.trained_length(model.config) == told
    assert (report.kind, report.to_length) == (("rope", reach) if reach else ("none", told))


def test_a_merged_model_is_extended_again_when_the_user_says_how_long_it_was_trained():
    model = make_zoo_model("llama")
    extend_range(model, LONG)  # factor 3: reaches 192
    config = copy.deepcopy(model.config)  # as in the config.json of a merged run
    with pytest.raises(ConfigError, match="already extended from 64 to 192"):
        extend_range(model, 400)
    config.hylorada_trained_length = 192
    merged = AutoModelForCausalLM.from_config(config)
    before = merged.config.to_dict()
    report = extend_range(merged, 400)
    assert merged.config.rope_parameters["factor"] == 9.0
    assert (report.from_length, report.to_length, report.factor) == (192, 576, 3.0)
    assert extend_range(merged, 400).kind == "none"
    restore_range(merged, report)
    assert merged.config.to_dict() == before


def test_learned_positions_of_which_fewer_were_trained():
    model = make_zoo_model("gpt2")
    weight = model.transformer.wpe.weight.detach().clone()
    model.config.hylorada_trained_length = 32
    extend_range(model, TRAINED, learned_init="tile")
    assert torch.equal(model.transformer.wpe.weight, torch.cat([weight[:32], weight[:32]]))
    model = make_zoo_model("gpt2")
    model.config.hylorada_trained_length = 100
    with pytest.raises(ConfigError, match="position embeddings for 64 tokens"):
        extend_range(model, LONG)


def test_a_rotary_module_that_needs_more_than_a_factor_is_refused():
    model = make_zoo_model("phimoe")
    config, before = model.config.to_dict(), logits(model)
    with pytest.raises(ConfigError, match=r"PhimoeRotaryEmbedding .* needs other settings"):
        extend_range(model, LONG)
    assert model.config.to_dict() == config
    assert torch.equal(logits(model), before)
