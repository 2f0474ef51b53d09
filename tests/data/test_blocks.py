from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.families import make_model

from hylorada.config import DatasetConfig
from hylorada.data import token_corpus
from hylorada.data.blocks import Blocks
from hylorada.data.documents import Document
from hylorada.data.token_corpus import load_token_corpus
from hylorada.errors import ConfigError, DataError


@pytest.fixture
def corpus_of(tmp_path, tokenizer, monkeypatch):
    """A corpus whose documents have the given numbers of tokens."""

    def make(*sizes: int):
        rng = np.random.default_rng(0)
        documents = [
            Document(f"d{i}", "".join(chr(97 + x) for x in rng.integers(0, 26, size)))
            for i, size in enumerate(sizes)
        ]
        monkeypatch.setattr(
            token_corpus, "read_documents", lambda dataset, split, unit: iter(documents)
        )
        corpus = load_token_corpus(DatasetConfig(cache_dir=str(tmp_path)), "train", tokenizer)
        assert [d.end - d.start for d in corpus.documents] == list(sizes)
        return corpus

    return make


def naive_documents(corpus, length):
    for document in corpus.documents:
        ids = document.tokens.tolist()
        while len(ids) >= length:
            yield ids[:length]
            ids = ids[length:]


def naive_reset(corpus, length):
    """(input ids, labels, positions) token by token."""
    rows = []
    for document in corpus.documents:
        for place, token in enumerate(document.tokens.tolist()):
            rows.append((token, place))
    for start in range(0, len(rows) - length + 1, length):
        ids, labels, positions, position = [], [], [], 0
        for i, (token, place) in enumerate(rows[start : start + length]):
            new = place == 0
            position = 0 if new or i == 0 else position + 1
            ids.append(token)
            labels.append(-100 if new and i > 0 else token)
            positions.append(position)
        yield ids, labels, positions


SIZES = [(7, 40, 8, 3, 16, 33), (8,), (1, 0, 0, 9, 0, 24, 0), (3, 3, 3, 3, 3), (100, 0)]


@pytest.mark.parametrize("sizes", SIZES)
def test_blocks_stay_within_a_document(corpus_of, sizes):
    corpus = corpus_of(*sizes)
    expected = list(naive_documents(corpus, 8))
    if not expected:
        with pytest.raises(DataError):
            Blocks(corpus, 8)
        return
    blocks = Blocks(corpus, 8)
    assert [blocks[i]["input_ids"].tolist() for i in range(len(blocks))] == expected
    for i in range(len(blocks)):
        assert set(blocks[i]) == {"input_ids", "labels"}
        assert blocks[i]["input_ids"].dtype == torch.int64
        assert torch.equal(blocks[i]["labels"], blocks[i]["input_ids"])
    assert blocks.left_out_tokens == sum(sizes) - 8 * len(expected)
    assert blocks.left_out_documents == sum(n < 8 for n in sizes)
    with pytest.raises(IndexError):
        blocks[len(blocks)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("length", [5, 8])
def test_reset_restarts_positions_and_ignores_crossings(corpus_of, sizes, length):
    corpus = corpus_of(*sizes)
    blocks = Blocks(corpus, length, "reset")
    expected = list(naive_reset(corpus, length))
    got = [
        tuple(blocks[i][k].tolist() for k in ("input_ids", "labels", "position_ids"))
        for i in range(len(blocks))
    ]
    assert got == expected
    assert blocks.left_out_tokens == sum(sizes) % length


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_packed_documents_score_as_if_alone(corpus_of, family):
    """The model's own packed path, on a reset block, gives each document's own logits."""
    corpus = corpus_of(7, 12, 5, 8)
    block = Blocks(corpus, 32, "reset")[0]
    ids = block["input_ids"] % 97
    model = make_model(family)
    with torch.no_grad():
        packed = model(ids[None], position_ids=block["position_ids"][None], use_cache=False).logits[
            0
        ]
        alone = [
            model(ids[d.start : d.end][None], use_cache=False).logits[0] for d in corpus.documents
        ]
        crossing = model(ids[None], use_cache=False).logits[0]
    # fp32; the two attend in different shapes, so sums are ordered differently.
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-5, rtol=1e-5)
    assert (crossing - packed).abs().max() > 1e-2  # the test can tell


def test_too_few_tokens_gives_the_numbers(corpus_of):
    with pytest.raises(DataError) as caught:
        Blocks(corpus_of(30, 20), 40)
    message = str(caught.value)
    for part in ("40 tokens", "50 tokens in 2 documents", "longest 30", "packing=reset"):
        assert part in message
    with pytest.raises(DataError, match="at most 50, or more text"):
        Blocks(corpus_of(30, 20), 51, "reset")


@pytest.mark.parametrize(("length", "packing"), [(8, "pad"), (1, "documents"), (0, "reset")])
def test_settings_that_cannot_be_are_refused(corpus_of, length, packing):
    with pytest.raises(ConfigError):
        Blocks(corpus_of(30), length, packing)


def test_standard_library_gives_blocks_at_4k(tmp_path, tokenizer):
    """The embedded corpus, end to end: real text, no network."""
    corpora = {
        n: load_token_corpus(
            DatasetConfig(cache_dir=str(tmp_path), max_documents=n), "validation", tokenizer
        )
        for n in (2, 12)
    }
    few, corpus = corpora[2], corpora[12]
    assert [len(c.documents) for c in (few, corpus)] == [2, 12]
    assert [d.name for d in few.documents] == [d.name for d in corpus.documents[:2]]
    assert few.sha256 != corpus.sha256
    assert corpus.total_tokens == sum(d.bytes for d in corpus.documents)  # one token per byte here
    blocks = Blocks(corpus, 4096)
    assert len(blocks) * 4096 + blocks.left_out_tokens == corpus.total_tokens
    assert "import" in tokenizer.decode(blocks[0]["input_ids"])
