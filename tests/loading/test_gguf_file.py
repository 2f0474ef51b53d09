"""A GGUF file as the base model: its own numbers and tokens, or one line that says why not."""

import importlib.util
import logging

import pytest
import torch
from helpers.families import tokens
from helpers.gguf_files import QUANTS, make_llama, write_gguf
from helpers.tiny_runs import make_config, make_texts, result, run_here
from transformers import AutoModelForCausalLM

from hylorada.config import ModelConfig
from hylorada.errors import ConfigError, DataError
from hylorada.loading.backbone import load_backbone
from hylorada.loading.finished_run import load_run

CPU = torch.device("cpu")


def load(path, **settings):
    return load_backbone(ModelConfig("m", str(path), **settings), CPU)


def refused(path, kind=DataError):
    with pytest.raises(kind) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", QUANTS)
def test_every_number_is_the_files(tmp_path, kind, tied):
    file = tmp_path / "model.gguf"
    model = make_llama(tied)
    wrote = write_gguf(model, file, kind)
    loaded = load(file).model
    got = loaded.state_dict()
    assert all(torch.equal(got[name], tensor) for name, tensor in wrote.items())
    assert set(got) - set(wrote) == ({"lm_head.weight"} if tied else set())
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    model.load_state_dict(wrote, strict=not tied)
    assert torch.equal(loaded(tokens(1, 30)).logits, model(tokens(1, 30)).logits)


def test_its_tokenizer_is_in_the_file(tmp_path):
    file = tmp_path / "model.gguf"
    write_gguf(make_llama(), file)
    tokenizer = load(file).tokenizer
    text = "alpha beta\n\n  gamma "
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer("alpha").input_ids[:2] == [257, 258]  # "al", "ph"
    assert tokenizer.eos_token_id == 0


def test_text_is_cut_as_the_file_says(tmp_path):
    """SmolLM's digits are pieces of their own, so that two blanks before one are one piece."""
    pieces = {}
    for pre in ("gpt-2", "smollm"):
        write_gguf(make_llama(), tmp_path / f"{pre}.gguf", pre=pre)
        tokenizer = load(tmp_path / f"{pre}.gguf").tokenizer
        cut = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12")
        pieces[pre] = [piece for piece, _ in cut]
        assert tokenizer.decode(tokenizer("a  12\n3").input_ids) == "a  12\n3"
    assert pieces == {"gpt-2": ["a", "Ġ", "Ġ12"], "smollm": ["a", "ĠĠ", "1", "2"]}


def test_it_is_a_model_like_any_other(tmp_path):
    """It can be saved and read again, as a merged run must; its name does not identify it."""
    file = tmp_path / "model.gguf"
    write_gguf(make_llama(), file, "Q8_0")
    loaded = load(file)
    folder = tmp_path / "saved"
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    again = load(folder)
    assert (again.sha256, again.config_sha256) == (loaded.sha256, loaded.config_sha256)
    assert AutoModelForCausalLM.from_pretrained(folder).config.rope_parameters["rope_theta"] == 5000


def test_what_transformers_would_pass_over_is_refused(tmp_path):
    """Llama 3's scaling lies in a tensor; other scalings, windows and factors in keys."""
    file = tmp_path / "model.gguf"
    write_gguf(make_llama(), file, rope_freqs=torch.ones(4))
    assert "it scales RoPE (rope_freqs), which transformers does not read" in refused(file)
    for settings, words in (
        ({"rope_scaling_type": gguf_scaling("yarn")}, "llama.rope.scaling.type=yarn"),
        ({"sliding_window": 16}, "llama.attention.sliding_window=16"),
        ({"logit_scale": 0.5}, "llama.logit_scale=0.5"),
    ):
        write_gguf(make_llama(), file, settings=settings)
        assert words in refused(file)
    write_gguf(make_llama(), file, settings={"rope_scaling_type": gguf_scaling("none")})
    load(file)


def gguf_scaling(name):
    import gguf

    return gguf.RopeScalingType(name)


def test_left_over_tensors_are_one_warning(tmp_path, caplog, capfd):
    file = tmp_path / "model.gguf"
    write_gguf(make_llama(), file, extra_vector=torch.ones(5))
    with caplog.at_level(logging.WARNING):
        load(file)
    assert "it/s" not in "".join(capfd.readouterr())
    (record,) = (r for r in caplog.records if r.name.startswith("hylorada"))
    assert "the file holds 26,885 numbers in 21 tensors" in record.getMessage()
    assert record.getMessage().endswith("the LlamaForCausalLM made from it has 26,880")


def test_a_tensor_that_is_missing(tmp_path):
    file = tmp_path / "model.gguf"
    model = make_llama()
    del model.model.layers[1].mlp.up_proj.weight
    write_gguf(model, file)
    words = "lack 1 tensor of LlamaForCausalLM, first model.layers.1.mlp.up_proj.weight"
    assert words in refused(file)


def test_what_is_no_gguf_file(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"PK\x03\x04 not a model")
    assert "does not start as a GGUF file does" in refused(file)
    file.write_bytes(b"")
    assert "does not start as a GGUF file does" in refused(file)
    assert "No such file" in refused(tmp_path / "absent.gguf")
    other = tmp_path / "model.safetensors"
    other.write_bytes(b"x")
    assert "give the folder that save_pretrained wrote, or a GGUF file" in refused(other)


def test_an_architecture_that_transformers_does_not_read(tmp_path):
    file = tmp_path / "model.gguf"
    write_gguf(make_llama(), file, architecture="plamo")
    assert "of architecture plamo, which transformers does not read" in refused(file)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.999])
def test_a_file_cut_short(tmp_path, share):
    file = tmp_path / "model.gguf"
    write_gguf(make_llama(), file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    assert "model.gguf: " in refused(file)


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    file = tmp_path / "model.gguf"
    write_gguf(make_llama(), file)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "gguf" else find(name, *a)
    )
    assert "run: pip install 'hylorada[gguf]'" in refused(file, ConfigError)


@pytest.mark.slow
def test_a_run_on_it(tmp_path):
    write_gguf(make_llama(), tmp_path / "model.gguf", "Q8_0")
    make_texts(tmp_path / "texts")
    config = make_config(
        tmp_path, model__path=str(tmp_path / "model.gguf"), train__max_steps=2,
        method__train_embeddings="auto",
    )  # fmt: skip
    assert run_here(config, tmp_path / "run") == 0, (tmp_path / "run.err").read_text()
    record = result(tmp_path / "run")
    assert record["provenance"]["base_model_sha256"] == load(tmp_path / "model.gguf").sha256
    assert record["provenance"]["base_model_trained_length"] == 64
    model = load_run(tmp_path / "run", device="cpu")
    assert model(tokens(1, 90)).logits.isfinite().all()
