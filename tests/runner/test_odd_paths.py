"""Commands on folders whose names hold every sign of a shell and of Hydra."""

from __future__ import annotations

import json

import pytest
from helpers.tiny_runs import LENGTH, make_model_folder, make_texts

from hylorada import cli

ODD = 'it\'s ~ = (a) [b] {c}, "d" #1: $x &; ${y} путь 目录 😀'


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd") / ODD
    make_model_folder(folder / ODD)
    make_texts(folder / f"texts {ODD}")
    (folder / "own" / "train").mkdir(parents=True)
    (folder / "own" / "train" / "mine.yaml").write_text("defaults: [demo]\nmax_steps: 3\n")
    return folder


@pytest.mark.parametrize("sweep", [[], pytest.param(["-m"], marks=pytest.mark.slow)])
def test_each_command_takes_them_as_they_are(root, sweep, capfd):
    def asked(key, place):
        """In a sweep a comma needs the quotes of Hydra's grammar."""
        path = str(place)
        if not sweep:
            return f"{key}={path}"
        escaped = path.replace("'", "\\'").replace("${", "\\${")
        return f"{key}='{escaped}'"

    words = [
        "length=512", f"length.max_length={LENGTH}", asked("model.path", root / ODD),
        "model=custom", "dataset=local", asked("dataset.path", root / f"texts {ODD}"),
        asked("dataset.cache_dir", root / f"cache {ODD}"),
        asked("output_root", root / f"out {ODD}"),
        "--config-dir", str(root / "own"), "train=mine", "eval=quick",
        "eval.perplexity.max_blocks=2", "method=lora", "threads=1", "track=off",
    ]  # fmt: skip
    assert cli.train([*words, *sweep]) == 0
    (directory,) = (root / f"out {ODD}" / "main").glob("lora-*")
    record = json.loads((directory / "result.json").read_text())
    assert record["config"]["dataset"]["path"] == str(root / f"texts {ODD}")
    assert list((root / f"cache {ODD}").iterdir())
    assert f"{directory}\n" in capfd.readouterr().out
    assert cli.evaluate([f"run={directory}"]) == 0


@pytest.mark.slow
def test_an_adapter_and_a_file_of_prompts(root, capfd):
    words = [
        "length=512", f"length.max_length={LENGTH}", f"model={root / ODD}", "method=lora",
        "dataset=local", f"dataset.path={root / f'texts {ODD}'}", f"output_root={root / 'a'}",
        "train.max_steps=1", "eval=quick", "eval.perplexity.max_blocks=2", "track=off",
    ]  # fmt: skip
    assert cli.train(words) == 0
    (directory,) = (root / "a" / "main").glob("lora-*")
    adapter = root / f"adapter {ODD}"
    (directory / "adapter").rename(adapter)
    measured = [word for word in words if not word.startswith(("method", "train"))]
    assert cli.evaluate([f"adapter={adapter}", *measured]) == 0
    pairs = [["k1", "v1"], ["k2", "v2"]]
    prompts = root / f"prompts {ODD}.jsonl"
    prompts.write_text(json.dumps({"ordered_kv_records": pairs, "key": "k1", "value": "v1"}) + "\n")
    asked = [f"run={directory}", f"eval.lost_in_middle.path={prompts}", "eval=retrieval"]
    adapter.rename(directory / "adapter")
    assert cli.report([str(directory)]) == 0
    assert (directory / "report" / "report.html").is_file()
    assert cli.evaluate(asked) in (0, 2, 3)  # it may not fit; it was found
    assert "there is no file" not in capfd.readouterr().err
