"""Adapters that someone has written: measured as they are, or refused with the reason."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.families import tokens
from helpers.peft_types import NOT_ON_GPT2, TARGETS, base, peft_types, save, trained, type_config
from helpers.tiny_runs import make_config, make_model_folder, make_texts
from helpers.unreadable import no_permission
from peft import LoraConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from hylorada.architecture.logits import output_head
from hylorada.errors import ConfigError, DataError
from hylorada.evaluation.scoring import token_nll
from hylorada.loading.adapter import attach_adapter, read_settings
from hylorada.loading.backbone import load_backbone
from hylorada.runner.evaluate_adapter import evaluate_adapter

pytestmark = pytest.mark.filterwarnings("ignore")  # peft comments on every odd configuration


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    make_model_folder(folder / "model")
    make_texts(folder / "texts")
    return folder


def refused(adapter, root, match):
    """One line, and nothing was measured for it."""
    with pytest.raises(ConfigError, match=match) as caught:
        evaluate_adapter(adapter, make_config(root))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert not (root / "outputs" / ".cache").exists()


def of_gpt2(root, config, folder):
    model = load_backbone(make_config(root).model, torch.device("cpu")).model
    return save(trained(model, config), folder)


def test_activated_lora_is_refused(root, tmp_path):
    config = LoraConfig(
        r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", alora_invocation_tokens=[5, 6]
    )
    folder = of_gpt2(root, config, tmp_path)
    refused(folder, root, "activated LoRA is switched on by its invocation tokens")
    base_model = load_backbone(make_config(root).model, torch.device("cpu")).model
    with pytest.raises(ConfigError, match="activated LoRA"):  # as in a run's directory
        attach_adapter(base_model, folder, "tiny")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_files_that_cannot_be_read_are_told(tmp_path, name):
    for each in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / each).touch()
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"no {name}; restore it"):  # as in a run's directory
        attach_adapter(torch.nn.Module(), tmp_path, "tiny")
    (tmp_path / name).touch()
    no_permission(tmp_path / name)
    for read in (read_settings, lambda it: attach_adapter(torch.nn.Module(), it, "tiny")):
        with pytest.raises(DataError, match=f"{name}: cannot be read .Permission denied.; make it"):
            read(tmp_path)


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "CPT", "CARTRIDGE"])
def test_prompt_learning_is_refused(root, tmp_path, kind):
    settings = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 2}
    if kind == "CPT":
        settings = {"task_type": "CAUSAL_LM", "cpt_token_ids": [1, 2]}
    config = PEFT_TYPE_TO_CONFIG_MAPPING[kind](**settings)
    refused(of_gpt2(root, config, tmp_path), root, f"{kind} puts virtual tokens before the text")


def test_mixtures_that_the_wrapper_computes_are_refused(root, tmp_path):
    lora = LoraConfig(r=2, target_modules=TARGETS["llama"], task_type="CAUSAL_LM")
    parts = {str(i): str(save(trained(base("llama"), lora), tmp_path / str(i))) for i in (0, 1)}
    model = base("llama")
    model.config.use_cache = False
    config = PEFT_TYPE_TO_CONFIG_MAPPING["XLORA"](
        task_type="CAUSAL_LM", hidden_size=32, xlora_depth=1, adapters=parts
    )
    mixture = save(get_peft_model(model, config), tmp_path / "mixture")
    refused(mixture, root, "XLORA mixes adapters by a classifier in peft's wrapper")
    poly = save(trained(base("llama"), type_config("POLY", "llama")), tmp_path / "poly")
    refused(poly, root, "POLY needs to be told the task")


def test_a_part_in_the_wrapper_that_no_list_names_is_found_by_running_it(tmp_path):
    """ShadowPEFT runs a second network before the model, and leaves its states in the layers."""
    config = PEFT_TYPE_TO_CONFIG_MAPPING["SHADOW"](
        task_type="CAUSAL_LM", shadow_num_hidden_layers=1
    )
    folder = save(trained(base("llama"), config), tmp_path)
    model = base("llama")
    output_head(model)  # as when a base is loaded
    with pytest.raises(ConfigError, match="a part of SHADOW lives in peft's wrapper"):
        attach_adapter(model, folder, "llama")


@pytest.mark.parametrize("family", [pytest.param("llama", marks=pytest.mark.slow), "gpt2"])
def test_all_that_is_accepted_is_measured_as_the_wrapper_computes_it(family, tmp_path):
    """Of every method of peft: the loss of the wrapper's logits against the measured loss."""
    ids = tokens(2, 20)
    for name in peft_types():
        if name == "POLY" or (family == "gpt2" and name in NOT_ON_GPT2):
            continue
        folder = save(trained(base(family), type_config(name, family)), tmp_path / name)
        model = attach_adapter(base(family), folder, family)
        with torch.no_grad():
            logits = model(ids).logits[:, :-1]
            expected = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()
            measured = token_nll(model, ids).sum().item() / (2 * 19)
        assert measured == pytest.approx(expected, rel=1e-5), name


def test_a_configuration_that_is_none_is_one_line(tmp_path):
    folder = save(trained(base("llama"), type_config("LORA", "llama")), tmp_path)
    path = folder / "adapter_config.json"
    whole = path.read_text()
    for text, match in (
        (whole[:-9], "cannot be read"),
        ("[]", "cannot be read"),
        ('{"r": 2}', "names 'peft_type'|cannot be read"),
        (whole.replace('"LORA"', '"NEXT"'), "names 'NEXT', which is no method"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=match) as caught:
            read_settings(folder)
        assert "\n" not in str(caught.value)


def test_other_settings_of_the_same_weights_are_another_adapter(root, tmp_path):
    lora = LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    folder = of_gpt2(root, lora, tmp_path / "lora")
    config = {"eval__perplexity__conventions": ["blocks"], "eval__perplexity__max_blocks": 1}
    first = evaluate_adapter(folder, make_config(root, **config))
    path = folder / "adapter_config.json"
    path.write_text(path.read_text().replace('"lora_alpha": 8', '"lora_alpha": 80'))
    second = evaluate_adapter(folder, make_config(root, **config))
    assert first["name"] != second["name"]
    assert first["metrics"] != second["metrics"]
