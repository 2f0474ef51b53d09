import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers.architectures import make_zoo_model
from helpers.families import make_model
from helpers.tiny_runs import make_model_folder

from hylorada.architecture import anatomy
from hylorada.config import ModelConfig
from hylorada.errors import ConfigError, DataError
from hylorada.loading import backbone
from hylorada.loading.backbone import load_backbone

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model_folder(tmp_path_factory.mktemp("model"))


def load(path, **settings):
    return load_backbone(ModelConfig("m", str(path), **settings), CPU)


def test_a_local_folder_loads_frozen_in_float32_without_dropout(folder):
    loaded = load(folder)
    model = loaded.model
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training
    assert model.config._attn_implementation == "sdpa"
    dropouts = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    assert dropouts
    assert set(dropouts) == {0.0}
    ids = loaded.tokenizer("abc", return_tensors="pt").input_ids
    model.train()
    assert torch.equal(model(ids).logits, model.eval()(ids).logits)


def test_the_hash_names_the_weights_and_not_the_folder(folder, tmp_path):
    model = load(folder).model
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    load(folder).tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert load(tmp_path).sha256 == load(folder).sha256
    with torch.no_grad():
        model.transformer.wte.weight[0, 0] += 1
    model.save_pretrained(tmp_path)
    assert load(tmp_path).sha256 != load(folder).sha256


def test_the_hash_of_the_settings_sees_what_acts_and_not_where_they_came_from(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    settings = json.loads((copy / "config.json").read_text())
    settings |= {"transformers_version": "4.0.0", "_name_or_path": "x", "architectures": None}
    (copy / "config.json").write_text(json.dumps(settings))
    assert load(copy).config_sha256 == load(folder).config_sha256
    (copy / "config.json").write_text(json.dumps(settings | {"layer_norm_epsilon": 0.1}))
    assert load(copy).sha256 == load(folder).sha256
    assert load(copy).config_sha256 != load(folder).config_sha256


def test_the_embedded_model_loads_without_a_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loaded = load("embedded")
    assert anatomy.trained_length(loaded.model.config) == 1024
    assert next(loaded.model.parameters()).dtype == torch.float32
    text = "def f(x):\n    return x\n"
    assert loaded.tokenizer.decode(loaded.tokenizer(text).input_ids) == text


def test_a_missing_embedded_model_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(backbone, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    with pytest.raises(DataError, match="reinstall hylorada"):
        load("embedded")


@pytest.mark.parametrize("path", ["./absent", "/absent/folder", "~/absent", "a/b/c"])
def test_a_missing_folder_is_not_looked_up_on_the_hub(path):
    with pytest.raises(DataError, match=r"no such folder.*model=tiny"):
        load(path)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(DataError, match=r"no config\.json"):
        load(tmp_path)


def test_an_unreachable_hub_is_one_line(monkeypatch):
    """What transformers raises when every attempt is refused; the attempts themselves take 24 s."""
    failure = OSError("We couldn't connect to 'https://huggingface.co' ...\nmore lines")
    failure.__cause__ = type("ConnectError", (Exception,), {})("[Errno 111] Connection refused")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(backbone, "check_model", lambda *_: None)
    monkeypatch.setattr(backbone.AutoConfig, "from_pretrained", raiser(failure))
    with pytest.raises(
        DataError, match=r"^model\.path=gpt2: the hub .*cannot be reached.*model=tiny"
    ):
        load("gpt2")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("GatedRepoError", "gated on the hub.*HF_TOKEN"),
        ("RepositoryNotFoundError", "no such model or revision"),
        ("OfflineModeIsEnabled", "not in the local hub cache and HF_HUB_OFFLINE is set"),
    ],
)
def test_what_the_hub_refuses_is_said(monkeypatch, kind, words):
    failure = OSError("many\nlines")
    failure.__cause__ = type(kind, (Exception,), {})("403")
    monkeypatch.setattr(backbone, "check_model", lambda *_: None)
    monkeypatch.setattr(backbone.AutoConfig, "from_pretrained", raiser(failure))
    with pytest.raises(DataError, match=words) as caught:
        load("someone/model", revision="r1")
    assert "\n" not in str(caught.value)
    assert "revision r1" in str(caught.value)


def raiser(error):
    def raise_it(*_, **__):
        raise error

    return raise_it


@pytest.mark.slow
def test_a_closed_port_in_place_of_the_hub_is_given_up(tmp_path):
    """In one line, and before transformers is asked, which would try for minutes."""
    import subprocess
    import sys

    code = (
        "import torch; from hylorada.config import ModelConfig\n"
        "from hylorada.loading import backbone\n"
        "backbone.AutoConfig.from_pretrained = None\n"
        "backbone.load_backbone(ModelConfig('m', 'gpt2'), torch.device('cpu'))"
    )
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert re.search("the hub .*cannot be reached", done.stderr.splitlines()[-1])


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def test_pickled_weights_are_refused_and_not_opened(tmp_path, folder):
    for path in folder.iterdir():
        if path.suffix == ".json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save(
        {"transformer.wte.weight": Payload(tmp_path / "ran")}, tmp_path / "pytorch_model.bin"
    )
    with pytest.raises(DataError, match=r"no safetensors weights; pickled weights are not loaded"):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_code_from_a_repository_is_refused_and_does_not_run(tmp_path):
    ran = tmp_path / "ran"
    (tmp_path / "code.py").write_text(f"from pathlib import Path\nPath({str(ran)!r}).touch()\n")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "code.C"}})
    )
    with pytest.raises(DataError, match="never run here"):
        load(tmp_path)
    assert not ran.exists()


def test_damaged_weights_name_the_model(tmp_path, folder):
    for path in folder.iterdir():
        data = path.read_bytes()
        (tmp_path / path.name).write_bytes(data[:1000] if path.suffix == ".safetensors" else data)
    with pytest.raises(DataError, match=r"cannot be loaded \(SafetensorError"):
        load(tmp_path)


def test_another_kind_of_model_is_a_configuration_error(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ConfigError, match="not a causal language model"):
        load(tmp_path)


def test_families_lose_their_dropout_whatever_they_call_it(tmp_path):
    model = make_model("gpt_neox")
    model.config.hidden_dropout = model.config.attention_dropout = 0.1
    model.save_pretrained(tmp_path)
    tokenizer = tmp_path / "t"
    make_model_folder(tokenizer)
    for path in tokenizer.glob("token*"):
        path.rename(tmp_path / path.name)
    loaded = load(tmp_path).model
    assert loaded.config.hidden_dropout == loaded.config.attention_dropout == 0.0


@pytest.mark.parametrize("family", ["gptj", "bloom", "gpt_neo"])
def test_an_architecture_without_sdpa_gets_the_cure_uncut(family, tmp_path):
    make_model_folder(tmp_path)
    make_zoo_model(family).save_pretrained(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    assert str(caught.value) == (
        f"model.path={tmp_path}: transformers has no SDPA attention for this architecture; set "
        "model.attn_implementation=eager"
    )
    assert load(tmp_path, attn_implementation="eager").model.config.model_type == family
