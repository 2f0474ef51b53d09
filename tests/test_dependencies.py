"""What the code imports is declared in pyproject.toml: nothing comes by way of another package."""

from __future__ import annotations

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*groups: str) -> set[str]:
    """Distributions of the core and of some extras."""
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *(line for group in groups for line in extras[group])]
    return {plain(Requirement(line).name) for line in wanted}


def imports(path: Path) -> list[tuple[str, bool]]:
    """Top-level names of other packages that a file imports, and whether only in a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = [str(node.module)]
        else:
            continue
        found += [(module.partition(".")[0], id(node) in lazy) for module in modules]
    return [(name, late) for name, late in found if name not in sys.stdlib_module_names]


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return packages_distributions()  # reads every installed package


def distributions(name: str) -> set[str]:
    return {plain(d) for d in _distributions().get(name, [name])}


def test_what_the_package_imports_is_declared():
    core = declared()
    every = declared(*(g for g in PROJECT["optional-dependencies"] if g != "dev"))
    seen = set()
    for path in sorted((ROOT / "src").rglob("*.py")):
        for name, late in imports(path):
            if name == "hylorada":
                continue
            seen |= distributions(name)
            # What only an extra brings may not be needed to import the module.
            allowed = every if late else core
            assert distributions(name) & allowed, f"{path.relative_to(ROOT)} imports {name}"
    assert not core - seen, "declared, and never imported"


@pytest.mark.parametrize("folder", ["tests", "scripts", "benchmarks"])
def test_what_development_imports_is_declared(folder):
    allowed = declared("dev")
    own = {path.stem for path in (ROOT / folder).rglob("*")} | {"hylorada", "conftest"}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for name, _ in imports(path):
            if name not in own:
                assert distributions(name) & allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_only_one_file_knows_wandb():
    found = [
        path.name
        for path in sorted((ROOT / "src").rglob("*.py"))
        if "wandb" in [name for name, _ in imports(path)]
    ]
    assert found == ["wandb_backend.py"]
