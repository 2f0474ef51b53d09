"""The commands and settings in the documents are what the programs take: a renamed key fails here.

Composed only; nothing is trained, and nothing is fetched.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from helpers.markdown_files import FILES, ROOT, Code, code, named

from hylorada import cli, compose
from hylorada.command_line.overrides import rewrite
from hylorada.config import RunConfig
from hylorada.errors import ConfigError
from hylorada.settings.fetched_models import FETCHED

PROGRAMS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
# What it says about the past, and what another program is asked for, is not a command of today.
TODAY = [path for path in FILES if named(path) != "CHANGELOG.md"]
SUBJECTS = ("run", "adapter", "chosen")
# What a recipe of EXTENDING.md adds; its commands are run by tests/evaluation/test_measurements.py.
ADDED = "mrr"
_SETTING = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*=\S+")


def commands(piece: Code) -> list[list[str]]:
    """The words of each command of ours in a piece, its program first."""
    text = piece.text.replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        first = re.search(r"(?:\S*/)?(hylorada-\w+)", line)
        if first is None or not re.fullmatch(r"(\w+=\S+ +)*", line[: first.start()].lstrip()):
            continue
        words = shlex.split(line[first.start() :], comments=True)
        found.append([first[1], *words[1:]])
    return found


def written() -> list[tuple[str, list[str]]]:
    """Where each command stands, and its words; each but once."""
    found = {}
    for path in TODAY:
        for piece in code(path):
            if piece.language in ("", "bash"):
                for words in commands(piece):
                    if not any(ADDED in word for word in words):
                        found.setdefault(tuple(words), f"{named(path)}:{piece.line}")
    return [(place, list(words)) for words, place in found.items()]


def settings() -> list[tuple[str, list[str]]]:
    """Settings that a text names outside of a command, as in `eval=full`."""
    ours = {field.name for field in dataclasses.fields(RunConfig)}
    ours |= {folder.name for folder in compose.conf_dir().iterdir()}
    found = {}
    for path in TODAY:
        for piece in code(path):
            # `processes=N`: a number that the reader chooses
            words = [re.sub(r"=[A-Z]$", "=2", word) for word in piece.text.split()]
            if piece.language or not words or not all(map(_SETTING.fullmatch, words)):
                continue
            if all(re.split(r"[.=]", word)[0] in ours for word in words):
                found.setdefault(tuple(words), f"{named(path)}:{piece.line}")
    return [(place, list(words)) for words, place in found.items()]


def compose_first(words: list[str]) -> None:
    """Compose the first cell of a sweep; the other options of its groups must be there."""
    first = []
    for word in words:
        key, _, values = word.partition("=")
        options = [values] if "[" in values else values.split(",")
        first.append(f"{key}={options[0]}")
        for option in options[1:]:
            if (group := compose.conf_dir() / key).is_dir():
                assert (group / f"{option}.yaml").is_file(), f"{key}={option}"
    with compose.opened_hydra() as hydra:
        compose.to_typed(compose.compose(hydra, rewrite(first)))


def shown(case: tuple[str, list[str]]) -> str:
    return " ".join(case[1])


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("case", written(), ids=shown)
def test_a_written_command_is_one(
    case: tuple[str, list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    place, (program, *words) = case
    assert program in PROGRAMS, place
    if not words or words in (["--help"], ["--version"]):
        return  # the name of the program, or what other tests run
    if "--config-dir" in words:
        return  # a recipe with a folder of its own, run by tests of docs/EXTENDING.md
    if program == "hylorada-train":
        # dry_run is a word of the command, not a setting
        plain = [word for word in words if "=" in word and not word.startswith("dry_run=")]
        flags = [word for word in words if "=" not in word]
        assert not set(flags) - {"-m", "--cfg", "job"}, place
        compose_first(plain)
    elif program == "hylorada-eval":
        subjects = [word for word in words if word.partition("=")[0] in SUBJECTS]
        assert len(subjects) == 1, place
        own = [*subjects, *(word for word in words if word.startswith("select="))]
        compose_first([word for word in words if word not in own])
        kind, _, folder = subjects[0].partition("=")
        if kind != "adapter" and folder:  # not the bare form
            assert cli.evaluate(words) == 3, place  # no such run: what is asked for may be
    elif program == "hylorada-fetch":
        assert words[0] in FETCHED, place  # it would be fetched
        assert len(words) == 1, place
    else:
        function = getattr(cli, PROGRAMS[program].partition(":")[2])
        assert function(words) == 3, f"{place}: {capfd.readouterr().err}"  # no such run


@pytest.mark.parametrize("case", settings(), ids=shown)
def test_a_written_setting_is_one(case: tuple[str, list[str]]) -> None:
    compose_first(case[1])


def test_targets_of_make_are_there() -> None:
    lines = re.findall(r"^([a-z0-9 -]+):", (ROOT / "Makefile").read_text(), re.M)
    rules = {target for line in lines for target in line.split()}
    asked = {
        target
        for path in TODAY
        for piece in code(path)
        if piece.language in ("", "bash")
        for target in re.findall(r"^make ([a-z0-9-]+)", piece.text, re.M)
    }
    assert {"setup", "train", "test"} <= asked <= rules


def test_a_renamed_key_would_be_seen(capfd: pytest.CaptureFixture[str]) -> None:
    piece = Code(
        ROOT / "README.md", 1, "bash", "A=b .venv/bin/hylorada-train -m seed=0 \\\n  x=1 # y\n# z\n"
    )
    assert commands(piece) == [["hylorada-train", "-m", "seed=0", "x=1"]]
    assert not commands(Code(ROOT / "README.md", 1, "", "the hylorada-train command"))
    assert cli.train(["method.rnak=3", "--cfg", "job"]) == 2
    compose_first(["length=512,2k", "method=lora,dora", "eval.lost_in_middle.scorings=[ranked]"])
    with pytest.raises(ConfigError):
        compose_first(["method=lora", "eval.lost_in_middle.exmaples=3"])
    with pytest.raises(AssertionError, match="method=no_such"):
        compose_first(["method=lora,no_such"])
    assert len(written()) > 10
    assert len(settings()) > 10
