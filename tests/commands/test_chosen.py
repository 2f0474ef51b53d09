"""From a grid to the table of the chosen, with real runs of two steps in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.records import make_record, write
from helpers.tiny_runs import make_config, make_model_folder, make_texts, result

from hylorada import config as configs
from hylorada.commands.evaluate import main as evaluate
from hylorada.commands.report import main as report
from hylorada.errors import ConfigError, DataError
from hylorada.records.schema import record_flaws
from hylorada.runner.run import run
from hylorada.settings.fingerprint import run_dir

ASKED = ["select=train.lr", "eval=quick", "eval.perplexity.conventions=[blocks]"]
VALUES = {"lora": (1e-5, 1e-3), "rslora": (1e-5, 1e-3)}


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """The folder of a grid, and the directory of each of its runs."""
    root = tmp_path_factory.mktemp("chosen")
    make_model_folder(root / "model")
    make_texts(root / "texts")
    directories = {}
    for method, values in VALUES.items():
        for lr in values:
            config = make_config(
                root, length__max_length=64, train__max_steps=2, train__lr=lr,
                eval__perplexity__split="validation", eval__perplexity__conventions=["blocks"],
                integrity__enabled=False,
            )  # fmt: skip
            config.method = configs.MethodConfig(name=method)
            for part in ("position_bias", "landmark", "s2_attn"):
                getattr(config.method, part).enabled = "false"
            config.method.train_embeddings = config.method.train_norms = "false"
            config.method.lora.use_rslora = method == "rslora"
            run(config)
            directories[method, lr] = run_dir(config)
    return root / "outputs" / "main", directories


def test_the_chosen_alone_are_measured_on_the_test_split(grid, capsys):
    folder, directories = grid
    before = {key: result(Path(path)) for key, path in directories.items()}
    losses = {key: r["metrics"]["eval/ppl"]["sum_nll"] for key, r in before.items()}
    best = {
        method: min(values, key=lambda lr, method=method: losses[method, lr])
        for method, values in VALUES.items()
    }

    assert report([str(folder), "--select", "train.lr"]) == 0
    shown = capsys.readouterr().out
    assert f"Next: hylorada-eval chosen={folder} select=train.lr" in shown
    assert ", test split" not in shown

    assert evaluate([f"chosen={folder}", *ASKED]) == 0
    after = {key: result(Path(path)) for key, path in directories.items()}
    for (method, lr), record in after.items():
        if lr == best[method]:
            assert record["metrics"]["eval/ppl"]["split"] == "test"
            replaced = record["evaluations"][0]["replaced"]["eval/ppl"]
            assert replaced == before[method, lr]["metrics"]["eval/ppl"]
            told = record["evaluations"][0]["chosen"]
            assert told["grid"] == str(folder)
            assert told["settings"] == {"train.lr": lr}
            tokens = replaced["tokens"]
            assert told["tokens"] == tokens
            assert [c["settings"]["train.lr"] for c in told["among"]] == sorted(VALUES[method])
            assert [c["loss"] for c in told["among"]] == pytest.approx(
                [losses[method, each] / tokens for each in sorted(VALUES[method])], rel=1e-12
            )
            assert list(record_flaws(record, whole=True)) == []
            card = (Path(directories[method, lr]) / "adapter/README.md").read_text()
            assert f"- chosen: train.lr={lr:g}, by the loss on the validation split" in card
        else:
            assert record == before[method, lr]  # its test split was never opened
    stored = json.loads((folder / "report/selection.json").read_text())
    assert {c["arm"]: c["chosen"]["train.lr"] for c in stored["choices"]} == best
    capsys.readouterr()

    assert evaluate([f"chosen={folder}", *ASKED]) == 0  # nothing is left to do
    said = capsys.readouterr().err
    assert said.count("measured already") == 2
    assert {key: result(Path(path)) for key, path in directories.items()} == after

    assert report([str(folder), "--select", "train.lr"]) == 0
    assert "Next: hylorada-eval" not in capsys.readouterr().out
    out = folder / "report"
    for file in ("table.md", "report.html"):
        text = (out / file).read_text()
        assert "each arm at its own setting, chosen on the validation split" in text
        assert "by the loss on the validation split among 2 (1e-05, 0.001)" in text
    (table,) = json.loads((out / "table.json").read_text())
    (section,) = table["sections"]  # compared, though their rates may differ
    rows = {row["method"]["value"]: row["ppl_blocks"]["value"] for row in section["rows"]}
    for method, lr in best.items():
        assert rows[method] == pytest.approx(after[method, lr]["metrics"]["eval/ppl"]["value"])
    for row in stored["choices"]:
        for candidate in row["candidates"]:
            loss = losses[row["arm"], candidate["values"]["train.lr"]]
            tokens = before[row["arm"], 1e-3]["metrics"]["eval/ppl"]["tokens"]
            assert candidate["loss"] == pytest.approx(loss / tokens, rel=1e-12)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["eval=validation"], "the validation split is what was chosen on"),
        (["eval=retrieval"], "measures perplexity on the test split"),
        (["train.lr=1"], "train.lr: a finished run keeps its settings"),
    ],
)
def test_what_would_not_open_the_test_split_is_refused(grid, words, line):
    with pytest.raises(ConfigError, match=line):
        evaluate([f"chosen={grid[0]}", "select=train.lr", *words])


def test_select_needs_a_folder_and_a_folder_needs_settings(grid):
    with pytest.raises(ConfigError, match="belong to chosen=FOLDER"):
        evaluate([f"run={grid[0]}", "select=train.lr"])
    with pytest.raises(ConfigError, match="name the settings to choose"):
        evaluate([f"chosen={grid[0]}"])


def test_what_the_grid_does_not_vary_opens_no_test_split(grid):
    with pytest.raises(DataError, match=r"several values of train\.warmup_ratio"):
        evaluate([f"chosen={grid[0]}", "select=train.warmup_ratio", *ASKED[1:]])


def test_a_record_that_is_left_out_of_the_choice_is_told(tmp_path, capsys):
    (tmp_path / "bad/result.json").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no usable result\.json below"):
        evaluate([f"chosen={tmp_path}", *ASKED])
    write(tmp_path, make_record("lora"))
    with pytest.raises(DataError, match="no finished run was measured on the validation split"):
        evaluate([f"chosen={tmp_path}", *ASKED])
    told = f"hylorada-eval: left out {tmp_path}/bad/result.json: cannot be read (Is a directory)"
    assert told in capsys.readouterr().err


def test_a_run_without_a_record_is_a_grid_that_is_not_finished(grid):
    folder, _ = grid
    (folder / "lora-killed" / ".hydra").mkdir(parents=True)
    try:
        with pytest.raises(DataError, match="lora-killed has no record yet"):
            report([str(folder), "--select", "train.lr"])
        assert report([str(folder), "--select", "train.lr", "--partial"]) == 0
    finally:
        (folder / "lora-killed" / ".hydra").rmdir()
        (folder / "lora-killed").rmdir()
