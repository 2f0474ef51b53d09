"""A base model is loaded whole, or not at all: real checkpoints, damaged in real ways."""

import json
import logging
import shutil

import pytest
import torch
from helpers.families import CONFIGS, make_model, tokens
from helpers.tiny_runs import make_config, make_model_folder, make_texts, run_here
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2ForSequenceClassification,
    GPT2Model,
    LlamaForSequenceClassification,
    LlamaModel,
    MixtralConfig,
    MixtralForCausalLM,
)

from hylorada.config import ModelConfig
from hylorada.errors import DataError
from hylorada.loading.backbone import load_backbone
from hylorada.loading.whole_weights import check_loaded

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    make_model_folder(folder)
    return list(folder.glob("token*"))


@pytest.fixture
def save(tmp_path, tokenizer):
    """Write a model of transformers, its tensors changed by a function of {name: tensor}."""

    def write(model, change=None, **options):
        model.save_pretrained(tmp_path, **options)
        for path in tokenizer:
            shutil.copy(path, tmp_path)
        if change is not None:
            file = tmp_path / "model.safetensors"
            tensors = load_file(file)
            tensors = change(tensors) or tensors
            save_file(tensors, file, {"format": "pt"})
        return tmp_path

    return write


def load(path):
    return load_backbone(ModelConfig("m", str(path)), CPU)


def refused(path):
    """The one line of the refusal."""
    with pytest.raises(DataError) as caught:
        load(path)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    return str(caught.value)


def without(*parts):
    def change(tensors):
        return {k: v for k, v in tensors.items() if not any(part in k for part in parts)}

    return change


@pytest.mark.parametrize(
    ("family", "parts", "count", "first"),
    [
        ("llama", ("layers.1.mlp.up_proj",), "1 tensor", "model.layers.1.mlp.up_proj.weight"),
        ("llama", ("layers.2.",), "9 tensors", "model.layers.2.self_attn.q_proj.weight, "),
        ("llama", ("lm_head",), "1 tensor", "lm_head.weight"),
        ("gpt2", ("h.0.attn.c_attn.bias",), "1 tensor", "transformer.h.0.attn.c_attn.bias"),
        ("gpt2", ("wpe",), "1 tensor", "transformer.wpe.weight"),
        # the head is tied to the embeddings, so both are gone
        ("gpt2", ("wte",), "2 tensors", "transformer.wte.weight, lm_head.weight"),
        ("opt", ("final_layer_norm",), "8 tensors", "model.decoder.final_layer_norm.weight"),
    ],
)
def test_what_is_missing_is_named_and_counted(save, family, parts, count, first):
    line = refused(save(make_model(family), without(*parts)))
    assert f"its weights lack {count} of {type(make_model(family)).__name__}, first {first}" in line


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "transformer.", "base_model.model."])
def test_names_under_a_wrappers_prefix_are_not_random_weights(save, prefix):
    path = save(make_model("llama"), lambda t: {prefix + k: v for k, v in t.items()})
    line = refused(path)
    assert "lack 30 tensors" in line
    assert f"under the prefix {prefix!r}" in line


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_names_that_transformers_itself_understands_load(save, family):
    """With the backbone's own prefix left out (as gpt2's file on the hub) or put before all."""
    model = make_model(family)
    want = load(save(model)).sha256
    prefix = f"{model.base_model_prefix}."
    for change in (
        lambda t: {k.removeprefix(prefix): v for k, v in t.items()},
        lambda t: {prefix + k: v for k, v in t.items()},
    ):
        assert load(save(model, change)).sha256 == want


def test_another_shape_is_named_with_both_shapes(save):
    def shorten(tensors):
        for name in ("model.layers.1.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight"):
            tensors[name] = tensors[name][:-1].clone()

    line = refused(save(make_model("llama"), shorten))
    assert "2 tensors in its weights have another shape than config.json says" in line
    assert "first model.layers.1.mlp.up_proj.weight (47 x 32, not 48 x 32)" in line


