"""Perplexity in a short window: against a naive sum, stopped and continued, in the table."""

from __future__ import annotations

import csv
import io
import math

import pytest
import torch
from helpers.tiny_runs import LENGTH, make_config, make_model_folder, make_texts, result, run_here

from hylorada.comparison.arms import compare
from hylorada.comparison.collect import collect
from hylorada.errors import Interrupted
from hylorada.loading.backbone import load_backbone, open_base
from hylorada.process.progress import Reporter
from hylorada.process.signals import Stop
from hylorada.report import page, render
from hylorada.report.table import build_tables
from hylorada.runner.measure import Meter
from hylorada.runner.preparation import prepare
from hylorada.settings.fingerprint import fingerprint

METRIC = "short_context/ppl"
TRAINED = 64  # of the model of these runs
BLOCKS = 5
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("short")
    make_model_folder(root / "model")
    make_texts(root / "texts")
    return root


def short(root, **changes):
    return make_config(root, train__max_steps=2, eval__short_context__max_blocks=BLOCKS, **changes)


@pytest.fixture(scope="module")
def record(root):
    config = short(root)
    directory = root / "run"
    assert run_here(config, directory) == 0, (directory.parent / "run.err").read_text()
    return result(directory)


def prepared(config):
    return prepare(config, open_base(config.model), Stop())


@torch.no_grad()
def naive(model, documents, window, most):
    """Every block of the split, of which the middle ones of equal slices are scored."""
    blocks = [
        d.tokens[i : i + window + 1] for d in documents for i in range(0, len(d.tokens) - 1, window)
    ]
    kept = [blocks[(2 * i + 1) * len(blocks) // (2 * most)] for i in range(most)]
    total = count = 0
    for block in kept:
        ids = torch.tensor(block.tolist())[None]
        logits = model(ids[:, :-1]).logits[0].double()
        total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    return math.exp(total / count), count


def test_the_base_as_it_is_is_measured_in_its_own_window(root, record):
    config = short(root)
    documents = prepared(config).corpus.documents
    expected, count = naive(load_backbone(config.model, CPU).model, documents, TRAINED, BLOCKS)
    own = record["base"]["own_window"][METRIC]
    assert own["value"] == pytest.approx(expected, rel=1e-5)
    assert (own["window"], own["tokens"], own["convention"]) == (TRAINED, count, "blocks")
    # The three answer the same, and differently.
    found = [own, record["base"]["extended"][METRIC], record["metrics"][METRIC]]
    assert len({m["text_sha256"] for m in found}) == len({m["window"] for m in found}) == 1
    assert len({m["value"] for m in found}) == 3


def test_within_the_trained_length_half_of_the_window_is_short(root, tmp_path):
    config = short(root, length__max_length=50, method__train_embeddings="auto")
    config.method.s2_attn.group_size = 24
    (part,) = [p for p in prepared(config).parts if p.measurement.name == "short_context"]
    assert part.asked.window == 25
    config.length.max_length = 64  # the trained length itself
    (part,) = [p for p in prepared(config).parts if p.measurement.name == "short_context"]
    assert part.asked.window == 32


def test_a_stopped_measurement_goes_on_with_the_same_sums(root, tmp_path):
    config = short(root)
    asked, model = prepared(config), load_backbone(config.model, CPU).model
    (part,) = [p for p in asked.parts if p.measurement.name == "short_context"]

    class StopAtThird(Stop):
        looks = 0

        def check(self):
            self.looks += 1
            if self.looks == 3:
                raise Interrupted(15, "stop")

    def measured(stop, path=None):
        return Meter(CPU, None, 512, stop, Reporter()).measure(model, part, "base", partial=path)

    partial = tmp_path / "kept"
    with pytest.raises(Interrupted):
        measured(StopAtThird(), partial)
    assert partial.exists()
    seen = []
    model.transformer.h[0].register_forward_pre_hook(lambda *_: seen.append(1))
    assert measured(Stop(), partial) == measured(Stop())
    assert BLOCKS < len(seen) < 2 * BLOCKS


def test_the_table_says_what_it_cost(root, record):
    (comparison,), problems = compare(collect([root / "run"]).records)
    assert not problems
    (table,) = build_tables([comparison])
    (column,) = [column for column in table.columns if column.key == "short_context"]
    assert column.heading == f"PPL at {TRAINED} tokens vs unmodified base, %"
    rows = {row.cells["method"].text: row.cells for row in table.sections[0].rows}
    own = record["base"]["own_window"][METRIC]
    for label, metric in (
        (comparison.arms[0].label, record["metrics"][METRIC]),
        ("base, extended, untrained", record["base"]["extended"][METRIC]),
    ):
        expected = 100 * (metric["value"] / own["value"] - 1)
        assert rows[label]["short_context"].value == pytest.approx(expected, rel=1e-6)
    assert rows["base, own window"]["short_context"].text == "0"
    assert any(
        f"short window: {TRAINED} tokens, blocks; {own['tokens']:,}" in n for n in table.notes
    )
    for text in (render.markdown(table), page.build_page([table], [], [], [])):
        assert column.heading in text
    assert "PPL at 64 tokens vs unmodified base" in render.latex(table)
    (first, *_) = csv.DictReader(io.StringIO(render.as_csv([table])))
    assert "short_context" in first


def test_a_run_without_it_is_the_same_run(root):
    with_it, without = short(root), make_config(root, train__max_steps=2)
    assert fingerprint(with_it) == fingerprint(without)
    assert [part.measurement.name for part in prepared(without).parts] == ["perplexity"]
    with_it.eval.perplexity.conventions = ["sliding"]
    assert [part.measurement.name for part in prepared(with_it).parts] == ["perplexity"]
    assert LENGTH > TRAINED
