"""What the embedded base model can do: held-out loss, use of context, copying, key-value lookup.

Dimensions: B rows, L tokens of a row, V vocabulary.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional

from pretrain.corpus import HELDOUT_WINDOWS, WINDOW

CONTEXTS = (32, 64, 128, 256, 512, 992)
"""Tokens of context at which the loss of the same target tokens is compared."""

TARGETS = 32


@torch.no_grad()
def token_losses(model: nn.Module, ids_BL: torch.Tensor, batch: int = 8) -> torch.Tensor:
    """Return the loss of every token but the first, in nats, shape (B, L - 1)."""
    losses = []
    for rows in ids_BL.split(batch):
        logits_BLV = model(input_ids=rows, use_cache=False).logits[:, :-1].float()
        losses.append(functional.cross_entropy(logits_BLV.mT, rows[:, 1:], reduction="none"))
    return torch.cat(losses)


def heldout_windows(stream: np.ndarray, count: int = HELDOUT_WINDOWS) -> torch.Tensor:
    """Return up to `count` windows spread evenly over a stream, shape (count, 1024)."""
    available = len(stream) // WINDOW
    picked = np.linspace(0, available - 1, min(count, available)).astype(int)
    return torch.from_numpy(
        np.stack([stream[i * WINDOW : (i + 1) * WINDOW] for i in picked]).astype(np.int64)
    )


def loss_by_context(model: nn.Module, stream: np.ndarray) -> dict[str, float]:
    """Return the mean loss of the same tokens by the tokens of context they have at the least.

    The text is cut from the left, so that the targets (the last 32 tokens of windows of 1024, a
    window every 512 tokens) are identical and only the context differs.
    """
    starts = range(0, len(stream) - WINDOW + 1, WINDOW // 2)
    windows = np.stack([stream[start : start + WINDOW] for start in starts]).astype(np.int64)
    windows_BL = torch.from_numpy(windows)
    return {
        str(context): token_losses(model, windows_BL[:, -(context + TARGETS) :])[:, -TARGETS:]
        .mean()
        .item()
        for context in CONTEXTS
    }


def copying_loss(
    model: nn.Module, vocab_size: int, distance: int, rows: int = 32, size: int = 64, seed: int = 0
) -> tuple[float, float]:
    """Return the loss of a random segment at its first and at its second occurrence.

    Both means leave out the segment's first token, which nothing announces.

    Args:
        model: A causal language model.
        vocab_size: Random tokens are uniform over it, the special token 0 excepted.
        distance: Tokens from the start of the first occurrence to that of the second.
        rows: Number of sequences.
        size: Tokens of the segment.
        seed: Seed of the tokens.
    """
    rng = np.random.default_rng([seed, distance])
    ids = rng.integers(1, vocab_size, (rows, 8 + distance + size))
    ids[:, 8 + distance :] = ids[:, 8 : 8 + size]
    losses = token_losses(model, torch.from_numpy(ids))
    first = losses[:, 8 : 8 + size - 1]  # losses[i] is that of token i + 1
    second = losses[:, 8 + distance : 8 + distance + size - 1]
    return first.mean().item(), second.mean().item()


@torch.no_grad()
def key_value_accuracy(
    model: nn.Module, tokenizer: Tokenizer, pairs: int, rows: int = 64, seed: int = 0
) -> float:
    """Return the share of queries whose whole value is the greedy continuation.

    Keys and values are 8 hexadecimal digits in a JSON object; chance is nil.
    """
    rng = np.random.default_rng([seed, pairs])
    correct = 0
    for _ in range(rows):
        words = [f"{int(word):08x}" for word in rng.integers(0, 2**32, 2 * pairs)]
        table = dict(zip(words[:pairs], words[pairs:], strict=True))
        key = words[int(rng.integers(pairs))]
        body = json.dumps(table).replace('", "', '",\n "')
        prompt = f'JSON data:\n{body}\n\nKey: "{key}"\nCorresponding value: "'
        full = tokenizer.encode(f'{prompt}{table[key]}"')
        ids = torch.tensor([full.ids[-WINDOW:]])
        answer = sum(start >= len(prompt) for start, _ in full.offsets)
        predicted = model(input_ids=ids, use_cache=False).logits[0, -answer - 1 : -1].argmax(-1)
        correct += bool((predicted == ids[0, -answer:]).all())
    return correct / rows


def quick(
    model: nn.Module, streams: dict[str, np.ndarray], tokenizer: Tokenizer
) -> dict[str, float]:
    """Return the numbers that are logged while training, in a few seconds."""
    result = {}
    for name, stream in streams.items():
        result[f"heldout_{name}"] = token_losses(model, heldout_windows(stream, 24)).mean().item()
    for distance in (128, 512):
        first, second = copying_loss(model, tokenizer.get_vocab_size(), distance, rows=8)
        result[f"copy_first@{distance}"], result[f"copy_second@{distance}"] = first, second
    result["key_value@10"] = key_value_accuracy(model, tokenizer, pairs=10, rows=16)
    return result


def full(
    model: nn.Module, streams: dict[str, np.ndarray], tokenizer: Tokenizer
) -> dict[str, object]:
    """Return the numbers of the model card, in minutes."""
    result: dict[str, object] = {}
    for name, stream in streams.items():
        windows_BL = heldout_windows(stream)
        result[f"heldout_{name}"] = token_losses(model, windows_BL).mean().item()
        result[f"heldout_{name}_tokens"] = windows_BL.numel() - len(windows_BL)
        result[f"loss_by_context_{name}"] = loss_by_context(model, stream)
    for distance in (64, 128, 256, 512, 900):
        result[f"copying@{distance}"] = copying_loss(model, tokenizer.get_vocab_size(), distance)
    for pairs in (2, 5, 10, 20, 30):
        result[f"key_value@{pairs}"] = key_value_accuracy(model, tokenizer, pairs)
    return result
