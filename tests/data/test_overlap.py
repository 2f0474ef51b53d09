"""Documents that are trained on and measured, against a comparison of all with all."""

from __future__ import annotations

import random

from hylorada.config import DatasetConfig
from hylorada.data.overlap import shared_documents
from hylorada.data.token_corpus import load_token_corpus


def corpus(tmp_path, tokenizer, split):
    dataset = DatasetConfig(
        kind="local", path=str(tmp_path / "text"), cache_dir=str(tmp_path / "cache")
    )
    return load_token_corpus(dataset, split, tokenizer)


def test_whole_documents_in_two_splits_are_found(tmp_path, tokenizer):
    draw = random.Random(0)
    texts = {"train": [], "test": []}
    for split, count in (("train", 60), ("test", 40)):
        for _ in range(count):
            texts[split].append("".join(draw.choice("ab") for _ in range(draw.choice((3, 20, 21)))))
    texts["test"] += draw.sample(texts["train"], 5)
    for split, all_of_them in texts.items():
        for i, text in enumerate(all_of_them):
            path = tmp_path / "text" / split / f"{i:03d}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    train, test = (corpus(tmp_path, tokenizer, split) for split in ("train", "test"))
    trained = {tuple(d.tokens.tolist()) for d in train.documents}
    expected = [
        d.name
        for d in test.documents
        if len(d.tokens) >= 16 and tuple(d.tokens.tolist()) in trained
    ]
    assert shared_documents(train, test) == expected
    assert expected  # and there are some
    assert len(expected) < len(test.documents)
