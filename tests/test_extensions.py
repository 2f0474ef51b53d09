"""One file in a folder, or an entry point of an installed package, is found by its name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hylorada.errors import ConfigError
from hylorada.extensions import Extensions


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Extensions:
    """A folder with two modules, and an installed package with a third."""
    folder = tmp_path / "a_house" / "parts"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "__init__.py").touch()
    (folder / "second.py").write_text("WHAT = 2")
    (folder / "first.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "elsewhere.py").write_text("WHAT = 3")
    metadata = tmp_path / "elsewhere-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: elsewhere\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[a_house.parts]\nadded = elsewhere\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return Extensions("a_house.parts", "a_house.parts")


def test_names_import_nothing_and_the_own_come_first(found: Extensions) -> None:
    assert found.names() == ["first", "second", "added"]


def test_a_part_is_loaded_from_the_folder_or_from_the_other_package(found: Extensions) -> None:
    assert [found.load("second").WHAT, found.load("added").WHAT] == [2, 3]


def test_an_unknown_name_is_refused_with_those_that_there_are(found: Extensions) -> None:
    with pytest.raises(ConfigError, match="no 'third'; use one of first, second, added"):
        found.load("third")


def test_a_name_that_is_there_twice_is_refused(found: Extensions, tmp_path: Path) -> None:
    (tmp_path / "a_house" / "parts" / "added.py").touch()
    with pytest.raises(ConfigError, match="added is there twice"):
        found.names()


def test_what_a_module_is_there_for_is_named_where_it_is_missing(
    found: Extensions, tmp_path: Path
) -> None:
    (tmp_path / "a_house" / "parts" / "broken.py").write_text("import not_there")
    assert found.part("second", "WHAT") == 2
    with pytest.raises(ConfigError, match="second defines no WHY"):
        found.part("second", "WHY")
    with pytest.raises(ConfigError, match="broken cannot be imported"):
        found.part("broken", "WHAT")
