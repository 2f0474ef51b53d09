"""Bases and texts that are not here, by their published sizes (`dry_run=elsewhere`).

Of a base its architecture, of a text its tokens and documents: enough to count steps, operations
and what trains, on a machine without hub and weights. A text has documents of exponentially
distributed lengths, of whose ends no block is made, as of those of a real one; the tokenizer is
that of the embedded base. Nothing of it is ever trained on or measured.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import GPT2Config, LlamaConfig

from hylorada.architecture import anatomy
from hylorada.config import DatasetConfig, ModelConfig, RunConfig
from hylorada.data.readers import official_words
from hylorada.data.token_corpus import TokenCorpus, TokenDocument
from hylorada.errors import DataError
from hylorada.evaluation.measurement import asked_for
from hylorada.loading.backbone import Blueprint, open_base
from hylorada.planning.text import Text
from hylorada.process.signals import Stop
from hylorada.runner.preparation import Prepared, Sources
from hylorada.runner.texts import training_blocks, validation_asked

# The config.json of each, as far as sizes follow from it.
_BASES: dict[str, Any] = {
    "openai-community/gpt2": lambda: GPT2Config(),
    "openai-community/gpt2-medium": lambda: GPT2Config(n_embd=1024, n_layer=24, n_head=16),
    "HuggingFaceTB/SmolLM2-135M": lambda: LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=49152, max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
}  # fmt: skip
# (tokens of GPT-2's tokenizer, documents) by split. Articles and books are as their authors count
# them (Merity et al., arXiv 1609.07843; Rae et al., arXiv 1911.05507); tokens are round figures,
# not counted here: a plan from them is labelled as assumed.
_HELD_OUT = {"validation": (247_000, 60), "test": (283_000, 60)}
_TEXTS = {
    ("Salesforce/wikitext", "wikitext-2-raw-v1"): {"train": (2_390_000, 600), **_HELD_OUT},
    ("Salesforce/wikitext", "wikitext-103-raw-v1"): {"train": (118_000_000, 28_475), **_HELD_OUT},
    ("emozilla/pg19", ""): {
        "train": (3_000_000_000, 28_602), "validation": (4_500_000, 50), "test": (10_500_000, 100),
    },
}  # fmt: skip
_PARAGRAPH = 100  # tokens


def published_base(settings: ModelConfig) -> Blueprint | None:
    """A base by its published architecture; None of one whose architecture is not known here."""
    make = _BASES.get(settings.path)
    if make is None:
        return None
    embedded = open_base(ModelConfig())
    return Blueprint(settings.path, "hub", make(), embedded.tokenizer, {})


def is_published(dataset: DatasetConfig) -> bool:
    """Whether the size of a text is known here."""
    return not dataset.path and (dataset.hub_id, dataset.hub_config) in _TEXTS


def published_text(config: RunConfig, opened: Blueprint) -> Text:
    """What a run would read, as far as its size goes.

    Args:
        config: the run's settings; their data set is one of which `is_published` holds.
        opened: the base.

    Raises:
        HyloradaError: no block of the run's length fits, or nothing can be asked at it.
    """
    started, dataset = time.perf_counter(), config.dataset
    trained = anatomy.trained_length(opened.config)
    sources = _Sources(config, opened.tokenizer, trained, Stop())
    text = sources.text()
    prepared = Prepared(config.eval, sources.window, text, opened.tokenizer, [])
    unread = []
    for measurement in asked_for(config.eval):
        try:
            prepared.parts.append(prepared.part(measurement, measurement.prepare(sources)))
        except DataError:
            unread.append(measurement.title)
    blocks = None
    if config.method.trains:
        blocks = training_blocks(
            config, opened.tokenizer, trained, lambda: _Corpus(dataset, "train")
        )
    validation = validation_asked(config, lambda split: _Corpus(dataset, split))
    seconds = time.perf_counter() - started
    return Text(prepared, blocks, validation, trained, seconds, unread, published=True)


class _Sources(Sources):
    """The sizes of what a measurement reads."""

    def text(self, unit: str = "documents") -> TokenCorpus:
        return _Corpus(self.config.dataset, self.config.eval.perplexity.split, unit)

    def longbench(self, tasks: Sequence[str]) -> list[dict[str, Any]]:
        raise DataError("LongBench's questions are not here")


class _Corpus(TokenCorpus):
    """A split of a published size; all of its tokens are 0, and take no memory."""

    def __init__(self, dataset: DatasetConfig, split: str, unit: str = "documents") -> None:
        total, documents = _TEXTS[dataset.hub_id, dataset.hub_config][split]
        if dataset.max_documents:
            part = min(1.0, dataset.max_documents / documents)
            total, documents = round(part * total), round(part * documents)
        count = documents if unit == "documents" else max(1, total // _PARAGRAPH)
        self.label = f"{dataset.name} {split}, published size"
        self.official_words = official_words(dataset, split, documents)
        self.sha256 = hashlib.sha256(self.label.encode()).hexdigest()
        # The quantiles of the exponential distribution of this mean.
        sizes = -np.log1p(-(np.arange(count) + 0.5) / count) * (total / count)
        self.ends = np.cumsum(np.maximum(sizes, 1).astype(np.int64))
        self.tokens = np.broadcast_to(np.zeros((), np.uint16), (int(self.ends[-1]),))
        self._words = self.official_words or round(total / 1.2)

    def _document(self, i: int) -> TokenDocument:
        start, end = int(self.ends[i - 1]) if i else 0, int(self.ends[i])
        words = round(self._words * (end - start) / len(self.tokens))
        return TokenDocument(
            f"document {i}", start, end, words, 4 * (end - start), self.tokens[start:end]
        )
