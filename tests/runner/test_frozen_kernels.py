"""`train.frozen_kernels`: which layers run, in training and in measurements, and the numbers."""

from __future__ import annotations

import copy
import json

import pytest
from helpers.tiny_runs import make_config, make_model_folder, make_texts

from hylorada.kernels import frozen_layers
from hylorada.kernels.frozen_layers import FrozenConv1D, FrozenLoraLinear
from hylorada.runner.evaluate import evaluate_run
from hylorada.runner.run import run


@pytest.fixture
def calls(monkeypatch):
    """How often layers with exchanged kernels ran."""
    counted = []
    for kind in (FrozenConv1D, FrozenLoraLinear):
        original = kind.forward

        def forward(self, *args, _original=original, **kwargs):
            counted.append(type(self).__name__)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(kind, "forward", forward)
    exchange = frozen_layers._exchange

    def exchanged(model, classes):
        if classes is frozen_layers._FAST:
            counted.append("exchanged")
        return exchange(model, classes)

    monkeypatch.setattr(frozen_layers, "_exchange", exchanged)
    return counted


@pytest.mark.slow
def test_the_switch_acts_in_training_and_evaluation_and_numbers_agree(tmp_path, calls):
    make_model_folder(tmp_path / "model")
    make_texts(tmp_path / "texts")
    records = {}
    for name, on in (("with", True), ("without", False)):
        config = make_config(
            tmp_path, train__max_steps=2, train__frozen_kernels=on, method__lora__lora_dropout=0.0
        )
        calls.clear()
        records[name] = run(config, tmp_path / name)
        assert bool(calls) is on, name
    losses = [
        [json.loads(line)["train/loss"] for line in text.splitlines() if "train/loss" in line]
        for text in ((tmp_path / name / "metrics.jsonl").read_text() for name in records)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for which in ("metrics", "base"):
        a, b = (json.loads(json.dumps(record[which])) for record in records.values())
        a, b = (found.get("extended", found)["eval/ppl"]["value"] for found in (a, b))
        assert a == pytest.approx(b, rel=1e-4)
    for name, words in (("with", "oneDNN"), ("without", "the model's own")):
        probed = json.loads((tmp_path / name / "integrity.json").read_text())["probed"]
        assert words in probed["in_place"]["kernels"]
    # a finished run again, the other way; the base is measured anew, not read from the cache
    calls.clear()
    entries = len(list((tmp_path / "outputs/.cache/base").glob("*.json")))
    asked = copy.deepcopy(config)
    asked.train.frozen_kernels = True
    asked.eval.perplexity.max_blocks = 1
    record = evaluate_run(tmp_path / "without", asked)
    assert calls
    assert record["evaluations"][-1]["frozen_kernels"] is True
    calls.clear()
    asked.train.frozen_kernels = False
    evaluate_run(tmp_path / "without", asked)
    assert not calls
    assert len(list((tmp_path / "outputs/.cache/base").glob("*.json"))) >= entries + 2
