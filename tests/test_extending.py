"""The recipes of docs/EXTENDING.md, run as they stand there."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Into, run_command, words_of_a_run
from helpers.markdown_files import ROOT, code
from helpers.tiny_runs import make_model_folder, make_texts

DOCUMENT = ROOT / "docs" / "EXTENDING.md"


def folders(parts: Path) -> None:
    """One way to add the modules of the folder `parts`: to our own folders."""
    from hylorada.data import kinds
    from hylorada.evaluation import measurements
    from hylorada.tracking import trackers

    for package in (measurements, kinds, trackers):
        package.__path__.append(str(parts / package.__name__.rpartition(".")[2]))


def entry_points(parts: Path) -> None:
    """Another: as an installed package."""
    sys.path.insert(0, str(parts))


class Added(Into):
    """Streams into files, in a process that finds the modules of the recipes."""

    def __init__(self, root: Path, added: Callable[[Path], None]) -> None:
        super().__init__(root / "out", root / "err")
        self.root, self.added = root, added

    def __call__(self) -> None:
        super().__call__()
        os.chdir(self.root)
        self.added(self.root / "parts")


def blocks(language: str) -> list[str]:
    """The blocks of code in a language, in their order; a method has a test of its own."""
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    end = lines.index("## Add a PEFT method")
    return [p.text for p in code(DOCUMENT) if p.language == language and p.line <= end]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The files of the recipes, a model and poems."""
    root = tmp_path_factory.mktemp("extending")
    kind, tracker, measurement = blocks("python")
    (metadata,) = blocks("toml")
    files = {
        "parts/kinds/poems.py": kind,
        "parts/trackers/csv.py": tracker,
        "parts/measurements/mrr.py": measurement,
        "parts/my_package/__init__.py": "",
        "parts/my_package/mrr.py": measurement,
        "parts/my_package/poems.py": kind,
        "parts/my_package/csv_tracker.py": tracker,
        "parts/my_package-1.0.dist-info/METADATA": "Name: my_package\nVersion: 1.0\n",
        # As an installer writes it.
        "parts/my_package-1.0.dist-info/entry_points.txt": re.sub(
            r'\[project\.entry-points\."(.*)"\]', r"[\1]", metadata
        ).replace('"', ""),
    }
    places = ("dataset/poems.yaml", "track/csv.yaml", "eval/mrr.yaml")
    for place, text in zip(places, blocks("yaml"), strict=True):
        assert f"conf/{place}" in DOCUMENT.read_text(encoding="utf-8")
        files[f"conf/{place}"] = text
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    make_model_folder(root / "model")
    for split in make_texts(root / "texts").iterdir():
        poems = [file.read_text() for file in sorted(split.iterdir())]
        (root / f"{split.name}.poems").write_text("\n\n".join(poems))
    return root


def run(
    root: Path, added: Callable[[Path], None], group: str, *words: str
) -> tuple[dict[str, Any], Path]:
    """A run of three steps in a process of its own; its record and its directory."""
    every = words_of_a_run(root, "--config-dir", str(root / "conf"), f"group={group}", *words)
    assert run_command("train", every, Added(root, added)) == 0, (root / "err").read_text()
    (record,) = (root / "outputs" / group).glob("*/result.json")
    return json.loads(record.read_text()), record.parent


@pytest.mark.parametrize(
    "added",
    [folders, pytest.param(entry_points, marks=pytest.mark.slow)],
    ids=["folders", "entry_points"],
)
def test_a_kind_of_data_set_a_tracker_and_a_measurement_are_a_file_and_a_yaml_each(
    root, added, request
):
    group = request.node.callspec.id
    record, directory = run(
        root, added, group, "dataset=poems", f"dataset.path={root}", "track=csv", "eval=mrr"
    )
    assert record["config"]["eval"]["measurements"] == {"mrr": {"windows": 50}}
    assert 0 < record["metrics"]["mrr/mean"]["value"] <= 1
    assert record["dataset"] == "poems"
    assert "poems test, 2 documents" in json.dumps(record)
    rows = list(csv.DictReader((directory / "numbers.csv").open(newline="")))
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    losses = [(str(x["step"]), str(x["train/loss"])) for x in lines if "train/loss" in x]
    assert len(losses) == 3
    assert [(r["step"], r["value"]) for r in rows if r["name"] == "train/loss"] == losses
    assert rows[-1]["step"] == "end"


@pytest.mark.slow
def test_a_folder_in_the_hubs_layout_needs_no_file_at_all(root):
    words = ("dataset=hub", f"dataset.path={root}/texts", f"dataset.cache_dir={root}/cache")
    record, of_hub = run(root, entry_points, "hub", *words)
    _, of_local = run(root, entry_points, "local")
    assert record["dataset"] == f"{root}/texts"
    metrics = [(place / "metrics.jsonl").read_bytes() for place in (of_hub, of_local)]
    assert metrics[0] == metrics[1]
