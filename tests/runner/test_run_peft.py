"""Another method of peft through a whole run: stopped, continued, loaded, measured, exported."""

from __future__ import annotations

import json

import pytest
import torch
from helpers.preset_runs import composed, make_root
from helpers.tiny_runs import killed, outcome, result, run_here, run_to_end

from hylorada.commands.report import main as report
from hylorada.errors import ConfigError
from hylorada.loading.finished_run import load_run
from hylorada.runner.evaluate import evaluate_run
from hylorada.runner.evaluate_adapter import evaluate_adapter
from hylorada.runner.export import export
from hylorada.runner.preflight import Preflight
from hylorada.runner.run import run

CASES = [
    ("vera", "gpt2", ["method.train_embeddings=true", "method.train_norms=true"]),
    ("ia3", "llama", []),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("peft"))


@pytest.fixture(scope="module", params=CASES, ids=[case[0] for case in CASES])
def finished(request, root):
    method, family, words = request.param
    config = composed(root, family, f"method={method}", "train.max_steps=6", *words)
    config.train.save_every = 2
    directory = root / "outputs" / "main" / f"whole-{method}"
    directory.parent.mkdir(parents=True, exist_ok=True)
    assert run_here(config, directory) == 0
    return config, directory


def perplexity(record):
    return record["metrics"]["eval/ppl"]["sum_nll"]


def test_kill_9_then_the_same_command_gives_the_same_bytes(finished, tmp_path):
    config, directory = finished
    assert killed(run_to_end(config, tmp_path / "again", HYLORADA_FAULT="after_step:5"))
    assert run_here(config, tmp_path / "again") == 0
    assert outcome(tmp_path / "again") == outcome(directory)
    assert result(directory)["parameters"]["by_group"].keys() >= {config.method.name}


def test_it_is_measured_again_with_the_numbers_of_the_run(finished, root):
    config, directory = finished
    before = perplexity(result(directory))
    assert perplexity(evaluate_run(directory, config)) == before
    words = ["eval.perplexity.max_blocks=2"]
    other = composed(root, config.model.path.rpartition("/")[2], *words)  # method=hylorada
    assert perplexity(evaluate_adapter(directory / "adapter", other)) == before


def test_the_base_is_that_of_every_arm(finished, root, tmp_path):
    """Its numbers come from the cache that a run of another method left, and are the same."""
    config, directory = finished
    other = composed(root, config.model.path.rpartition("/")[2], "method=lora")
    entries = set((root / "outputs/.cache/base").glob("*.json"))
    record = run(other, tmp_path / "lora")
    assert set((root / "outputs/.cache/base").glob("*.json")) == entries
    assert record["base"] == result(directory)["base"]
    assert record["position_range"] == result(directory)["position_range"]


@torch.no_grad()
def test_what_is_loaded_and_exported_computes_what_the_run_did(finished, tmp_path):
    """Also by the program on the card, which extends the base by itself."""
    config, directory = finished
    model = load_run(directory, "cpu")
    ids = torch.arange(96)[None] % 250
    expected = model(input_ids=ids, use_cache=False).logits
    assert torch.equal(load_run(directory, "cpu")(input_ids=ids, use_cache=False).logits, expected)
    card = (export(directory, tmp_path / "export") / "README.md").read_text()
    program = card.partition("```python\n")[2].partition("```")[0]
    lines = []
    for line in program.splitlines():
        if line.startswith("base ="):
            line = f"base = {config.model.path!r}"
        if line.startswith("adapter ="):
            line = f"adapter = {str(tmp_path / 'export')!r}"
        lines.append(line)
    names: dict = {}
    exec("\n".join(lines), names)
    assert torch.equal(names["model"](input_ids=ids, use_cache=False).logits, expected)
    merged = export(directory, tmp_path / "merged", merge=True)
    assert json.loads((merged / "config.json").read_text())["hylorada_trained_length"] == 96


def test_the_report_has_a_row_for_it(finished, tmp_path, capsys):
    config, directory = finished
    assert report([str(directory), "--out", str(tmp_path)]) == 0
    component = next(iter(result(directory)["parameters"]["by_group"]))
    assert f"of these: {component} " in " ".join(capsys.readouterr().out.split())
    assert config.method.name in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("family", "words", "message"),
    [
        ("gpt2", ["method=loha"], r"\(LOHA\) on GPT2LMHeadModel: .*Conv1D"),
        ("gpt2", ["method=vera", "method.peft.rr=1"], "VeraConfig has no such key; did you mean r"),
        ("llama", ["method=vera", "method.train_embeddings=true"], "no learned position emb"),
        ("llama", ["method=ia3", "method.peft.peft_type=PREFIX_TUNING"], "virtual tokens before"),
    ],
)
def test_what_cannot_be_is_refused_before_weights_are_read(root, family, words, message):
    config = composed(root, family, *words)
    with pytest.raises(ConfigError, match=message):
        Preflight().check(config)
