"""Small real tokenizers of every kind in use, trained on the text of retrieval prompts.

They differ in what the boundary of two texts does: a space put before each text (SentencePiece),
merges across the boundary, a first or a last token of their own, whole words as tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from hylorada.evaluation.retrieval_prompts import generate_key_values, passkey_prompts

TINY = Path(__file__).parents[2] / "src" / "hylorada" / "assets" / "tiny"
QUIET: dict[str, Any] = {"show_progress": False}
BYTES = [f"<0x{n:02X}>" for n in range(256)]


@functools.cache
def _texts() -> list[str]:
    examples = [*generate_key_values(6, 20, seed=99), *generate_key_values(6, 20, form="hex")]
    prompts = [example.prompt(0.5, 0) for example in examples]
    prompts += passkey_prompts(3, 10, depths=(0.5,), choices=2)
    return [p.text + c + "\n\n" for p in prompts for c in p.candidates]


def _finished(backend: Tokenizer, template: str = "$A", **special: str) -> PreTrainedTokenizerFast:
    ids = [(token, backend.token_to_id(token)) for token in template.split() if token != "$A"]
    if ids:
        backend.post_processor = processors.TemplateProcessing(
            single=template, pair=f"{template} $B", special_tokens=ids
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def _trained(backend: Tokenizer, trainer: Any, texts: Sequence[str] = ()) -> Tokenizer:
    backend.train_from_iterator(texts or _texts(), trainer)
    return backend


def embedded() -> Any:
    """GPT-2's kind: byte-level BPE, words split by a pattern, nothing put around a text."""
    return AutoTokenizer.from_pretrained(TINY)


def llama2(metaspace: bool = False, template: str = "<s> $A") -> PreTrainedTokenizerFast:
    """SentencePiece's BPE: `▁` before each text, bytes for what has no token."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()  # pieces never reach across a space
    special = ["<unk>", "<s>", "</s>", *BYTES]
    _trained(backend, trainers.BpeTrainer(vocab_size=600, special_tokens=special, **QUIET))
    if metaspace:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:  # the legacy form
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return _finished(backend, template, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def prefixed() -> PreTrainedTokenizerFast:
    """Byte-level with a space put before each text, and one token for its begin and its end."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **QUIET,
    )  # fmt: skip
    return _finished(_trained(backend, trainer), "</s> $A </s>", bos_token="</s>", eos_token="</s>")


def llama3() -> PreTrainedTokenizerFast:
    """Byte-level, digits by threes, punctuation together with the line breaks after it; a BOS."""
    pattern = (
        r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **QUIET,
    )  # fmt: skip
    return _finished(_trained(backend, trainer), "<s> $A", bos_token="<s>", eos_token="</s>")


def spanning() -> PreTrainedTokenizerFast:
    """Byte-level merges that no pattern stops: `: "` becomes one token across the boundary."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["</s>"], max_token_length=12,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **QUIET,
    )  # fmt: skip
    return _finished(_trained(backend, trainer), "$A </s>", eos_token="</s>")


def unigram() -> PreTrainedTokenizerFast:
    """T5's kind: the most likely split of the whole text, `▁` before words, an EOS."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "</s>"],
        unk_token="<unk>",
        max_piece_length=8,
        **QUIET,
    )
    _trained(backend, trainer, _texts()[::20])
    return _finished(backend, "$A </s>", eos_token="</s>", unk_token="<unk>")


def wordpiece() -> PreTrainedTokenizerFast:
    """BERT's kind: lower case, words in pieces, [CLS] before and [SEP] after every text."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=600, special_tokens=["[UNK]", "[CLS]", "[SEP]"], **QUIET
    )
    return _finished(
        _trained(backend, trainer), "[CLS] $A [SEP]", cls_token="[CLS]", sep_token="[SEP]",
        unk_token="[UNK]",
    )  # fmt: skip


KINDS = {
    "embedded": embedded,
    "llama2": llama2,
    "llama2-metaspace": functools.partial(llama2, metaspace=True),
    "llama2-bos-eos": functools.partial(llama2, template="<s> $A </s>"),
    "prefixed": prefixed,
    "llama3": llama3,
    "spanning": spanning,
    "unigram": unigram,
    "wordpiece": wordpiece,
    "byt5": ByT5Tokenizer,  # in Python, one token a byte, an EOS
}


@functools.cache
def make_tokenizer(kind: str) -> Any:
    return KINDS[kind]()
