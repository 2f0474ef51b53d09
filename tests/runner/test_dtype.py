"""In which precision the frozen weights are kept, and that it stands beside every number."""

import copy
from pathlib import Path

import pytest
import torch
from helpers.tiny_runs import make_config, make_model_folder, make_texts
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from hylorada.config import ModelConfig
from hylorada.errors import ConfigError
from hylorada.loading.backbone import load_backbone
from hylorada.loading.finished_run import load_run
from hylorada.process import device as devices
from hylorada.process.device import choose_dtype
from hylorada.runner.run import run

CPU, GPU = torch.device("cpu"), torch.device("cuda")
FLOAT32, BF16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16


@pytest.fixture
def has_bf16(monkeypatch):
    """torch computes in bf16 on any processor, if slowly."""
    monkeypatch.setattr(devices, "has_bf16", lambda device: True)


@pytest.fixture
def folders(tmp_path):
    """The same numbers, which every precision has exactly, in files of several."""
    made = {}
    for name, change in {
        "bf16": lambda key, tensor: tensor.to(BF16),
        "fp32": lambda key, tensor: tensor.to(BF16).float(),
        "fp16": lambda key, tensor: tensor.to(BF16).to(FLOAT16),
        "mixed": lambda key, tensor: tensor.to(BF16) if "wte" in key else tensor.to(BF16).float(),
    }.items():
        made[name] = make_model_folder(tmp_path / name)
        file = made[name] / "model.safetensors"
        with torch.no_grad():
            sixtyfourths = {
                k: v.clamp(-1, 1).mul(64).round() / 64 for k, v in load_file(file).items()
            }
            tensors = {k: change(k, v) for k, v in sixtyfourths.items()}
        save_file({k: v.contiguous() for k, v in tensors.items()}, file, {"format": "pt"})
    return made


@pytest.mark.parametrize(
    ("wanted", "precision", "device", "stored", "kept"),
    [
        ("auto", "auto", CPU, BF16, FLOAT32),
        ("auto", "bf16", CPU, BF16, FLOAT32),
        ("auto", "auto", GPU, BF16, BF16),
        ("auto", "fp32", GPU, BF16, FLOAT32),
        ("auto", "auto", GPU, FLOAT16, FLOAT32),
        ("auto", "auto", GPU, FLOAT32, FLOAT32),
        ("float32", "auto", GPU, BF16, FLOAT32),
        ("file", "auto", CPU, BF16, BF16),
        ("file", "bf16", GPU, BF16, BF16),
        ("file", "fp32", CPU, FLOAT32, FLOAT32),
        ("file", "auto", CPU, FLOAT16, FLOAT32),
    ],
)
def test_which_precision_is_kept(has_bf16, wanted, precision, device, stored, kept):
    assert choose_dtype(wanted, precision, device, lambda: stored) == kept


def test_a_gpu_without_bf16_keeps_float32(monkeypatch):
    monkeypatch.setattr(devices, "has_bf16", lambda device: False)
    assert choose_dtype("auto", "auto", GPU, lambda: BF16) == FLOAT32
    with pytest.raises(ConfigError, match=r"this cpu has no bf16 arithmetic.*model\.dtype=float32"):
        choose_dtype("file", "auto", CPU, lambda: BF16)


def test_files_are_not_looked_at_where_float32_is_certain():
    def asked():
        raise AssertionError

    assert choose_dtype("auto", "auto", CPU, asked) == FLOAT32
    assert choose_dtype("float32", "auto", GPU, asked) == FLOAT32


