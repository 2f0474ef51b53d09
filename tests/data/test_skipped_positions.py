"""PoSE's rows: the same text, in order, at positions that skip once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.families import make_model

from hylorada.config import DatasetConfig
from hylorada.data import token_corpus
from hylorada.data.blocks import Blocks
from hylorada.data.documents import Document
from hylorada.data.skipped_positions import SkippedPositions
from hylorada.data.token_corpus import load_token_corpus


@pytest.fixture
def corpus(tmp_path, tokenizer, monkeypatch):
    rng = np.random.default_rng(0)
    text = "".join(chr(97 + x) for x in rng.integers(0, 26, 2000))
    monkeypatch.setattr(
        token_corpus, "read_documents", lambda dataset, split, unit: iter([Document("d", text)])
    )
    return load_token_corpus(DatasetConfig(cache_dir=str(tmp_path)), "train", tokenizer)


@pytest.mark.parametrize(("length", "window", "rows"), [(96, 32, 3), (97, 32, 4), (33, 32, 2)])
def test_the_text_is_that_of_the_block_and_positions_skip_once(corpus, length, window, rows):
    plain, short = Blocks(corpus, length), SkippedPositions(corpus, length, window, seed=0)
    width = length // rows
    assert (len(short), short.sha256) == (len(plain), plain.sha256)
    skipped, reached = 0, 0
    for i in range(len(short)):
        got, whole = short[i], plain[i]["input_ids"].tolist()
        assert got["input_ids"].tolist() == [
            whole[r * width : (r + 1) * width] for r in range(rows)
        ]
        assert torch.equal(got["labels"], got["input_ids"])
        assert (got["attention_mask"] == 1).all()
        for positions in got["position_ids"].tolist():
            assert positions[0] == 0
            steps = np.diff(positions)
            assert steps.min() == 1
            assert (steps > 1).sum() <= 1
            assert positions[-1] < length
            skipped += steps.max() > 1
            reached = max(reached, positions[-1])
    assert skipped > len(short) * rows / 2
    assert reached > length * 0.9


def test_a_block_follows_from_the_seed_and_its_index_alone(corpus):
    one, other = SkippedPositions(corpus, 96, 32, 0), SkippedPositions(corpus, 96, 32, 0)
    backwards = [other[i]["position_ids"] for i in reversed(range(len(other)))][::-1]
    assert all(torch.equal(one[i]["position_ids"], backwards[i]) for i in range(len(one)))
    assert not torch.equal(one[0]["position_ids"], one[1]["position_ids"])
    another = SkippedPositions(corpus, 96, 32, 1)
    assert not torch.equal(one[0]["position_ids"], another[0]["position_ids"])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_follows_the_cut_sees_what_precedes_it(corpus, family):
    model = make_model(family, 96)
    block = SkippedPositions(corpus, 96, 32, 0)[0]
    ids, positions = block["input_ids"] % 64, block["position_ids"]
    row = next(r for r in range(3) if positions[r, -1] > 31)
    cut = int((positions[row].diff() > 1).nonzero()[0]) + 1

    def last(mask, ids):
        with torch.no_grad():
            out = model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False)
        return out.logits[row, -1]

    changed = ids.clone()
    changed[row, cut - 1] = (changed[row, cut - 1] + 1) % 64
    mask = block["attention_mask"]
    assert not torch.equal(last(mask, ids), last(mask, changed))
    # Without the mask the gap would begin another document: what it is there for.
    assert torch.equal(last(None, ids), last(None, changed))
