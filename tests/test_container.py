"""The Dockerfile, read and, as far as no container is needed, run: nobody builds the image here."""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path, PurePosixPath

import pytest
from packaging.specifiers import SpecifierSet

import hylorada

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
DOCUMENT = (ROOT / "docs" / "SCALING.md").read_text(encoding="utf-8")


def instructions(text: str) -> list[tuple[str, str]]:
    """Each instruction with its words, continued lines joined, comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", "", "\n".join(lines))
    found = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    return [(name, rest.strip()) for name, rest in found]


TEXT = (ROOT / "Dockerfile").read_text()
INSTRUCTIONS = instructions(TEXT)
_LAST = max(i for i, (name, _) in enumerate(INSTRUCTIONS) if name == "FROM")
STAGES = [INSTRUCTIONS[:_LAST], INSTRUCTIONS[_LAST:]]


def of(stage: int, name: str) -> list[str]:
    return [words for each, words in STAGES[stage] if each == name]


def ignored(path: PurePosixPath) -> bool:
    """Whether .dockerignore leaves a file out: the last line that matches it or a folder of it."""
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if pattern and not pattern.startswith("#"):
            keep, pattern = pattern.startswith("!"), pattern.removeprefix("!")
            places = [path, *path.parents][:-1]
            names = [each.name if pattern.startswith("**/") else str(each) for each in places]
            if any(fnmatch.fnmatchcase(name, pattern.removeprefix("**/")) for name in names):
                out = not keep
    return out


def copied(stage: int) -> list[tuple[str, str]]:
    """(from the repository, to) of each COPY that takes nothing from another stage."""
    found = []
    for words in of(stage, "COPY"):
        if not words.startswith("--"):
            *sources, target = shlex.split(words)
            found += [(source, target) for source in sources]
    return found


def tracked() -> list[PurePosixPath]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [PurePosixPath(name) for name in listed.stdout.split("\0") if name]


def put_into(folder: Path, stage: int) -> None:
    """What a build copies into a stage, of the files that a clone has."""
    for source, target in copied(stage):
        for path in tracked():
            if not path.is_relative_to(source) or ignored(path):
                continue
            inside = path.name if target == "./" else f"{target}/{path.relative_to(source)}"
            (folder / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, folder / inside)


def test_all_that_it_copies_is_in_the_repository_and_in_the_context() -> None:
    files = tracked()
    sources = {source for stage in (0, 1) for source, _ in copied(stage)}
    assert sources >= {"pyproject.toml", "constraints.txt", "src", "conf"}
    for source in sources:
        inside = [path for path in files if path.is_relative_to(source)]
        assert inside, f"{source} is not in the repository"
        assert not [path for path in inside if ignored(path)]
    for name in (".git/config", ".venv/bin/python", "outputs/a/result.json", "tests/test_zoo.py"):
        assert ignored(PurePosixPath(name))
    assert ignored(PurePosixPath("src/hylorada/__pycache__/cli.cpython-311.pyc"))


def test_a_wheel_needs_no_more_than_what_is_copied() -> None:
    there = {source for source, _ in copied(0)}
    build = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {PROJECT["readme"], *PROJECT["license-files"], *build["force-include"]}
    needed |= {path.partition("/")[0] for path in build["packages"]}
    assert needed <= there
    (backend,) = PYPROJECT["build-system"]["requires"]
    assert backend.startswith("hatchling")
    assert "install --no-cache-dir -c constraints.txt hatchling" in of(0, "RUN")[0]


def test_versions_are_those_of_the_project() -> None:
    defaults = dict(words.partition("=")[::2] for name, words in INSTRUCTIONS if name == "ARG")
    assert defaults["PYTHON"] in SpecifierSet(PROJECT["requires-python"])
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert f'python-version: "{defaults["PYTHON"]}"' in workflow
    for words in (of(0, "FROM")[0], of(1, "FROM")[0]):
        assert words.startswith("python:${PYTHON}-slim")
    assert {*defaults["EXTRAS"].split(",")} <= {*PROJECT["optional-dependencies"]}
    # No version of a package is written down a second time.
    assert "==" not in TEXT.replace("'^torch=='", "")


@pytest.mark.parametrize("index", ["", "https://download.pytorch.org/whl/cpu"])
def test_torch_is_pinned_and_comes_first_from_the_index_that_is_asked(
    tmp_path: Path, index: str
) -> None:
    """The RUN lines by a real shell, with a `python` that notes its words."""
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$*" >> words\n')
    (tmp_path / "python").chmod(0o755)
    put_into(tmp_path, 1)
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / f"hylorada-{hylorada.__version__}-py3-none-any.whl").touch()
    for line in of(1, "RUN"):
        if line.startswith("python"):
            path = f"{tmp_path}:{os.environ['PATH']}"
            env = {"PATH": path, "TORCH_INDEX": index, "EXTRAS": "gguf,joblib"}
            subprocess.run(["sh", "-c", line], cwd=tmp_path, env=env, check=True)
    (pin,) = re.findall(r"^torch==\S+$", (ROOT / "constraints.txt").read_text(), re.M)
    first, second = (tmp_path / "words").read_text().splitlines()
    assert first == f"-m pip install --no-cache-dir {pin}{f' --index-url {index}' if index else ''}"
    wheel = f"dist/hylorada-{hylorada.__version__}-py3-none-any.whl[gguf,joblib]"
    assert second == f"-m pip install --no-cache-dir -c constraints.txt {wheel}"


def test_who_runs_it_and_where_its_outputs_are() -> None:
    (user,) = of(1, "USER")
    assert user == "hylorada"
    names = [name for name, _ in STAGES[1]]
    after = names[names.index("USER") :]
    assert "RUN" in after
    assert "VOLUME" in after
    home = f"/home/{user}"
    assert of(1, "WORKDIR")[-1] == home
    assert f'useradd --create-home --uid "$UID" {user}' in of(1, "RUN")[-2]
    (volumes,) = of(1, "VOLUME")
    assert volumes == f'["{home}/outputs", "{home}/.cache"]'
    assert of(1, "RUN")[-1] == "mkdir outputs .cache"
    (command,) = of(1, "ENTRYPOINT")
    # Not by a shell, which would keep signals to itself.
    assert command == '["hylorada-train"]'
    assert "hylorada-train" in PROJECT["scripts"]
    # Outputs lie where the settings have them, below the working directory.
    assert re.search(r"^output_root: outputs$", (ROOT / "conf/config.yaml").read_text(), re.M)


def test_it_names_no_place_of_a_machine_and_no_secret() -> None:
    places = set(re.findall(r"(?<![\w.:/$}-])/[\w.-]+", TEXT))
    assert places == {"/home", "/install", "/build", "/var"}
    assert not re.search(r"token|password|secret|api.?key|/root|[A-Za-z]:\\", TEXT, re.I)
    assert not [words for name, words in INSTRUCTIONS if name == "ADD"]


def test_the_document_uses_arguments_and_volumes_that_there_are() -> None:
    (section,) = re.findall(r"^## In a container\n(.*?)^## ", DOCUMENT, re.M | re.S)
    declared = {words.partition("=")[0] for name, words in INSTRUCTIONS if name == "ARG"}
    asked = set(re.findall(r"--build-arg (\w+)=", section))
    assert asked
    assert asked <= declared
    (volumes,) = of(1, "VOLUME")
    mounted = set(re.findall(r"-v \S+?:(/[\w./]+)", section))
    assert mounted == set(re.findall(r'"([^"]+)"', volumes))
    assert "has never been built" in section


@pytest.mark.slow
def test_the_wheel_builds_from_what_is_copied(tmp_path: Path) -> None:
    """The RUN line of the first stage, by this Python; what it installs is here already."""
    put_into(tmp_path, 0)
    (tmp_path / "programs").mkdir()
    wrapper = tmp_path / "programs" / "python"
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    env = {**os.environ, "PATH": f"{wrapper.parent}:{os.environ['PATH']}", "PIP_NO_INDEX": "1"}
    (line,) = of(0, "RUN")
    subprocess.run(["sh", "-c", line], cwd=tmp_path, env=env, check=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert wheel.name.startswith(f"hylorada-{hylorada.__version__}-")
