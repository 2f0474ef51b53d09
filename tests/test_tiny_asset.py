"""The embedded base model: whole, small, loadable, and able to use its context."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

import hylorada
from hylorada.data.kinds.stdlib import PRETRAIN_HELDOUT, read_stdlib

FOLDER = Path(hylorada.__file__).parent / "assets" / "tiny"


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER, local_files_only=True).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)


@torch.no_grad()
def losses_of(model, ids_BL: np.ndarray, last: int) -> torch.Tensor:
    """Return the losses of the last tokens of each row, shape (B, last)."""
    ids = torch.from_numpy(ids_BL)
    mask = torch.ones_like(ids)
    logits_BLV = model(ids, attention_mask=mask, use_cache=False, logits_to_keep=last + 1).logits
    flat = functional.cross_entropy(
        logits_BLV[:, :-1].flatten(0, 1), ids[:, -last:].flatten(), reduction="none"
    )
    return flat.view(-1, last)


def test_every_file_is_the_one_that_was_made() -> None:
    listed = {}
    for line in (FOLDER / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        listed[name] = digest
    present = {path.name for path in FOLDER.iterdir()} - {"SHA256SUMS", "README.md"}
    assert present == set(listed)
    for name, digest in listed.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name
    assert listed["model.safetensors"] in (FOLDER / "README.md").read_text()


def test_sizes() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size <= 16_000_000
    assert (FOLDER / "training_log.jsonl").stat().st_size <= 300_000


def test_weights_are_stored_as_fp16_and_load_as_fp32(model) -> None:
    with safe_open(FOLDER / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    assert model.dtype == torch.float32


def test_config(model) -> None:
    config = model.config
    numbers = (config.vocab_size, config.n_positions, config.n_embd, config.n_layer, config.n_head)
    assert numbers == (8192, 1024, 256, 6, 8)
    assert config.attn_pdrop == config.embd_pdrop == config.resid_pdrop == 0.0
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.num_parameters() == 7_098_368


def test_tokenizer(tokenizer) -> None:
    assert len(tokenizer) == 8192
    assert tokenizer.eos_token == tokenizer.bos_token == tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.eos_token_id == 0
    text = "def café(x):\n\treturn '→' * 3  # naïve 日本\r\n    End.\x00"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert 0 not in ids
    assert max(ids) < 8192
    assert tokenizer("a<|endoftext|>b")["input_ids"][1] == 0


def test_the_log_ends_where_the_weights_were_taken() -> None:
    lines = [json.loads(line) for line in (FOLDER / "training_log.jsonl").open()]
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps)
    assert lines[-1]["event"] == "done"


@pytest.fixture(scope="module")
def heldout(tokenizer) -> np.ndarray:
    """Windows of 1024 tokens of the text that was held out, shape (8, 1024)."""
    text = "".join(document.text for document in read_stdlib(PRETRAIN_HELDOUT))
    ids = np.array(tokenizer(text[:200_000], verbose=False)["input_ids"])
    return ids[: 8 * 1024].reshape(8, 1024)


@pytest.mark.slow
def test_heldout_loss_falls_with_context(model, heldout: np.ndarray) -> None:
    # The same 64 last tokens of each window, with at least this much text before them.
    loss = {c: losses_of(model, heldout[:, -(c + 64) :], 64).mean().item() for c in (16, 128, 960)}
    assert loss[16] > loss[128] + 0.2
    assert loss[128] > loss[960]


def test_heldout_loss(model, heldout: np.ndarray) -> None:
    assert losses_of(model, heldout[:4], 512).mean().item() < 3.3


@pytest.mark.parametrize("distance", [128, 768])
def test_copies_a_repeated_random_segment(model, distance: int) -> None:
    ids = np.random.default_rng(0).integers(1, 8192, (4, 8 + distance + 64))
    ids[:, 8 + distance :] = ids[:, 8:72]
    first = losses_of(model, ids[:, :72], 63).mean().item()
    second = losses_of(model, ids, 63).mean().item()
    assert first > 8.0, "random tokens cannot be known"
    assert second < 2.0
