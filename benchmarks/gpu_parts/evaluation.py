"""Stage 2b, the end of it: what measuring costs, by batch, and ranking after a shared prompt."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from gpu_parts import arms
from gpu_parts.place import Place
from gpu_parts.rows import Cell, Found
from hylorada.evaluation.candidates import Prefix
from hylorada.evaluation.scoring import evaluation_mode, token_nll

WINDOWS = [f"windows/1k/{batch}" for batch in (1, 8, 32)] + ["windows/8k/1"]
RANKING = ["ranking/4k", "ranking/8k"]


def cells(place: Place) -> list[Cell]:
    """In this order."""
    return [
        Cell("2b", WINDOWS, 8, lambda keys: windows(place, keys)),
        Cell("2b", RANKING, 12, lambda keys: ranking(place, keys)),
    ]


def windows(place: Place, keys: list[str]) -> Found:
    """Milliseconds per thousand tokens, SmolLM2 with every component."""
    made = arms.adapted(place, "hyl", "smollm2", place.tokens("8k"))
    for key in keys:
        _, length, batch = key.split("/")
        n, rows = place.tokens(length), int(batch)
        ids = place.ids("smollm2", n, rows=rows)
        with evaluation_mode(made, torch.bfloat16):
            took = place.milliseconds(partial(token_nll, made, ids))
        yield key, {"ms": took, "ms_per_1k": took / (n * rows) * 1000, "rows": rows, "tokens": n}


def ranking(place: Place, keys: list[str]) -> Found:
    """75 candidates of 24 tokens after one prompt, beside reading the prompt."""
    count, width = (4, 3) if place.tiny else (75, 24)
    for key in keys:
        n = place.tokens(key.partition("/")[2])
        made: Any = arms.adapted(place, "hyl", "smollm2", n + width)
        prompts = [place.ids("smollm2", n - i, seed=i)[0].tolist() for i in range(3)]
        asked = [place.ids("smollm2", width, seed=i)[0].tolist() for i in range(count)]
        with evaluation_mode(made, torch.bfloat16):
            forward, whole = [], []
            for prompt in prompts:  # each of another length, as prompts are
                ids = torch.tensor([prompt], device=place.device)
                forward.append(place.once(partial(token_nll, made, ids))[1])
                whole.append(place.once(partial(_ranked, made, prompt, asked))[1])
        yield key, {
            "first_ms": whole[0], "ms": min(whole), "forward_ms": min(forward),
            "ratio": min(whole) / min(forward), "candidates": count,
        }  # fmt: skip


def _ranked(made: Any, prompt: list[int], asked: list[list[int]]) -> Any:
    return Prefix(made, prompt).log_likelihoods(asked)
