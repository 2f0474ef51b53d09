"""Parts and positions, on small models of the true architectures."""

from __future__ import annotations

import pytest
import torch
from helpers.architectures import ALL, TRAINED, make_config, make_zoo_model
from helpers.families import make_model

from hylorada.architecture import anatomy
from hylorada.architecture.anatomy import PositionForm
from hylorada.errors import ConfigError
from hylorada.methods.position_range import extend_range, restore_range

FORMS = {
    PositionForm.LEARNED: {
        "gpt2", "opt", "opt, projected", "gpt_neo", "gpt_bigcode", "biogpt", "openai-gpt", "bart",
        "bert, decoder", "bert, encoder", "megatron-bert, decoder", "roberta, decoder",
    },
    PositionForm.ROTARY_TABLE: {"gptj", "codegen", "roformer"},
    PositionForm.SINUSOIDAL: {"xglm", "ctrl", "pegasus"},
    PositionForm.DISTANCES: {"bloom", "bloom, silent", "mpt", "falcon, alibi"},
    PositionForm.STATE: {
        "mamba", "mamba, silent", "mamba2", "rwkv", "xlstm", "jamba", "granitemoehybrid", "zamba2",
    },
    PositionForm.UNKNOWN: {"xlnet", "reformer"},
}  # fmt: skip


@pytest.fixture(scope="module")
def models():
    return {family: make_zoo_model(family) for family in ALL}


def test_the_form_of_every_family(models):
    expected = {family: form for form, members in FORMS.items() for family in members}
    for family, model in models.items():
        assert anatomy.position_form(model) is expected.get(family, PositionForm.ROTARY), family


def test_the_decoder_layers_of_every_family(models):
    for family, model in models.items():
        config = anatomy.text_config(model.config)
        count = getattr(config, "decoder_layers", None) or config.num_hidden_layers
        assert len(anatomy.decoder_layers(model)) == count, family
        module = anatomy.decoder(model)
        assert any(m is anatomy.decoder_layers(model) for m in module.modules()), family
        assert any(m is module for m in anatomy.backbone(model).modules()), family


def test_layers_that_are_no_blocks_are_said_to_be_none():
    from transformers import AutoModelForCausalLM, XLMConfig

    config = XLMConfig(vocab_size=99, emb_dim=32, n_layers=2, n_heads=4, max_position_embeddings=64)
    with pytest.raises(ConfigError, match="are not one list of blocks"):
        anatomy.decoder_layers(AutoModelForCausalLM.from_config(config))


def test_the_trained_length_of_every_family(models):
    silent = {"bloom, silent", "mamba, silent"}
    for family, model in models.items():
        if family not in silent:
            assert anatomy.trained_length(model.config) == TRAINED, family
    for family in silent:
        with pytest.raises(ConfigError, match=r"set model\.trained_length"):
            anatomy.trained_length(models[family].config)
        config = make_config(family)
        config.hylorada_trained_length = 77
        assert anatomy.trained_length(config) == 77


def test_pictures_have_no_part_in_the_language_model(models):
    model = models["gemma3"]  # its tower of pictures has a table of 64 positions, as the text has
    names = [name for name, _ in anatomy.text_modules(model)]
    assert any("vision_tower" in name for name, _ in model.named_modules())
    assert not any("vision_tower" in name for name in names)
    assert anatomy.position_embedding(model) is None
    assert all(name.startswith("model.language_model") for name, _ in anatomy.rotary_modules(model))


def test_norms_without_parameters_are_none_to_train(models):
    for family in ("olmo", "nanochat"):
        assert anatomy.norm_names(models[family]) == []
    assert len(anatomy.norm_names(models["olmo2"])) == 2 * 2 + 1
    # of a gate in a recurrent layer, of another width: not on the residual path
    assert not [name for name in anatomy.norm_names(models["mamba2"]) if "mixer" in name]


@pytest.mark.parametrize("family", ["gpt_neo", "openai-gpt", "gpt_bigcode", "bert, decoder"])
def test_causal_masks_and_buffers_of_older_models_grow_with_the_positions(family):
    """The longer model is the one that is built for that length with the longer table."""
    model = make_zoo_model(family)
    extend_range(model, 2 * TRAINED, learned_init="tile")
    oracle = make_zoo_model(family, 2 * TRAINED)
    embedding = anatomy.position_embedding(model)
    assert embedding is not None
    oracle.load_state_dict(model.state_dict())
    ids = torch.randint(1, 250, (1, 2 * TRAINED), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, oracle(input_ids=ids).logits)


@pytest.mark.parametrize("family", sorted(FORMS[PositionForm.STATE] | {"bloom", "mpt"}))
def test_what_knows_no_last_position_reaches_any_length(family):
    model = make_zoo_model(family)
    model.config.hylorada_trained_length = TRAINED
    before = model.config.to_dict()
    report = extend_range(model, 3 * TRAINED)
    assert report.kind == ("distances" if family == "mpt" else "none")
    assert report.reason
    assert anatomy.trained_length(model.config) == TRAINED
    ids = torch.randint(1, 250, (1, 3 * TRAINED), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert model(input_ids=ids, use_cache=False).logits.isfinite().all()
    restore_range(model, report)
    assert model.config.to_dict() == before


@pytest.mark.parametrize("family", sorted(
    FORMS[PositionForm.ROTARY_TABLE] | FORMS[PositionForm.SINUSOIDAL]
    | FORMS[PositionForm.UNKNOWN]
))  # fmt: skip
def test_what_cannot_be_extended_is_refused_beyond_the_trained_length_alone(family):
    model = make_zoo_model(family)
    assert extend_range(model, TRAINED).kind == "none"
    with pytest.raises(ConfigError, match=f"cannot be extended to 128; .* at most {TRAINED}"):
        extend_range(model, 2 * TRAINED)


def test_the_six_families_are_found_as_they_were():
    for family, owner, first in (
        ("gpt2", "GPT2Model", "h"), ("opt", "OPTDecoder", "layers"),
        ("llama", "LlamaModel", "layers"), ("gpt_neox", "GPTNeoXModel", "layers"),
    ):  # fmt: skip
        model = make_model(family)
        assert type(anatomy.decoder(model)).__name__ == owner
        assert anatomy.decoder_layers(model) is getattr(anatomy.decoder(model), first)
