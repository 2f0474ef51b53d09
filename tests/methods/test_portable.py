"""What loads an adapter where this package is not there, and what it says where that cannot be."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from helpers.families import make_model, tokens
from helpers.shaken import shaken
from peft import LoraConfig, PeftConfig
from peft.tuners.lora import LoraModel
from safetensors.torch import load_file

from hylorada.architecture import anatomy
from hylorada.errors import ConfigError
from hylorada.methods import HyloradaConfig, HyloradaModel, adapt, load_adapter

IDS = tokens(2, 40)
KAIMING = {"use_rslora": False, "lora_init": "kaiming"}
# At most the 64 tokens that the models were trained on.
PLAIN = {
    "lora": KAIMING,
    "rslora": {},
    "dora": {**KAIMING, "use_dora": True},
    "hylorada": {"max_length": 64},
    "another rank": {"r": 3, "lora_alpha": 5, "lora_dropout": 0.1},
}
OWN = {
    "longer": {**KAIMING, "max_length": 65},
    "position bias": {"position_bias_enabled": True},
    "landmarks": {"landmark_enabled": True},
    "shifted attention": {"s2_attn_enabled": True, "s2_group_size": 16},
    "norms": {"train_norms": True},
}
# A process in which `import hylorada` fails, as it does where it is not installed.
ELSEWHERE = """
import sys, json, warnings
sys.modules["hylorada"] = None
warnings.simplefilter("error")
import torch
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
root, plain, own = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
ids = torch.tensor(json.loads(sys.argv[4]))
for family, name in plain:
    base = AutoModelForCausalLM.from_pretrained(f"{root}/{family}")
    model = PeftModel.from_pretrained(base, f"{root}/{family}-{name}")
    with torch.no_grad():
        save_file({"logits": model(ids).logits}, f"{root}/{family}-{name}/logits.safetensors")
for family, name in own:
    folder = f"{root}/{family}-{name}"
    base = AutoModelForCausalLM.from_pretrained(f"{root}/{family}")
    for call in (
        lambda: PeftModel.from_pretrained(base, folder),
        lambda: PeftConfig.from_pretrained(folder),
        lambda: AutoPeftModelForCausalLM.from_pretrained(folder),
        lambda: base.load_adapter(folder),
    ):
        try:
            call()
        except KeyError as error:
            assert "install it, and import hylorada before the adapter" in str(error), error
        else:
            raise AssertionError(f"{name}: loaded as something else")
print("done")
"""


def attached(family, fields):
    return shaken(adapt(make_model(family), HyloradaConfig(**fields), seed=0))


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.slow
def test_a_process_without_this_package(tmp_path):
    """LoRA alone gives the same logits there, bit for bit; the rest fails with a sentence."""
    plain, own, expected = [], [], {}
    for family in ("gpt2", "llama"):
        make_model(family).save_pretrained(tmp_path / family)
        for kinds, cases in ((plain, PLAIN), (own, OWN)):
            for name, fields in cases.items():
                model = attached(family, fields)
                expected[family, name] = logits(model)
                model.save_pretrained(str(tmp_path / f"{family}-{name}"))
                kinds.append((family, name))
    words = [str(tmp_path), *(json.dumps(x) for x in (plain, own, IDS.tolist()))]
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "done"
    for family, name in plain:
        found = load_file(tmp_path / f"{family}-{name}" / "logits.safetensors")["logits"]
        assert torch.equal(found, expected[family, name]), (family, name)


@pytest.mark.parametrize("name", [*PLAIN, *OWN])
def test_here_both_kinds_load(name, tmp_path):
    model = attached("llama", {**PLAIN, **OWN}[name])
    model.save_pretrained(str(tmp_path))
    loaded = load_adapter(make_model("llama"), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert type(loaded.base_model) is (LoraModel if name in PLAIN else HyloradaModel)


def test_the_file_of_a_plain_adapter_has_pefts_fields_alone(tmp_path):
    attached("gpt2", KAIMING).save_pretrained(str(tmp_path))
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    LoraConfig().save_pretrained(str(tmp_path / "peft"))
    assert set(settings) == set(json.loads((tmp_path / "peft/adapter_config.json").read_text()))
    assert settings["peft_type"] == "LORA"
    assert settings["target_modules"] == ["attn.c_attn", "attn.c_proj", "mlp.c_proj"]
    assert settings["fan_in_fan_out"] is True
    assert settings["init_lora_weights"] is True  # B starts at zero


def test_a_base_that_was_extended_by_hand_needs_this_package(tmp_path):
    from hylorada.methods.position_range import extend_range

    model = make_model("llama")
    extend_range(model, 128)
    adapt(model, HyloradaConfig(max_length=128)).save_pretrained(str(tmp_path))
    assert isinstance(PeftConfig.from_pretrained(str(tmp_path)), HyloradaConfig)


def test_a_config_that_has_seen_no_model_is_ours(tmp_path):
    HyloradaConfig().save_pretrained(str(tmp_path))
    assert isinstance(PeftConfig.from_pretrained(str(tmp_path)), HyloradaConfig)


def test_adapters_of_earlier_versions_load(tmp_path):
    model = attached("llama", OWN["landmarks"])
    model.save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "peft_type": "HYLORADA"}))
    assert torch.equal(logits(load_adapter(make_model("llama"), tmp_path)), logits(model))


def test_the_length_that_the_user_says_a_base_was_trained_on_goes_with_the_adapter(tmp_path):
    """It is where the extension counts from; the base's own config says another."""
    base = make_model("llama")  # 64 tokens, by its config
    base.config.hylorada_trained_length = 32
    model = shaken(adapt(base, HyloradaConfig(max_length=64), seed=0))
    model.save_pretrained(str(tmp_path))
    assert model.config.hylorada_range["from"] == 32
    plain = make_model("llama")
    before = logits(plain)
    loaded = load_adapter(plain, tmp_path)
    assert loaded.config.hylorada_range == model.config.hylorada_range
    assert torch.equal(logits(loaded), logits(model))
    unloaded = loaded.unload()
    assert torch.equal(logits(unloaded), before)
    assert anatomy.trained_length(unloaded.config) == 64
    other = make_model("llama")
    other.config.hylorada_trained_length = 16
    with pytest.raises(ConfigError, match=r"trained on 32 tokens, but model.trained_length is 16"):
        load_adapter(other, tmp_path)
