"""The README's Python, run as it stands: a folder of the hub's name stands in for the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.markdown_files import ROOT, code
from helpers.tiny_runs import make_config, make_model_folder, make_texts
from peft import PeftModel
from transformers import GPT2Config, GPT2LMHeadModel

from hylorada.runner.run import run

SNIPPETS = [piece for piece in code(ROOT / "README.md") if piece.language == "python"]
# Names that the README leaves to the reader, as folders that are really there.
BASE, RUN = "openai-community/gpt2", "outputs/demo_4k/hylorada-4k-..."


def test_the_snippets_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    make_model_folder(tmp_path / BASE)
    torch.manual_seed(0)
    shape = GPT2Config(
        vocab_size=257, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(shape).save_pretrained(tmp_path / BASE)
    make_model_folder(tmp_path / "model")
    make_texts(tmp_path / "texts")
    config = make_config(
        tmp_path, train__max_steps=1, eval__perplexity__max_blocks=1, integrity__enabled=False
    )
    run(config, tmp_path / RUN)

    text = "\n".join(piece.text for piece in SNIPPETS)
    for name in (BASE, RUN):
        assert f'"{name}"' in text
    names: dict[str, Any] = {}
    for piece in SNIPPETS:
        exec(compile(piece.text, f"README.md:{piece.line}", "exec"), names)

    assert names["report"].ok, names["report"].to_dict()
    assert names["config"].s2_attn_enabled  # the rule, at the 4,096 tokens that the snippet names
    assert names["base"].config.n_positions == 4096
    assert isinstance(names["model"], PeftModel)
    with torch.no_grad():
        logits = names["model"](torch.arange(1, 40)[None]).logits
    assert logits.shape == (1, 39, 257)
    assert logits.isfinite().all()
