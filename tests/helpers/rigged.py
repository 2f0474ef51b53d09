"""Models whose behaviour on key-value prompts is known, and a tokenizer of single characters."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

VOCAB = 128  # ASCII


class Characters:
    """One token a character."""

    eos_token_id = None

    def __call__(self, text: str | list[str], **settings: bool) -> dict[str, list]:
        return {"input_ids": self.ids(text) if isinstance(text, str) else [*map(self.ids, text)]}

    def ids(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


class _Inner(nn.Module):
    """Sees the text so far and puts all its weight on the next character that it believes in."""

    def __init__(self, blind_before: float) -> None:
        super().__init__()
        self.blind_before = blind_before
        self.embed = nn.Embedding(VOCAB, 1)
        self.tokens_read = 0

    def forward(self, input_ids, past_key_values=None, use_cache=False):
        self.tokens_read += input_ids.numel()
        ids_B1T1 = input_ids[:, None, :, None].float()
        if past_key_values is not None:  # the cache holds the text itself
            ids_B1T1, _ = past_key_values.update(ids_B1T1, ids_B1T1, 0)
        ids_BT = ids_B1T1[:, 0, :, 0].long()
        new = input_ids.shape[1]
        h_BTV = torch.zeros(*input_ids.shape, VOCAB)
        for row, ids in enumerate(ids_BT.tolist()):
            for t in range(new):
                text = "".join(map(chr, ids[: len(ids) - new + t + 1]))
                following = self._next(text)
                if following:
                    h_BTV[row, t, ord(following)] = 50.0
        return SimpleNamespace(last_hidden_state=h_BTV, past_key_values=past_key_values)

    def _next(self, text: str) -> str | None:
        context, question, rest = text.partition('\n\nKey: "')
        key, question_end, answer = rest.partition('"\nCorresponding value:')
        if not question or not question_end:
            return None
        place = context.find(f'"{key}": ')
        if place < self.blind_before * len(context):
            return None
        wanted = " " + context[place + len(key) + 4 :].split("\n")[0].rstrip(",}")
        return wanted[len(answer)] if wanted.startswith(answer) and answer != wanted else "\n"


class Copier(nn.Module):
    """Always gives the value after the key, unless it lies in the part that it does not look at."""

    base_model_prefix = "model"

    def __init__(self, blind_before: float = 0.0) -> None:
        super().__init__()
        self.model = _Inner(blind_before)
        self.head = nn.Linear(VOCAB, VOCAB, bias=False)
        nn.init.eye_(self.head.weight)
        self.config = SimpleNamespace()

    def forward(self, input_ids, use_cache=False):
        hidden = self.model(input_ids, use_cache=use_cache).last_hidden_state
        return SimpleNamespace(logits=self.head(hidden))

    def get_input_embeddings(self):
        return self.model.embed

    def get_output_embeddings(self):
        return self.head
