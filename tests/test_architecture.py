"""docs/ARCHITECTURE.md describes the code as it is: its packages, layers, files and names."""

from __future__ import annotations

import ast
import re
import tomllib

import pytest
from helpers.markdown_files import ROOT, code

DOCUMENT = ROOT / "docs/ARCHITECTURE.md"
SOURCE = ROOT / "src/hylorada"
TEXT = DOCUMENT.read_text(encoding="utf-8")
# a file of src/hylorada, or a file and what it defines
NAMES = sorted({c.text for c in code(DOCUMENT) if re.fullmatch(r"[\w/]+\.py(::\w+)?", c.text)})
NOT_A_ROOM = {"__pycache__", "assets", "conf"}


def floors() -> list[list[str]]:
    """The first column of the table of floors."""
    table = TEXT.partition("## Layers and packages")[2].partition("\n\n`conf/`")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [re.findall(r"`(\w+)`", row) for row in rows]


def test_the_floors_are_those_that_the_import_rules_hold() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (contract,) = [c for c in project["tool"]["importlinter"]["contracts"] if c["name"] == "floors"]
    held = [{room.strip() for room in line.split("|")} for line in contract["layers"]]
    assert [set(rooms) for rooms in floors()] == held


def test_the_rooms_are_the_folders_that_are_there() -> None:
    there = {
        path.stem
        for path in SOURCE.iterdir()
        if (path.suffix == ".py" and path.stem != "__init__")
        or (path.is_dir() and path.name not in NOT_A_ROOM)
    }
    assert {room for rooms in floors() for room in rooms} == there


@pytest.mark.parametrize("name", NAMES)
def test_a_file_and_what_is_to_be_found_in_it_are_there(name: str) -> None:
    file, _, defined = name.partition("::")
    path = SOURCE / file
    assert path.is_file()
    if defined:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert defined in {
            node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)
        }


def test_enough_is_named_for_a_newcomer() -> None:
    assert len(NAMES) > 30
    assert "docs/ARCHITECTURE.md" in (ROOT / "README.md").read_text()
    assert "ARCHITECTURE.md#you-want-to-" in (ROOT / "CONTRIBUTING.md").read_text()


def test_each_word_has_one_meaning() -> None:
    table = TEXT.partition("## Glossary")[2]
    words = re.findall(r"^\| (\w+) \|", table, re.M)[1:]
    assert len(words) == len(set(words)) >= 20
