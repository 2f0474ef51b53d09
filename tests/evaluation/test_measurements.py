"""The recipe "Add a measurement" of docs/EXTENDING.md, as it stands there: one file, one YAML."""

from __future__ import annotations

import csv
import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import words_of_a_run
from helpers.markdown_files import ROOT, code
from helpers.tiny_runs import LENGTH, make_model_folder, make_texts
from transformers import AutoTokenizer

import hylorada
from hylorada import compose
from hylorada.command_line.overrides import rewrite
from hylorada.commands import evaluate, report, train
from hylorada.commands.job import Stopped
from hylorada.config import RunConfig
from hylorada.errors import ConfigError
from hylorada.evaluation import measurements, resumable
from hylorada.settings import check_settings
from hylorada.settings.fingerprint import fingerprint
from hylorada.settings.measurements import declared

PAGE = ROOT / "docs" / "EXTENDING.md"


def block(language: str, start: str) -> str:
    """The one block of the page in that language that begins so."""
    (found,) = (c.text for c in code(PAGE) if c.language == language and c.text.startswith(start))
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The two files of the recipe, beside a model and texts; found until the module's end."""
    folder = tmp_path_factory.mktemp("added")
    make_model_folder(folder / "model")
    make_texts(folder / "texts")
    for path, text in {
        "parts/mrr.py": block("python", '"""Mean reciprocal rank'),
        "own/eval/mrr.yaml": block("yaml", "# The rank of the next token"),
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measurements, "__path__", [*measurements.__path__, str(folder / "parts")])
        patch.setenv("HF_HUB_OFFLINE", "1")
        torch.set_num_threads(1)
        yield folder
    sys.modules.pop("hylorada.evaluation.measurements.mrr", None)


def command(root: Path, *more: str, number: int = 0) -> list[str]:
    """A command of the recipe, for a small model and a few steps."""
    written = shlex.split(block("bash", "hylorada-train length=4k").splitlines()[number])[1:]
    small = [word for word in words_of_a_run(root) if not word.startswith(("eval=", "method="))]
    words = [word for word in written if not word.startswith(("length=", "run="))]
    return [*small, "--config-dir", str(root / "own"), *words, *more]


def records(root: Path) -> list[Path]:
    return sorted((root / "outputs" / "main").glob("*/result.json"))


@pytest.fixture(scope="module")
def done(root):
    assert train.main(command(root)) == 0
    (path,) = records(root)
    return path.parent, json.loads(path.read_text())


def mrr_by_sorting(directory: Path, root: Path) -> float:
    """The obvious way: the place of the right byte in a sorted list, one token after another."""
    model, ranks = hylorada.load_run(directory), []
    tokenizer = AutoTokenizer.from_pretrained(root / "model")
    for path in sorted((root / "texts" / "test").glob("*.txt")):
        ids = tokenizer(path.read_text())["input_ids"]
        for start in range(0, len(ids) - 1, LENGTH):
            window = ids[start : start + LENGTH]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([window])).logits[0].numpy()
            for i, right in enumerate(window[1:]):
                ranks.append(1 + list(np.sort(logits[i])[::-1]).index(logits[i][right]))
    return sum(1 / rank for rank in ranks) / len(ranks)


