"""Longer tables of position embeddings by parts: against least squares, on known waves, on text."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.families import LEARNED_FAMILIES, make_model, tokens
from torch.nn.functional import cross_entropy

from hylorada.architecture.anatomy import position_embedding
from hylorada.config import ModelConfig
from hylorada.loading.backbone import load_backbone
from hylorada.methods.longer_rows import longer_rows
from hylorada.methods.position_range import extend_range, restore_range


@pytest.mark.parametrize(("trained", "length"), [(64, 150), (37, 38), (50, 401)])
def test_the_slow_part_is_interpolated_and_the_rest_repeated(trained, length):
    rows = np.random.default_rng(0).normal(size=(trained, 5))
    waves = np.array(
        [
            [math.cos(math.pi * f * (t + 0.5) / trained) for f in range(-(-trained // 8))]
            for t in range(trained)
        ]
    )
    slow = waves @ np.linalg.lstsq(waves, rows, rcond=None)[0]
    got = longer_rows(torch.tensor(rows, dtype=torch.float32), length, "by_parts")
    assert got.shape == (length, 5)
    for i in range(length):
        where = i * (trained - 1) / (length - 1)
        j = min(int(where), trained - 2)
        want = slow[j] + (where - j) * (slow[j + 1] - slow[j]) + (rows - slow)[i % trained]
        # the rows and the result are float32
        assert np.abs(got[i].numpy() - want).max() <= 2e-6


@pytest.mark.parametrize(("trained", "length"), [(64, 150), (37, 38)])
def test_the_trained_rows_may_be_kept_and_those_beyond_are_by_parts(trained, length):
    rows = torch.randn(trained, 5, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.bfloat16):
        old = rows.to(dtype)
        kept, by_parts = (longer_rows(old, length, init) for init in ("keep", "by_parts"))
        assert torch.equal(kept[:trained], old.float())
        assert torch.equal(kept[trained:], by_parts[trained:])
        assert (kept[:trained] - by_parts[:trained]).abs().max() > 0.02


@pytest.mark.parametrize("family", LEARNED_FAMILIES)
@pytest.mark.parametrize("init", ["tile", "keep"])
def test_within_the_trained_length_a_kept_start_changes_nothing(family, init):
    model, ids = make_model(family, 64), tokens(2, 64)
    longer = tokens(1, 150)
    with torch.no_grad():
        before = model(ids).logits
        extend_range(model, 150, learned_init=init)
        assert torch.equal(model(ids).logits, before)
        assert model(longer).logits.isfinite().all()


def test_a_fast_wave_keeps_its_period_and_a_slow_one_is_stretched():
    def wave(periods, positions):  # of as many periods in 64 tokens
        at = torch.arange(positions, dtype=torch.float64) + 0.5
        return torch.cos(2 * math.pi * periods * at / 64)

    got = longer_rows(torch.stack([wave(8, 64), wave(1, 64)], 1), 192, "by_parts")
    # float32 but for the arithmetic
    assert torch.allclose(got[:, 0].double(), wave(8, 192), rtol=0, atol=1e-7)
    down, up = got[:97, 1].diff(), got[96:, 1].diff()
    assert (down <= 1e-7).all()
    assert (up >= -1e-7).all()
    assert got[96, 1] < -0.99


@pytest.mark.parametrize("family", LEARNED_FAMILIES)
def test_a_model_takes_the_rows_behind_its_offset_and_gives_them_back(family):
    model = make_model(family, 64)
    ids = tokens(2, 64)
    with torch.no_grad():
        before = model(ids).logits
    _, embedding, offset = position_embedding(model)
    old = embedding.weight.detach().clone()
    report = extend_range(model, 150, learned_init="by_parts")
    assert report.type == "by_parts"
    assert torch.equal(embedding.weight[:offset], old[:offset])
    assert torch.equal(embedding.weight[offset:], longer_rows(old[offset:], 150, "by_parts"))
    restore_range(model, report)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before)


def test_only_the_trained_rows_are_read():
    one, other = make_model("gpt2", 64), make_model("gpt2", 64)
    for model in (one, other):
        model.config.hylorada_trained_length = 48
    with torch.no_grad():
        other.transformer.wpe.weight[48:] = 7.0
    for model in (one, other):
        extend_range(model, 96, learned_init="by_parts")
    assert torch.equal(one.transformer.wpe.weight, other.transformer.wpe.weight)


@pytest.mark.slow
def test_untrained_the_small_model_reads_twice_its_length_best_by_parts():
    backbone = load_backbone(ModelConfig(), torch.device("cpu"))
    text = Path(textwrap.__file__).read_text(encoding="utf-8")
    ids = torch.tensor(backbone.tokenizer(text)["input_ids"][:2048])[None]
    assert ids.shape[1] == 2048
    losses = {}
    for init in ("interpolate", "tile", "by_parts"):
        report = extend_range(backbone.model, 2048, init)
        with torch.no_grad():
            logits = backbone.model(ids).logits[0, :-1]
        losses[init] = cross_entropy(logits, ids[0, 1:]).item()
        restore_range(backbone.model, report)
    assert losses["by_parts"] < min(losses["interpolate"], losses["tile"]) - 0.2
