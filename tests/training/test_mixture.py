"""Retrieval examples among the text: which steps, which rows, and that a whole run does so."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from helpers.tiny_runs import (
    killed,
    make_config,
    make_model_folder,
    make_texts,
    outcome,
    result,
    run_to_end,
)
from transformers import AutoTokenizer

from hylorada.config import DatasetConfig, RetrievalTaskConfig, RunConfig, TrainConfig
from hylorada.data.blocks import Blocks
from hylorada.data.token_corpus import load_token_corpus
from hylorada.errors import ConfigError
from hylorada.evaluation.retrieval_prompts import generate_key_values
from hylorada.settings.run import check_settings
from hylorada.training.mixture import Mixture
from hylorada.training.plan import make_plan
from hylorada.training.retrieval_blocks import RetrievalBlocks

LENGTH = 640
HEX = RetrievalTaskConfig(sequences=40, key_style="hex")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    make_model_folder(folder / "model")
    make_texts(folder / "texts")
    for file in (folder / "texts/train").iterdir():
        file.write_text(file.read_text() * 3)  # rows of 640 bytes
    return folder


@pytest.fixture(scope="module")
def corpus(root):
    settings = DatasetConfig(
        "texts", "local", path=str(root / "texts"), cache_dir=str(root / "cache")
    )
    tokenizer = AutoTokenizer.from_pretrained(root / "model")
    return tokenizer, load_token_corpus(settings, "train", tokenizer, "model")


def settings_of(**changes):
    settings = TrainConfig(retrieval=HEX, **changes)
    settings.gradient_accumulation_steps = 3
    return settings


@pytest.mark.parametrize("mix", [0.1, 0.25, 1 / 3, 0.5, 0.77])
def test_a_share_of_the_steps_is_on_examples_evenly_and_the_text_goes_on(mix):
    text, settings = 7, settings_of(max_steps=40, mix=mix)
    plan = make_plan(text + 40, LENGTH, settings)
    plain = make_plan(text, LENGTH, settings_of(max_steps=40))
    mixed = [n for n in range(1, 41) if plan.is_on_examples(n)]
    assert plan.steps == 40
    assert len(mixed) == int(40 * mix + 0.5)
    gaps = {b - a for a, b in itertools.pairwise(mixed)}
    assert max(gaps) - min(gaps) <= 1
    read = {n: plan.of_step(n, seed=5) for n in range(1, 41)}
    assert all((min(read[n]) >= text) == (n in mixed) for n in read)
    examples = [i for n in mixed for i in read[n]]
    assert examples == [text + i % 40 for i in range(len(examples))]
    others = [read[n] for n in read if n not in mixed]
    assert others == [plain.of_step(n, seed=5) for n in range(1, len(others) + 1)]
    backwards = {n: plan.of_step(n, seed=5) for n in range(40, 0, -1)}
    assert backwards == read  # no state is carried along


def test_epochs_are_those_of_the_text():
    settings = settings_of(max_steps=0, epochs=2.0, mix=0.25)
    plan = make_plan(8 + 40, LENGTH, settings)
    read = [i for n in range(1, plan.steps + 1) for i in plan.of_step(n, seed=0)]
    text = [i for i in read if i < 8]
    assert sorted(text) == sorted(2 * list(range(8)))
    assert len(read) == plan.sequences
    assert len(read) - len(text) == 3 * 2  # of eight steps; the last of the text has one row
    assert plan.steps == 8


def test_blocks_are_those_of_the_text_then_examples_with_keys_of_their_own(corpus):
    tokenizer, text = corpus
    examples = RetrievalBlocks(tokenizer, LENGTH, HEX, seed=1)
    plain, mixture = Blocks(text, LENGTH), Mixture(text, examples, 0.125)
    count = len(plain)
    assert len(mixture) == count + 40
    for i in range(count):
        assert torch.equal(mixture[i]["input_ids"], plain[i]["input_ids"])
    for i in (0, 17, 39):
        for name in ("input_ids", "labels"):
            assert torch.equal(mixture[count + i][name], examples[i][name])
    for i in (-1, count + 40):
        with pytest.raises(IndexError):
            mixture[i]
    assert mixture.sha256 == plain.sha256  # of the text, by which a changed one is told
    assert mixture.label.endswith("none near depth 0, 0.25, 0.5, 0.75, 1")
    assert "in 12.5 % of the steps generated key-value pairs" in mixture.label
    shown = "".join(tokenizer.decode(mixture[count + i]["input_ids"]) for i in range(40))
    asked = {k for e in generate_key_values(30, 100, form="hex") for k, _ in e.records}
    assert not any(key in shown for key in asked)


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_it_acts_and_a_killed_run_ends_with_the_same_bytes(root):
    def make(**changes):
        return make_config(root, length__max_length=LENGTH, **changes)

    mixed = make(train__mix=0.3, train__retrieval=HEX)
    assert run_to_end(make(), root / "plain") == 0
    assert run_to_end(mixed, root / "whole") == 0
    named = {
        line["step"]: next(name for name in line if name.endswith("loss"))
        for line in lines(root / "whole")[:10]
    }
    on_examples = [step for step, name in named.items() if name == "train/retrieval_loss"]
    assert on_examples == [2, 5, 9]
    plain, whole = lines(root / "plain"), lines(root / "whole")
    assert whole[0] == plain[0]  # the same first row of text
    assert whole[2]["train/loss"] != plain[2]["train/loss"]  # other weights after the second step
    record = result(root / "whole")
    assert record["training"]["retrieval_steps"] == 3
    assert "retrieval_steps" not in result(root / "plain")["training"]
    assert record["config"]["train"]["mix"] == 0.3
    assert "in 30 % of the steps" in record["provenance"]["dataset"]["train"]
    shas = [result(root / name)["provenance"]["dataset_sha256"] for name in ("whole", "plain")]
    assert shas[0] == shas[1]
    for step in (5, 6):  # after one on examples, and after one on text
        directory = root / f"killed-{step}"
        assert killed(run_to_end(mixed, directory, HYLORADA_FAULT=f"after_step:{step}"))
        assert run_to_end(mixed, directory) == 0
        assert outcome(directory) == outcome(root / "whole")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train.task": "retrieval"}, "where every step is on examples"),
        ({"train.max_steps": 0, "train.max_tokens": 9}, "differ in scored tokens"),
        ({"dataset.packing": "reset"}, "whose examples are no documents"),
        ({"train.loss_spike": "warn"}, "would take for spikes"),
        ({"train.mix": 0.01}, "puts no step on examples"),
        ({"train.mix": 0.99}, "puts every step on examples"),
        ({"train.mix": 1.0}, "below 1"),
        ({"train.retrieval.key_style": "hex"}, "set both alike"),
        ({"train.retrieval.held_out": [0.5]}, "depths has 0, which"),
        (
            {"method.skipped_positions.enabled": True, "method.s2_attn.enabled": "false"},
            "would cut the examples",
        ),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(changes, says):
    config = RunConfig()
    config.train.mix = 0.25
    check_settings(config)
    for key, value in changes.items():
        *path, last = key.split(".")
        target = config
        for name in path:
            target = getattr(target, name)
        setattr(target, last, value)
    with pytest.raises(ConfigError, match=says):
        check_settings(config)
