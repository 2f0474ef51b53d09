"""A model of transformers that says what it is told to, through its real `generate`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END = "<|end|>"


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, and an end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([END, *alphabet])}
    backend = Tokenizer(models.BPE(vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)


class Rigged(GPT2LMHeadModel):
    """Says `say(prompt)` byte by byte, then the end token.

    Where its next byte is not allowed, it takes the one after it.
    """

    def __init__(self, say: Callable[[str], str], window: int = 4096) -> None:
        tokenizer = byte_tokenizer()
        super().__init__(
            GPT2Config(
                vocab_size=len(tokenizer), n_positions=window, n_embd=4, n_layer=1, n_head=1,
                bos_token_id=0, eos_token_id=0,
            )
        )  # fmt: skip
        self.say, self.tokenizer = say, tokenizer
        self.prompts: list[list[int]] = []
        self._said: list[int] = []
        self._at = 0

    def forward(self, input_ids, past_key_values=None, **rest):
        output = super().forward(input_ids=input_ids, past_key_values=past_key_values, **rest)
        if input_ids.shape[1] > 1:  # a new prompt: the cache was empty
            self.prompts.append(input_ids[0].tolist())
            text = self.tokenizer.decode(input_ids[0])
            self._said = [*self.tokenizer.encode(self.say(text)), 0, 0]
            self._at = 0
        wanted, after = self._said[self._at : self._at + 2]
        self._at += 1
        output.logits = torch.full_like(output.logits, -100.0)
        output.logits[:, -1, after] = 1.0
        output.logits[:, -1, wanted] = 2.0
        return output
