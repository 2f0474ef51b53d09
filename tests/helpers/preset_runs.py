"""Runs of a step or two on tiny models of two architectures, as the command line composes them."""

from __future__ import annotations

from pathlib import Path

from helpers.families import make_model
from helpers.tiny_runs import make_model_folder, make_texts
from hylorada import compose
from hylorada.command_line.overrides import rewrite
from hylorada.config import RunConfig

LENGTH = 96  # the models were "trained" at 64


def make_root(folder: Path) -> Path:
    """A GPT-2 and a Llama with a byte tokenizer, and a few texts."""
    gpt2 = make_model_folder(folder / "gpt2")
    make_texts(folder / "texts")
    llama = make_model("llama", 64)
    llama.resize_token_embeddings(257)
    llama.save_pretrained(folder / "llama")
    for file in gpt2.glob("tokenizer*"):
        (folder / "llama" / file.name).write_bytes(file.read_bytes())
    return folder


def composed(root: Path, family: str, *words: str, own: Path | None = None) -> RunConfig:
    """The settings of a short run on one of the models, for these words."""
    fixed = [
        f"model={root / family}", "dataset=local", f"dataset.path={root / 'texts'}",
        f"dataset.cache_dir={root / 'cache'}", f"length={LENGTH}", "track=off", "threads=1",
        f"output_root={root / 'outputs'}", "train.max_steps=2", "train.micro_batch_size=2",
        "train.gradient_accumulation_steps=1", "train.lr=1e-2", "eval=quick",
        "eval.lost_in_middle.enabled=false", "eval.perplexity.max_blocks=2",
        "method.s2_attn.group_size=32",
    ]  # fmt: skip
    search = [f"hydra.searchpath=[file://{own}]"] if own else []
    with compose.opened_hydra() as hydra:
        overrides = rewrite([*fixed, *words], own=own)
        return compose.to_typed(compose.compose(hydra, [*search, *overrides]))