def test_the_number_stands_in_the_record_and_is_what_the_naive_way_finds(root, done):
    directory, record = done
    metric = record["metrics"]["mrr/mean"]
    assert metric["value"] == pytest.approx(mrr_by_sorting(directory, root))
    assert metric["window"] == LENGTH
    assert "eval/ppl" in record["metrics"]  # of the YAML's default
    last = json.loads((directory / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["mrr/mean"] == metric["value"]


def test_the_base_is_measured_once_and_kept(root, done, capsys):
    kept = [json.loads(p.read_text())["value"] for p in root.glob("outputs/.cache/base/*.json")]
    (value,) = (metrics for metrics in kept if "mrr/mean" in metrics)
    assert done[1]["base"]["extended"]["mrr/mean"] == value["mrr/mean"]
    assert train.main(command(root, "seed=1")) == 0
    out, err = capsys.readouterr()
    assert "MRR of the next token" in out
    assert "lora, MRR" in err
    assert "base, extended to 96, MRR" not in err


def test_table_and_page_have_a_column_of_it(root, done, tmp_path):
    directory, record = done
    assert report.main([str(directory), "--out", str(tmp_path)]) == 0
    shown = f"{record['metrics']['mrr/mean']['value']:.3f}"
    for name in ("table.md", "report.html", "table.tex"):
        text = (tmp_path / name).read_text()
        assert "MRR of the next token" in text
        assert shown in text
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    wanted = [m["mrr/mean"]["value"] for m in (record["base"]["extended"], record["metrics"])]
    assert [float(row["mrr"]) for row in rows if row["mrr"]] == wanted
    assert shown in (tmp_path / "table.json").read_text()


def test_a_finished_run_is_measured_again(root, done):
    directory, before = done
    written = shlex.split(block("bash", "hylorada-train length=4k").splitlines()[2])
    assert written[:2] == ["hylorada-eval", "run=outputs/main/lora-4k-seed0-..."]
    assert evaluate.main([f"run={directory}", *written[2:]]) == 0
    record = json.loads((directory / "result.json").read_text())
    assert record["metrics"]["mrr/mean"]["tokens"] < before["metrics"]["mrr/mean"]["tokens"]
    (entry,) = record["evaluations"]
    assert entry["replaced"]["mrr/mean"] == before["metrics"]["mrr/mean"]
    assert entry["eval"]["measurements"] == {"mrr": {"windows": 10}}
    assert record["config"]["eval"]["measurements"] == {"mrr": {"windows": 10}}


@pytest.mark.slow
def test_an_interrupted_one_goes_on_where_it_was(root, done, monkeypatch):
    real, calls = resumable.Partial.boundary, []

    def end_at_the_second(self, found):
        if self._path and self._path.name.endswith("-mrr"):
            calls.append(len(found()))
            if len(calls) == 2:
                self._stop.requested = signal.SIGTERM
        real(self, found)

    monkeypatch.setattr(resumable.Partial, "boundary", end_at_the_second)
    words = command(root, "group=interrupted")
    with pytest.raises(Stopped):
        train.main(words)
    assert train.main(words) == 0
    assert calls == list(range(1, len(calls) + 1))
    (path,) = (root / "outputs" / "interrupted").glob("*/result.json")
    whole = done[1]["metrics"]["mrr/mean"]
    assert json.loads(path.read_text())["metrics"]["mrr/mean"] == whole


def composed(*words: str) -> RunConfig:
    with compose.opened_hydra() as hydra:
        return compose.to_typed(compose.compose(hydra, rewrite(["eval=quick", *words])))


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("eval.measurements.mrr.window=2", r"unknown key .*mrr\.window; did you mean windows\?"),
        ("eval.measurements.mrr.windows=few", r"mrr\.windows is 'few'; it must be a whole number"),
        ("eval.measurements.mrr.windows=0", r"mrr\.windows is 0; it must be 1 or more"),
        ("eval.measurements.mrr=3", r"eval\.measurements\.mrr is a group of settings"),
        ("eval.measurements.mmr={}", r"no measurement 'mmr'; did you mean mrr\?"),
        ("eval.measurements.harness={}", r"its settings are in eval\.harness"),
        ("eval.measurements=3", r"eval\.measurements is 3; it must be settings in braces"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_one_line_before_anything_loads(root, word, says):
    with pytest.raises(ConfigError, match=says) as error:
        check_settings(composed(word))
    assert "\n" not in str(error.value)


def test_settings_of_an_added_measurement_make_another_run(root):
    words = ["=", "={}", ".windows=2", ".windows=3"]
    names = {
        fingerprint(composed(*([] if word == "=" else [f"eval.measurements.mrr{word}"])))
        for word in words
    }
    assert len(names) == len(words)


def test_measurements_are_known_in_their_order_without_torch():
    names = ["perplexity", "short_context", "lost_in_middle", "context_gain", "harness"]
    assert [each.name for each in declared()][:5] == names
    script = (
        "import sys; from hylorada.evaluation.measurement import measurements; "
        f"assert [m.name for m in measurements()] == {names}; "
        "print({'torch', 'transformers', 'peft', 'numpy', 'matplotlib'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
