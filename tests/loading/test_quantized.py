"""4-bit bases on a machine without a GPU: where they are refused, and by what a base is known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers.families import make_model
from helpers.tiny_runs import make_config, make_model_folder, make_texts
from safetensors.torch import load_file, save_file

from hylorada import config as configs
from hylorada.config import ModelConfig
from hylorada.errors import ConfigError, DataError
from hylorada.loading import quantized as module
from hylorada.loading.backbone import load_backbone, open_base, parameter_count
from hylorada.loading.quantized import files_sha256, quantizing, refuse_elsewhere
from hylorada.loading.weight_precision import weight_files
from hylorada.methods.integrity.probe import Probe
from hylorada.runner.preflight import Preflight
from hylorada.runner.run import run
from hylorada.settings.run import check_settings

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized")
    make_model_folder(folder / "model")
    make_texts(folder / "texts")
    return folder


def nf4(path):
    return ModelConfig("m", str(path), quantization="nf4")


def test_without_a_gpu_it_is_refused_before_weights_are_read(root, tmp_path):
    config = make_config(root, model__quantization="nf4", output_root=str(tmp_path), device="cpu")
    said = r"model.quantization=nf4: 4-bit layers are for CUDA .* on the cpu"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hylorada.runner.run.load_backbone", None)
        with pytest.raises(ConfigError, match=said):
            run(config)
    with pytest.raises(ConfigError, match=said):
        load_backbone(config.model, CPU)
    Preflight().check(config, here=False)  # a cell of a sweep that runs on another machine


def test_without_the_package_the_extra_is_named(root, monkeypatch):
    monkeypatch.setattr(module, "is_bitsandbytes_available", lambda least: False)
    with pytest.raises(ConfigError, match=r"pip install 'hylorada\[quantized\]'"):
        refuse_elsewhere(nf4(root / "model"), GPU)
    refuse_elsewhere(ModelConfig(), GPU)


def test_a_base_that_is_quantised_by_its_own_settings(root, tmp_path):
    model, tokenizer = make_model("llama"), open_base(ModelConfig("m", str(root / "model")))
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    model.config.save_pretrained(tmp_path)
    tokenizer.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"quantised already \(gptq\); set model.quantization"):
        open_base(nf4(tmp_path))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__dtype": "file"}, "does not keep the weights as they are in the file"),
        ({"method__lora__use_dora": True}, "method.lora.use_dora=true: computes from the weights"),
        ({"method__peft": {"peft_type": "IA3"}}, "method.peft: computes from the weights"),
    ],
)
def test_what_does_not_go_with_it(root, changes, said):
    if "method__peft" in changes:
        config = make_config(root, model__quantization="nf4")
        config.method = configs.MethodConfig(peft=changes["method__peft"])
        config.method.lora.enabled = False
    else:
        config = make_config(root, model__quantization="nf4", **changes)
    with pytest.raises(ConfigError, match=said):
        check_settings(config)


def test_no_gguf_file_is_quantised_again(root, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"")
    config = make_config(root, model__quantization="nf4")
    config.model.path = str(tmp_path / "model.gguf")
    with pytest.raises(ConfigError, match="a GGUF file has a quantisation of its own"):
        check_settings(config)


@pytest.mark.parametrize(
    ("precision", "computes"),
    [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)],
)
def test_it_computes_in_the_precision_of_the_run(monkeypatch, precision, computes):
    monkeypatch.setattr("hylorada.process.device.has_bf16", lambda device: True)
    assert quantizing(ModelConfig(), GPU, precision) == {}
    given = quantizing(nf4("x"), GPU, precision)
    scheme = given["quantization_config"]
    assert given["device_map"] == {"": GPU}
    assert (scheme.bnb_4bit_quant_type, scheme.bnb_4bit_use_double_quant) == ("nf4", True)
    assert scheme.bnb_4bit_compute_dtype == computes


def test_a_base_is_known_by_the_numbers_in_its_files(root, tmp_path):
    def known(folder, quantization="nf4"):
        opened = open_base(ModelConfig("m", str(folder)))
        files = weight_files(opened.source, opened.config, **opened.options)
        return files_sha256(files, quantization, "m")

    whole = known(root / "model")
    plain = load_backbone(ModelConfig("m", str(root / "model")), CPU)
    assert whole != known(root / "model", "none")
    plain.model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    plain.tokenizer.save_pretrained(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert known(tmp_path / "shards") == whole
    file = tmp_path / "one.safetensors"
    tensors = load_file(root / "model" / "model.safetensors")
    name = sorted(tensors)[0]
    for value, other in ((1.0, True), (torch.nan, None)):
        changed = {n: t.clone() for n, t in tensors.items()}
        changed[name].view(-1)[0] = value
        save_file(changed, file)
        if other:
            assert files_sha256([file], "nf4", "m") != whole
        else:
            with pytest.raises(DataError, match=rf"{name} in its weights has numbers that are not"):
                files_sha256([file], "nf4", "m")


def test_packed_layers_are_counted_and_their_precision_is_the_gates():
    """On a layer of the shape that bitsandbytes gives; that it loads so, tests/cuda asks."""
    model = make_model("llama")
    before = parameter_count(model)
    layer = model.model.layers[0].mlp.up_proj
    shape, layer.compute_dtype = layer.weight.shape, torch.bfloat16
    assert Probe(model, 50, 12, 0).dtype == torch.float32  # it is not packed
    packed = torch.zeros(shape.numel() // 2, 1, dtype=torch.uint8)
    layer.weight = torch.nn.Parameter(packed, requires_grad=False)
    layer.weight.quant_state = SimpleNamespace(shape=shape)
    assert parameter_count(model) == before
    assert Probe(model, 50, 12, 0).dtype == torch.bfloat16
