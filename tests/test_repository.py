"""What surrounds the code: the workflow, the hooks, the templates, the citation."""

from __future__ import annotations

import ast
import os
import shlex
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
FORMS = sorted(
    path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"
)


def load(name: str | Path) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_workflow_runs_what_ci_runs() -> None:
    workflow = load(".github/workflows/ci.yml")
    assert {"push", "pull_request"} <= set(workflow["on"])
    (job,) = workflow["jobs"].values()
    commands = [step["run"].strip() for step in job["steps"] if "run" in step]
    assert commands == [".ci/run"]
    assert os.access(ROOT / ".ci/run", os.X_OK)
    (python,) = [step["with"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
    # a text: 3.10 as a number would be 3.1
    assert python["python-version"] == "3.11"
    for file in python["cache-dependency-path"].split():
        assert (ROOT / file).is_file()
    # make reads it from the environment
    assert job["env"]["TORCH_INDEX"].endswith("/cpu")
    assert "TORCH_INDEX ?=" in (ROOT / "Makefile").read_text()


def test_the_hooks_name_commands_of_the_environment_and_fetch_nothing() -> None:
    repos = load(".pre-commit-config.yaml")["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    ci = (ROOT / ".ci/run").read_text()
    called = []
    for hook in repos[0]["hooks"]:
        assert hook["language"] == "system", hook["id"]
        command, *words = shlex.split(hook["entry"])
        folder, _, name = command.rpartition("/")
        assert folder == ".venv/bin"  # where `make setup` puts them
        assert shutil.which(name, path=str(Path(sys.executable).parent)), name
        called.append(" ".join([command, *(w for w in words if w != "--force-exclude")]))
    for command in called:
        assert command in ci
    assert {Path(c.split()[0]).name for c in called} == {"ruff", "lint-imports"}


def test_the_citation_has_the_keys_that_its_format_requires() -> None:
    citation = load("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert citation["type"] in ("software", "dataset")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["title"] == project["name"]
    assert citation["license"] == project["license"]
    assert citation["authors"] == project["authors"]
    assert not {"version", "date-released"} & set(citation)  # they have one place, elsewhere


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_is_one(path: Path) -> None:
    form = load(path)
    assert form["name"]
    assert form["description"]
    asked = [field for field in form["body"] if field["type"] != "markdown"]
    ids = [field["id"] for field in asked]
    assert len(ids) == len(set(ids))
    for field in asked:
        assert field["type"] in ("textarea", "input", "dropdown", "checkboxes")
        assert field["attributes"]["label"]
        if field["type"] == "dropdown":
            assert len(field["attributes"]["options"]) > 1
    assert any(field.get("validations", {}).get("required") for field in asked)


def test_who_reports_is_asked_for_what_a_cure_needs() -> None:
    forms = {path.stem: load(path)["body"] for path in FORMS}
    assert set(forms) == {"bug", "wrong_number", "request"}
    assert {field["id"] for field in forms["bug"]} >= {"command", "printed", "record"}
    assert {field["id"] for field in forms["wrong_number"]} >= {"oracle", "command", "record"}
    for name in ("bug", "wrong_number"):
        (record,) = [field for field in forms[name] if field["id"] == "record"]
        assert record["attributes"]["label"] == "result.json"
    assert isinstance(load(".github/ISSUE_TEMPLATE/config.yml")["blank_issues_enabled"], bool)
    assert ".ci/run" in (ROOT / ".github/PULL_REQUEST_TEMPLATE.md").read_text()


def test_what_hydra_keeps_to_itself_is_used_in_one_file_and_its_minor_version_is_pinned() -> None:
    def modules(path: Path) -> set[str]:
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        whole = {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
        return whole | {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}

    users = [
        path.relative_to(ROOT / "src/hylorada").as_posix()
        for path in (ROOT / "src").rglob("*.py")
        if any(name.startswith("hydra._internal") for name in modules(path))
    ]
    assert users == ["command_line/hydra_internals.py"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (hydra,) = [r for r in map(Requirement, project["dependencies"]) if r.name == "hydra-core"]
    lowest = next(Version(part.version) for part in hydra.specifier if part.operator == ">=")
    assert f"<{lowest.major}.{lowest.minor + 1}" in {str(part) for part in hydra.specifier}


def test_the_files_that_are_begun_first_are_there(request: pytest.FixtureRequest) -> None:
    conftests = request.config.pluginmanager.get_plugins()
    (first,) = {p.LONGEST for p in conftests if hasattr(p, "LONGEST")}
    for name in first:
        assert (ROOT / "tests" / name).is_file(), name
