"""A slow tokenizer in ten lines, for processes that should not import transformers."""

from __future__ import annotations


class PlainTokenizer:
    """One token per UTF-8 byte."""

    special_tokens_map: dict[str, str] = {}  # noqa: RUF012 - as transformers has it

    def __len__(self):
        return 256

    def __call__(self, texts, **kwargs):
        return {"input_ids": [list(text.encode()) for text in texts]}

    def get_vocab(self):
        return {chr(i): i for i in range(256)}
