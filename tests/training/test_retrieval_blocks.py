"""Sequences of solved key-value examples: what is asked, what is labelled, what is held out."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from helpers.text_tokenizers import KINDS, make_tokenizer
from helpers.tiny_runs import make_config, make_model_folder, make_texts
from transformers import AutoTokenizer

from hylorada.config import RetrievalTaskConfig
from hylorada.errors import ConfigError, DataError
from hylorada.evaluation.continuations import PromptEncoder
from hylorada.evaluation.retrieval_prompts import generate_key_values, place
from hylorada.runner.run import run
from hylorada.training.retrieval_blocks import RetrievalBlocks

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
LENGTH = 1203  # bytes
HEX = RetrievalTaskConfig(sequences=40, key_style="hex")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("retrieval")
    make_model_folder(folder / "model")
    make_texts(folder / "texts")
    return folder


@pytest.fixture(scope="module")
def tokenizer(root):
    return AutoTokenizer.from_pretrained(root / "model")


def solved(block, tokenizer):
    """(pairs, key, labelled answer) of every example that is whole, read from the text alone."""
    text = tokenizer.decode(block["input_ids"])
    labelled = [i for i, label in enumerate(block["labels"].tolist()) if label != -100]
    assert all(block["labels"][i] == block["input_ids"][i] for i in labelled)
    found, seen = [], set()
    # One token is one byte here, so that places in the text are places in the block.
    pattern = r'\{([^}]*)\}\n\nKey: "(\w+)"\nCorresponding value:( "\w+")\n\n'
    for match in re.finditer(pattern, text):
        pairs = re.findall(r'"(\w+)": "(\w+)"', match[1])
        seen |= set(range(*match.span(3)))
        found.append((pairs, match[2], match[3]))
    assert set(labelled) == seen
    return found


def test_answers_are_right_labelled_alone_and_never_at_a_held_out_depth(tokenizer):
    blocks = RetrievalBlocks(tokenizer, LENGTH, HEX, seed=3)
    sizes, places = [], []
    for i in range(len(blocks)):
        block = blocks[i]
        assert block["input_ids"].shape == block["labels"].shape == (LENGTH,)
        examples = solved(block, tokenizer)
        assert examples
        for pairs, key, answer in examples:
            index = [name for name, _ in pairs].index(key)
            assert answer == f' "{pairs[index][1]}"'
            assert index not in {place(depth, len(pairs)) for depth in DEPTHS}
            assert min(abs(index / (len(pairs) - 1) - depth) for depth in DEPTHS) > 0.05
            assert len({name for name, _ in pairs}) == len(pairs)
            sizes.append(len(pairs))
            places.append(index / (len(pairs) - 1))
    assert min(sizes) == 6  # the fewest with a place left
    assert max(sizes) > 30  # nearly all of a block
    assert min(places) < 0.2
    assert max(places) > 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_has_the_ids_of_its_text_and_the_answer_is_labelled(kind):
    """The ids that the evaluation scores, whatever the tokenizer does where two texts meet."""
    tokenizer = make_tokenizer(kind)
    blocks = RetrievalBlocks(tokenizer, 700, dataclasses.replace(HEX, items=6), seed=0)
    asked = []
    make_prompt = blocks._prompt

    def remember(*arguments):
        asked.append(make_prompt(*arguments))
        return asked[-1]

    blocks._prompt = remember
    block = blocks[0]
    ids, labels = block["input_ids"].tolist(), block["labels"].tolist()
    prompt = asked[0]
    answer = prompt.candidates[prompt.gold]
    encoder = PromptEncoder(tokenizer)
    whole = encoder.text(prompt.text + answer)
    scored = encoder.prompt(prompt.text, prompt.candidates).candidates[prompt.gold]
    assert ids[: len(whole)] == whole
    first = labels[: len(whole)]
    assert [label for label in first if label != -100] == scored
    assert first[len(whole) - len(scored) :] == scored  # and nothing before it
    after = tokenizer.decode(ids[len(whole) : len(whole) + 3])
    if kind != "wordpiece":  # which has no line breaks
        assert after.startswith("\n\n")
    assert f':  "{prompt.answer}' not in tokenizer.decode(ids)


def test_no_key_is_one_of_the_evaluation(tokenizer):
    blocks = RetrievalBlocks(tokenizer, LENGTH, HEX, seed=0)
    keys = {k for i in range(20) for pairs, *_ in solved(blocks[i], tokenizer) for k, _ in pairs}
    asked = {k for e in generate_key_values(30, 100, form="hex") for k, _ in e.records}
    assert {key[0] for key in keys} == set("01234567")
    assert {key[0] for key in asked} == set("89abcdef")


def test_a_block_follows_from_the_settings_the_seed_and_its_number(tokenizer):
    def make(length=LENGTH, seed=0, **changes):
        settings = dataclasses.replace(HEX, **changes)
        return RetrievalBlocks(tokenizer, length, settings, seed)

    blocks = make()
    later = make()[7]  # asked for alone
    assert torch.equal([blocks[i] for i in range(9)][7]["input_ids"], later["input_ids"])
    assert not torch.equal(blocks[6]["input_ids"], later["input_ids"])
    others = [
        make(seed=1), make(held_out=[0.5]), make(length=LENGTH + 1),
        make(items=9), make(key_style="uuid"),
    ]  # fmt: skip
    assert len({each.sha256 for each in [blocks, *others]}) == 6
    assert not torch.equal(others[0][7]["input_ids"], later["input_ids"])
    assert blocks.sha256 == make().sha256
    assert "none near depth 0, 0.25, 0.5, 0.75, 1" in blocks.label
    for i in (-1, 40):
        with pytest.raises(IndexError):
            blocks[i]


def test_a_fixed_number_of_pairs(tokenizer):
    settings = RetrievalTaskConfig(sequences=4, key_style="hex", items=9)
    blocks = RetrievalBlocks(tokenizer, LENGTH, settings, seed=0)
    for i in range(4):
        examples = solved(blocks[i], tokenizer)
        assert {len(pairs) for pairs, *_ in examples} == {9}
        assert len(examples) > 1


def test_a_sequence_too_short_for_an_example_is_refused(tokenizer):
    with pytest.raises(DataError, match=r"6 pairs has up to \d+ tokens and length.max_length is 9"):
        RetrievalBlocks(tokenizer, 96, RetrievalTaskConfig(), seed=0)


@pytest.mark.parametrize("changes", [{"items": 5}, {"held_out": [i / 20 for i in range(21)]}])
def test_no_place_beside_the_depths_held_out_is_refused(tokenizer, changes):
    settings = dataclasses.replace(HEX, **changes)
    with pytest.raises(ConfigError, match="no place among"):
        RetrievalBlocks(tokenizer, LENGTH, settings, seed=0)


@pytest.mark.slow
def test_a_run_learns_the_task_and_measures_the_text(root):
    config = make_config(
        root,
        length__max_length=640,
        train__task="retrieval",
        train__retrieval=HEX,
        train__max_steps=6,
        eval__perplexity__conventions=["blocks"],
    )
    record = run(config)
    assert record["status"] == "ok"
    assert record["config"]["train"]["task"] == "retrieval"
    # answers alone are scored: 11 bytes each
    assert record["training"]["tokens"] % 11 == 0
    assert 0 < record["training"]["tokens"] < 6 * 4 * 640 / 10
    assert record["metrics"]["eval/ppl"]["split"] == "test"
    shas = record["provenance"]["dataset_sha256"]
    assert set(shas) == {"train", "test"}
    text = run(make_config(root, train__max_steps=1))
    assert text["provenance"]["dataset_sha256"]["test"] == shas["test"]
    assert text["provenance"]["dataset_sha256"]["train"] != shas["train"]
