"""No adapter is measured of which the file did not hold just what the model needs."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from helpers.families import tokens
from helpers.marks import LONG, SLOW
from helpers.peft_types import (
    NOT_ON_GPT2,
    TARGETS,
    base,
    lora_variants,
    peft_types,
    save,
    trained,
    type_config,
)
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig

from hylorada.errors import DataError
from hylorada.methods import HyloradaConfig, load_adapter

pytestmark = pytest.mark.filterwarnings("ignore")  # peft comments on every odd configuration
IDS = tokens(2, 20)
# One of each way of keeping tensors; the others are slow, and long on GPT-2.
FAST = {
    "LORA", "IA3", "VERA", "LOHA", "OFT", "ADALORA", "VBLORA", "SHIRA", "TRAINABLE_TOKENS",
    "LN_TUNING", "TINYLORA", "UNILORA", "ADAPTION_PROMPT", "HIRA",
}  # fmt: skip
TYPES = [
    pytest.param(family, name, marks=LONG if family == "gpt2" else [] if name in FAST else SLOW)
    for family in ("llama", "gpt2")
    for name in peft_types()
    if family != "gpt2" or name not in NOT_ON_GPT2
]
# One of several copies of a shared tensor: without it the adapter is the same.
SHARED = {"RANDLORA", "LILY"}
# Neither base_model.model nor a layer's path stands before its only tensor.
ON_THE_MODEL = {"UNILORA"}


def logits(model):
    more = {"task_ids": torch.tensor([0, 1])} if model.peft_type == "POLY" else {}
    with torch.no_grad():
        return model(IDS, **more).logits


def rewritten(folder, change):
    """The file of an adapter with its tensors changed."""
    path = folder / "adapter_model.safetensors"
    tensors = {key: tensor.clone() for key, tensor in change(load_file(path)).items()}
    save_file(tensors, path)
    return folder


def renamed(old, new):
    return lambda tensors: {key.replace(old, new): t for key, t in tensors.items()}


@pytest.mark.parametrize(("family", "name"), TYPES)
def test_every_method_of_peft_is_accepted_whole_and_in_no_other_way(family, name, tmp_path):
    model = trained(base(family), type_config(name, family))
    expected = logits(model)
    folder = save(model, tmp_path)
    assert torch.equal(logits(load_adapter(base(family), folder)), expected)
    whole = load_file(folder / "adapter_model.safetensors")
    if not whole:
        assert name == "OSF"  # peft 0.21 saves nothing of it if the base was loaded frozen
        return
    key = sorted(whole)[len(whole) // 2]

    def refused(change, *named):
        save_file(whole, folder / "adapter_model.safetensors")
        with pytest.raises(DataError) as caught:
            load_adapter(base(family), rewritten(folder, change))
        message = str(caught.value)
        assert "\n" not in message
        assert all(word in message for word in named), message

    extra = "base_model.model.none.lora_A.weight"
    refused(lambda t: {**t, extra: torch.ones(2, 2)}, "1 of the file's tensors", extra)
    refused(lambda t: {**t, extra: t[key]}, "1 of the file's tensors", extra)  # a copy, too
    if name not in SHARED:
        refused(lambda t: {k: v for k, v in t.items() if k != key}, "1 of its tensors", key)
        refused(renamed(key, f"{key}_"), f"first {key} and", f"first {key}_;")
    if name not in ON_THE_MODEL:
        refused(renamed("base_model.model.", ""), "are not in the file", "reach nothing")


@pytest.mark.parametrize(("family", "tied"), [
    ("llama", True),
    pytest.param("llama", False, marks=SLOW),
    pytest.param("gpt2", True, marks=SLOW),
    pytest.param("gpt2", False, marks=SLOW),
])  # fmt: skip
def test_whatever_peft_saves_along_with_lora_is_accepted(family, tied, tmp_path):
    for i, (name, config) in enumerate(lora_variants(family).items()):
        if name == "DoRA" and family == "gpt2":
            config.fan_in_fan_out = True
        model = trained(base(family, tied), config)
        expected = logits(model)
        for embeddings_too in (False, True):
            folder = tmp_path / f"{i}{embeddings_too}"
            save(model, folder, save_embedding_layers=embeddings_too)
            loaded = load_adapter(base(family, tied), folder)
            assert torch.equal(logits(loaded), expected), (name, embeddings_too)
            key = min(k for k in load_file(folder / "adapter_model.safetensors") if "lora" in k)
            with pytest.raises(DataError, match="are not in the file"):
                load_adapter(
                    base(family, tied),
                    rewritten(folder, lambda t, k=key: {n: v for n, v in t.items() if n != k}),
                )


@pytest.mark.parametrize("name", ["norms", "embeddings", "all biases"])
def test_a_part_of_the_base_that_was_trained_must_be_there(name, tmp_path):
    folder = save(trained(base("gpt2"), lora_variants("gpt2")[name]), tmp_path)
    keys = load_file(folder / "adapter_model.safetensors")
    key = min(k for k in keys if "lora_" not in k)
    rewritten(folder, lambda t: {k: v for k, v in t.items() if k != key})
    with pytest.raises(DataError, match="1 of its tensors") as caught:
        load_adapter(base("gpt2"), folder)
    assert key in str(caught.value)


def test_another_configuration_than_the_file_s(tmp_path):
    model = trained(base("llama"), type_config("LORA", "llama"))
    folder = save(model, tmp_path)
    path = folder / "adapter_config.json"
    whole = json.loads(path.read_text())
    fewer = {"target_modules": ["q_proj", "v_proj"]}
    more = {"target_modules": [*TARGETS["llama"], "o_proj"]}
    for change, words in (
        (fewer, "6 of the file's tensors reach nothing"),
        (more, "6 of its tensors are not in the file"),
        ({"use_dora": True}, "9 of its tensors are not in the file"),
        ({"modules_to_save": ["model.norm"]}, "model.norm.weight"),
        ({"layers_to_transform": [0, 1]}, "6 of the file's tensors reach nothing"),
    ):
        path.write_text(json.dumps({**whole, **change}))
        with pytest.raises(DataError, match=words):
            load_adapter(base("llama"), folder)


def test_tensors_of_a_smaller_model_and_of_another_shape(tmp_path):
    small = base("llama")
    small.model.layers = small.model.layers[:2]
    folder = save(trained(small, type_config("LORA", "llama")), tmp_path)
    with pytest.raises(DataError, match=r"6 of its tensors .*layers\.2\.mlp\.down_proj\.lora_A"):
        load_adapter(base("llama"), folder)
    folder = save(trained(base("llama"), type_config("LORA", "llama")), tmp_path)
    small = base("llama")
    small.model.layers = small.model.layers[:2]
    with pytest.raises(DataError, match=r"6 of the file's tensors .*layers\.2\.mlp\.down_proj"):
        load_adapter(small, folder)


def test_peft_s_own_loader_refuses_our_method_too(tmp_path):
    folder = save(trained(base("llama"), HyloradaConfig(position_bias_enabled=True)), tmp_path)
    with pytest.raises(DataError, match=r"1 of its tensors.*1 of the file's tensors"):
        PeftModel.from_pretrained(base("llama"), rewritten(folder, renamed("bias.b", "bias.c")))


def test_experts_saved_as_modules_of_their_own(tmp_path):
    """Before transformers 5 each expert was a module; peft reads such files, and so do we."""

    def mixtral():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(
            MixtralConfig(
                vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, num_local_experts=3,
                num_experts_per_tok=2,
            )
        ).eval()  # fmt: skip

    shapes = {"w1": (48, 32), "w2": (32, 48), "w3": (48, 32)}
    tensors = {}
    for layer in range(2):
        for expert in range(3):
            for name, (rows, columns) in shapes.items():
                path = f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}"
                tensors[f"base_model.model.{path}.lora_A.weight"] = torch.randn(4, columns)
                tensors[f"base_model.model.{path}.lora_B.weight"] = torch.randn(rows, 4)
    LoraConfig(r=4, target_modules=list(shapes), task_type="CAUSAL_LM").save_pretrained(tmp_path)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    loaded = load_adapter(mixtral(), tmp_path)
    experts = loaded.base_model.model.model.layers[1].mlp.experts
    with torch.no_grad():
        delta = experts.get_delta_weight("default")[2]  # of w2, of the last expert
    path = "base_model.model.model.layers.1.block_sparse_moe.experts.2.w2"
    by_hand = tensors[f"{path}.lora_B.weight"] @ tensors[f"{path}.lora_A.weight"]
    assert torch.allclose(delta, by_hand * 8 / 4, atol=1e-5)
    rewritten(tmp_path, lambda t: {k: v for k, v in t.items() if ".w2." not in k})
    with pytest.raises(DataError, match="4 of its tensors are not in the file"):
        load_adapter(mixtral(), tmp_path)


def test_nothing_is_said_twice(tmp_path):
    folder = save(trained(base("llama"), type_config("LORA", "llama")), tmp_path)
    rewritten(folder, renamed("lora_A", "lora_a"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError):
            load_adapter(base("llama"), folder)