@pytest.mark.parametrize(
    ("name", "kept"), [("bf16", BF16), ("fp32", FLOAT32), ("fp16", FLOAT32), ("mixed", FLOAT32)]
)
def test_the_same_numbers_have_one_identity_in_any_precision(has_bf16, folders, name, kept):
    as_filed = load_backbone(ModelConfig("m", str(folders[name]), dtype="file"), CPU)
    assert as_filed.dtype == kept
    assert {p.dtype for p in as_filed.model.parameters()} == {kept}
    plain = load_backbone(ModelConfig("m", str(folders[name])), CPU)
    assert {p.dtype for p in plain.model.parameters()} == {FLOAT32}
    assert as_filed.sha256 == plain.sha256
    assert as_filed.sha256 == load_backbone(ModelConfig("m", str(folders["fp32"])), CPU).sha256


def test_a_sharded_file_says_its_precision(has_bf16, folders, tmp_path):
    model = load_backbone(ModelConfig("m", str(folders["bf16"]), dtype="file"), CPU)
    model.model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    model.tokenizer.save_pretrained(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    again = load_backbone(ModelConfig("m", str(tmp_path / "shards"), dtype="file"), CPU)
    assert (again.dtype, again.sha256) == (BF16, model.sha256)


def test_bfloat16_weights_are_not_called_float32_arithmetic(has_bf16, folders, tmp_path):
    make_texts(tmp_path / "texts")
    config = make_config(
        tmp_path, model__path=str(folders["bf16"]), model__dtype="file", train__precision="fp32"
    )
    with pytest.raises(ConfigError, match=r"model\.dtype=file: .*train\.precision=fp32"):
        run(config, tmp_path / "run")


@pytest.mark.slow
def test_a_whole_run_on_bfloat16_weights(has_bf16, folders, tmp_path):
    """Every component; trained copies in float32; the record says what the numbers stand on."""
    make_texts(tmp_path / "texts")
    config = make_config(
        tmp_path, model__path=str(folders["bf16"]), model__dtype="file", train__max_steps=2,
        train__precision="auto",
    )  # fmt: skip
    record = run(copy.deepcopy(config), tmp_path / "run")
    assert record["provenance"]["base_model_dtype"] == "bfloat16"
    assert record["training"]["precision"] == "bf16"
    keys = [p.read_text() for p in (tmp_path / "outputs" / ".cache" / "base").glob("*.json")]
    assert keys
    assert all('"weights": "bfloat16"' in key for key in keys)
    saved = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {FLOAT32}
    # Read again where nothing computes in bf16: the same weights, in float32.
    config.model.dtype = "float32"
    other = run(config, tmp_path / "other")
    assert other["provenance"]["base_model_sha256"] == record["provenance"]["base_model_sha256"]
    assert other["provenance"]["base_model_dtype"] == "float32"
    ours, theirs = (r["base"]["extended"]["eval/ppl"]["value"] for r in (record, other))
    assert ours != theirs
    assert ours == pytest.approx(theirs, rel=0.01)
    model = load_run(tmp_path / "run", device="cpu")
    assert {p.dtype for p in model.parameters() if not p.requires_grad} >= {BF16}


def mapped(file):
    """Where a file's own pages lie in this process: ranges of addresses."""
    lines = [x.split(maxsplit=5) for x in Path("/proc/self/maps").read_text().splitlines()]
    spans = [x[0].split("-") for x in lines if x[-1] == str(file)]
    return [range(int(first, 16), int(last, 16)) for first, last in spans]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells")
@pytest.mark.parametrize(("dtype", "settings"), [(FLOAT32, "auto"), (BF16, "file")])
def test_weights_stay_mapped_where_they_lie(has_bf16, tmp_path, dtype, settings):
    """Loading what needs no conversion copies nothing."""
    make_model_folder(tmp_path)
    config = LlamaConfig(
        vocab_size=257, hidden_size=64, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).to(dtype).save_pretrained(tmp_path)
    loaded = load_backbone(ModelConfig("m", str(tmp_path), dtype=settings), CPU)
    assert loaded.dtype == dtype
    spans = mapped(tmp_path.resolve() / "model.safetensors")
    for name, p in loaded.model.named_parameters():
        assert any(p.data_ptr() in span for span in spans), name