def test_a_vocabulary_that_config_json_does_not_know(save):
    path = save(make_model("gpt2"))
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(settings | {"vocab_size": 100}))
    assert "transformer.wte.weight (97 x 32, not 100 x 32)" in refused(path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(save, bad):
    def spoil(tensors):
        tensors["model.norm.weight"][3] = bad
        tensors["model.layers.2.mlp.down_proj.weight"][0, 0] = bad

    line = refused(save(make_model("llama"), spoil))
    assert "2 tensors in its weights have numbers that are not finite" in line
    assert "first model.layers.2.mlp.down_proj.weight, model.norm.weight" in line


def test_the_largest_numbers_are_finite(save):
    def grow(tensors):
        tensors["model.norm.weight"].fill_(torch.finfo(torch.float32).max)

    load(save(make_model("llama"), grow))


def test_a_shard_that_is_not_there(save):
    path = save(make_model("llama"), max_shard_size="20KB")
    (path / "model.safetensors.index.json").read_text()
    gone = sorted(path.glob("model-*"))[2]
    gone.unlink()
    assert f"its index names {gone.name}, which is not there" in refused(path)


def test_an_index_that_leaves_a_shard_out(save):
    path = save(make_model("llama"), max_shard_size="20KB")
    index = path / "model.safetensors.index.json"
    names = json.loads(index.read_text())
    last = max(names["weight_map"].values())
    lost = [k for k, v in names["weight_map"].items() if v == last]
    names["weight_map"] = {k: v for k, v in names["weight_map"].items() if v != last}
    index.write_text(json.dumps(names))
    assert f"first {lost[0]}" in refused(path)


def test_an_expert_that_is_missing(save):
    """transformers stacks the experts of a layer: one too few is another shape, all are missing."""
    torch.manual_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
        )
    )  # fmt: skip
    load(save(model))
    one, every = ".experts.2.", ".experts."
    saved = load_file(save(model) / "model.safetensors")
    assert any("layers.1" in name and one in name for name in saved)
    for part in (one, every):
        line = refused(save(model, lambda t, p=part: {
            k: v for k, v in t.items() if not ("layers.1" in k and p in k)
        }))  # fmt: skip
        assert "model.layers.1.mlp.experts." in line


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LlamaForSequenceClassification(CONFIGS["llama"](64)), "ForSequenceClassification"),
        (lambda: GPT2ForSequenceClassification(CONFIGS["gpt2"](64)), "ForSequenceClassification"),
        (lambda: BertForMaskedLM(small_bert()), "BertForMaskedLM"),
        (lambda: BertModel(small_bert()), "of BertLMHeadModel, first cls.predictions"),
        (lambda: LlamaModel(CONFIGS["llama"](64)), "first lm_head.weight; .*says LlamaModel"),
    ],
)
def test_a_checkpoint_of_another_task_is_no_language_model(save, make, words):
    with pytest.raises(DataError, match=words):
        load(save(make()))


def small_bert():
    return BertConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48,
    )  # fmt: skip


def test_what_is_a_causal_model_by_another_name_loads(save):
    assert load(save(GPT2Model(CONFIGS["gpt2"](64)))).model.lm_head  # tied: nothing is missing


def test_left_over_tensors_are_one_warning(save, caplog, capfd):
    def add(tensors):
        for part in ("down_proj", "up_proj"):
            tensors[f"model.layers.9.mlp.{part}.weight"] = torch.zeros(2)

    model = make_model("llama")
    with caplog.at_level(logging.WARNING):
        loaded = load(save(model, add))
    (record,) = caplog.records
    assert record.getMessage().endswith(
        "its weights hold 2 tensors that LlamaForCausalLM does not have and that are left out, "
        "first model.layers.9.mlp.down_proj.weight"
    )
    assert "LOAD REPORT" not in "".join(capfd.readouterr())
    assert torch.equal(loaded.model(tokens(1, 9)).logits, model(tokens(1, 9)).logits)


def test_left_over_tensors_that_the_class_knows_are_no_warning(save, caplog):
    def add(tensors):  # as in checkpoints of an older transformers
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)

    with caplog.at_level(logging.WARNING):
        load(save(make_model("llama"), add))
    assert not caplog.records


def test_tied_by_config_json_and_two_in_the_file(save, caplog):
    """The file's own head is used, as transformers does; told in one line, and kept when saved."""

    def other_head(tensors):
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].flip(0).contiguous()

    model = make_model("gpt2")
    with caplog.at_level(logging.WARNING):
        loaded = load(save(model, other_head)).model
    (record,) = caplog.records
    assert "the weights hold a head with other values; that head is used" in record.getMessage()
    ids = tokens(1, 9)
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits.flip(-1))
    loaded.tie_weights()  # as lm-eval does
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits.flip(-1))
    caplog.clear()

    def same_head(tensors):
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()

    assert torch.equal(load(save(model, same_head)).model(ids).logits, model(ids).logits)
    assert not caplog.records


def test_a_folder_with_an_adapter_beside_the_model(save):
    path = save(make_model("llama"))
    (path / "adapter_config.json").write_text("{}")
    assert "holds an adapter beside the model" in refused(path)
    # As from a hub repository, whose files are not looked at first.
    get_peft_model(make_model("llama"), LoraConfig(target_modules="all-linear")).save_pretrained(
        path
    )
    model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    with pytest.raises(DataError, match="the repository holds an adapter"):
        check_loaded(model, info, "model.path=x")


def test_a_run_on_half_a_checkpoint_ends_with_exit_3(tmp_path):
    folder = make_model_folder(tmp_path / "model")
    file = folder / "model.safetensors"
    save_file(without("h.1.mlp")(load_file(file)), file, {"format": "pt"})
    make_texts(tmp_path / "texts")
    assert run_here(make_config(tmp_path), tmp_path / "run") == 3
    assert "lack 4 tensors of GPT2LMHeadModel" in (tmp_path / "run.err").read_text()
