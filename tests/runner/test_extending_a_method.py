"""The recipe of docs/EXTENDING.md for a PEFT method, run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.commands import words_of_a_run
from helpers.tiny_runs import make_model_folder, make_texts, result

from hylorada import cli

DOCUMENT = Path(__file__).parents[2] / "docs" / "EXTENDING.md"


def recipe() -> tuple[Path, str, list[str]]:
    """The file of the recipe, its text, and the words of the first command."""
    text = DOCUMENT.read_text(encoding="utf-8").partition("## Add a PEFT method")[2]
    text = text.partition("\n## ")[0]
    path = re.search(r"`(\S+\.yaml)`:", text)
    yaml = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    command = re.search(r"^hylorada-train (.*)$", text, re.MULTILINE)
    assert path
    assert yaml
    assert command
    return Path(path[1]), yaml[1], command[1].split()


@pytest.mark.slow
def test_a_method_is_one_yaml_and_no_source_file(tmp_path, capfd):
    make_model_folder(tmp_path / "model")
    make_texts(tmp_path / "texts")
    path, yaml, words = recipe()
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(yaml)
    folder = words.index("--config-dir") + 1
    words[folder] = str(tmp_path / words[folder])
    own = [w for w in words_of_a_run(tmp_path) if not w.startswith(("method=", "length="))]
    words = [w for w in words if not w.startswith("length=")]
    assert cli.train([*words, "length=96", *own, "integrity.enabled=true"]) == 0
    (directory,) = (tmp_path / "outputs" / "main").glob("fourierft-*")
    record = result(directory)
    assert (record["status"], record["method"]) == ("ok", "fourierft")
    assert record["parameters"]["by_group"].keys() == {"fourierft"}
    assert record["position_range"]["to"] == 96
    assert record["integrity"]["ok"]
    capfd.readouterr()
    assert cli.report([str(tmp_path / "outputs")]) == 0
    assert "fourierft" in capfd.readouterr().out
