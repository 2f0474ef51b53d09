"""The same targets with more context, against one forward pass for each."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers.documents import make_documents
from helpers.families import make_model

from hylorada.config import ContextGainConfig
from hylorada.errors import ConfigError, DataError, DivergedError
from hylorada.evaluation.context_gain import evaluate_context_gain
from hylorada.settings.context_lengths import fitting_contexts
from hylorada.statistics.clustered import clustered_mean

SHORT = ContextGainConfig(contexts=[4, 16], targets=4, places=3)
EIGHT = ContextGainConfig(contexts=[4, 16], targets=8)


def test_scores_identical_targets_with_only_the_context_changed():
    model = make_model("llama", trained_length=128)
    documents = make_documents([10, 95, 31])
    scores = evaluate_context_gain(
        model, documents, 64, ContextGainConfig(contexts=[16, 4, 24, 24], targets=7, places=100)
    )
    assert [s.context for s in scores] == [4, 16, 24]
    starts = [(1, 0), (1, 31), (1, 62), (2, 0)]  # stretches of 24 + 7 tokens
    for score in scores:
        total = 0.0
        for number, first in starts:
            ids = torch.from_numpy(documents[number].tokens.astype(np.int64))
            ids = ids[first + 24 - score.context : first + 31]
            with torch.no_grad():
                log_p = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
            total -= sum(
                float(log_p[t - 1, ids[t]]) for t in range(score.context, score.context + 7)
            )
        assert score.tokens == 28
        assert score.sum_nll == pytest.approx(total, rel=1e-5)
    assert scores[0].gain == 0.0
    assert scores[1].gain == pytest.approx((scores[0].sum_nll - scores[1].sum_nll) / 28)
    assert scores[1].gain_low is None  # of two documents nobody knows how documents differ
    assert [d["places"] for d in scores[1].by_document] == [3, 1]
    weighted = sum(d["places"] * d["gain"] for d in scores[1].by_document) / 4
    assert weighted == pytest.approx(scores[1].gain)
    json.dumps([s.to_dict() for s in scores], allow_nan=False)


def test_places_of_one_document_are_one_cluster():
    """Nine places in four documents; with equal documents it would be scipy's t test."""
    scores = evaluate_context_gain(
        make_model("gpt2"), make_documents([20, 60, 60, 40]), 64,
        ContextGainConfig(contexts=[4, 16], targets=4, places=100),
    )  # fmt: skip
    last = scores[-1]
    assert [d["places"] for d in last.by_document] == [1, 3, 3, 2]
    sums = np.array([[d["places"] * d["gain"] for d in last.by_document]])
    expected = clustered_mean(sums, np.array([1, 3, 3, 2])).interval()
    assert (last.gain_low, last.gain_high) == pytest.approx(expected)
    assert scores[0].gain_low is None


def test_places_are_spread_and_counted():
    seen = []
    scores = evaluate_context_gain(
        make_model("gpt2"), make_documents([400]), 64, SHORT,
        progress=lambda done, total: seen.append((len(done), total)),
    )  # fmt: skip
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert scores[0].tokens == 12


def test_an_interrupted_measurement_continues_where_it_was():
    class Stop(Exception):
        pass

    kept = []

    def stop(done, total):
        kept[:] = json.loads(json.dumps(done))
        if len(done) == 2:
            raise Stop

    model = make_model("gpt2")
    whole = evaluate_context_gain(model, make_documents([400]), 64, SHORT)
    with pytest.raises(Stop):
        evaluate_context_gain(model, make_documents([400]), 64, SHORT, progress=stop)
    seen = []
    rest = evaluate_context_gain(
        model, make_documents([400]), 64, SHORT, done=kept,
        progress=lambda done, total: seen.append(len(done)),
    )  # fmt: skip
    assert seen == [3]
    assert rest == whole


def test_a_loss_that_is_not_finite_is_named():
    model = make_model("gpt2")
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = float("nan")
    with pytest.raises(DivergedError, match="not finite on"):
        evaluate_context_gain(model, make_documents([99]), 64, EIGHT)


def test_what_cannot_be_measured_is_refused():
    model = make_model("gpt2")
    with pytest.raises(ConfigError, match="do not fit the window of 12 tokens"):
        evaluate_context_gain(model, make_documents([99]), 12, EIGHT)
    with pytest.raises(DataError, match="the longest document has 11 tokens"):
        evaluate_context_gain(model, make_documents([11, 3]), 64, EIGHT)


@pytest.mark.parametrize(
    ("window", "targets", "fitting"),
    [
        (8192, 256, [128, 512, 2048, 4096, 7937]),  # the whole window, not half of it
        (4096, 256, [128, 512, 2048, 3841]),
        (512, 256, [128, 257]),
        (8192, 1, [128, 512, 2048, 4096, 8192]),
        (4200, 100, [128, 512, 2048, 4096]),  # 4101 would say the same
        (9999, 256, [128, 512, 2048, 4096, 8192]),
        (100, 256, []),
    ],
)
def test_the_longest_context_fills_the_window(window, targets, fitting):
    settings = ContextGainConfig(contexts=[512, 128, 2048, 4096, 8192], targets=targets)
    assert fitting_contexts(settings, window) == fitting


def test_a_split_of_short_documents_is_measured_as_far_as_they_reach():
    settings = ContextGainConfig(contexts=[4, 16, 99], targets=4, places=3)
    scores = evaluate_context_gain(make_model("gpt2"), make_documents([41, 33]), 64, settings)
    assert [s.context for s in scores] == [4, 16]
    assert scores[0].tokens == 3 * 4  # two places in the first, one in the second
