"""Checkpoints that survive a kill at any moment, and the export as a Hugging Face folder."""

from __future__ import annotations

import json
import os
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, GPT2LMHeadModel


def save(path: Path, state: dict[str, Any]) -> None:
    """Write beside, flush to disk, rename: the file at `path` is always a whole one."""
    beside = path.with_suffix(".part")
    with beside.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def load(path: Path) -> dict[str, Any] | None:
    """Return the saved state, or None where there is none."""
    return torch.load(path, weights_only=True) if path.exists() else None


def export(model: GPT2LMHeadModel, tokenizer_folder: Path, folder: Path) -> None:
    """Write fp16 weights, config and tokenizer; `folder` appears complete or not at all.

    fp16 is how the weights are stored; the config says float32, which is how they are to be used.
    """
    beside = folder.with_name(folder.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    half = GPT2LMHeadModel(model.config)
    half.load_state_dict(model.state_dict())
    half = half.half()
    half.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    half.save_pretrained(beside)
    config = json.loads((beside / "config.json").read_text()) | {"dtype": "float32"}
    (beside / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    shutil.copytree(tokenizer_folder, beside, dirs_exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    beside.replace(folder)


def refresh(source: Path, training_log: Path, target: Path) -> None:
    """Copy an export and the log into `target`, each file renamed into place, and their hashes."""
    target.mkdir(parents=True, exist_ok=True)
    for file in (*source.iterdir(), training_log):
        beside = target / f".{file.name}.part"
        shutil.copyfile(file, beside)
        beside.replace(target / file.name)
    sealed = sorted(file.name for file in (*source.iterdir(), training_log))
    lines = [f"{sha256((target / name).read_bytes()).hexdigest()}  {name}\n" for name in sealed]
    (target / "SHA256SUMS").write_text("".join(lines))
