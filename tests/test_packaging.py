"""What is shipped, and that it is found wherever it is installed."""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager
from packaging.requirements import Requirement
from packaging.version import Version

import hylorada
from hylorada import cli, compose
from hylorada.records.provenance import provenance

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_an_editable_install_reads_the_repository_s_conf() -> None:
    assert compose.conf_dir().samefile(ROOT / "conf")
    assert not (ROOT / "conf").is_symlink()  # a link ships no YAML


def test_constraints_pin_every_dependency_inside_its_range() -> None:
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    for requirement in map(Requirement, wanted):
        assert Version(pins[requirement.name]) in requirement.specifier, requirement


def test_every_command_has_its_function() -> None:
    for target in PROJECT["scripts"].values():
        module, _, name = target.partition(":")
        assert module == "hylorada.cli"
        assert callable(getattr(cli, name))


def test_the_version_stands_in_one_place(capfd: pytest.CaptureFixture[str]) -> None:
    assert "version" not in PROJECT
    assert ProjectMetadata(str(ROOT), PluginManager()).version == hylorada.__version__
    # what an older checkout has installed does not matter: the code says what runs
    assert provenance(torch.device("cpu"))["versions"]["hylorada"] == hylorada.__version__
    for target in PROJECT["scripts"].values():
        try:
            code = getattr(cli, target.partition(":")[2])(["--version"])
        except SystemExit as leaving:  # argparse's own
            code = leaving.code
        assert code == 0
        assert capfd.readouterr().out == f"{hylorada.__version__}\n"


def test_the_changelog_dates_this_version() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "[Unreleased]"
    released = re.fullmatch(r"\[(\S+)\] - (\d{4}-\d\d-\d\d)", headings[1])
    assert released
    assert released[1] == hylorada.__version__
    datetime.date.fromisoformat(released[2])


def test_make_knows_the_promised_targets() -> None:
    # under `make test` a child make inherits MAKEFLAGS and MAKELEVEL, and would name its directory
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    shown = subprocess.run(
        ["make", "help"], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    targets = {
        target
        for line in shown.stdout.splitlines()
        for target in re.split(r"\s{2,}", line)[0].split()
    }
    assert targets == {
        "help", "setup", "train", "smollm2", "test", "lint", "types", "audit", "reproduce", "clean",
        "plan", "table-t2-best", *(f"table-t{number}" for number in range(1, 10)),
    }  # fmt: skip


@pytest.mark.slow
def test_a_wheel_carries_conf_weights_and_licence_and_runs(tmp_path: Path) -> None:
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = ["wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([*pip, *build, "-w", str(wheels), str(ROOT)], check=True)
    (wheel,) = wheels.glob("hylorada-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder, inside in ((ROOT / "conf", "hylorada/conf"), (ROOT / "src/hylorada", "hylorada")):
        shipped = [p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        assert shipped
        for file in shipped:
            assert f"{inside}/{file.relative_to(folder).as_posix()}" in names
    assert "hylorada/py.typed" in names
    assert wheel.name.startswith(f"hylorada-{hylorada.__version__}-")
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "scripts/", "build/"))]

    install = ["install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*pip, *install, str(wheel)], check=True)
    code = (
        "import sys; from hylorada import cli, compose; sys.stderr.write(str(compose.conf_dir())); "
        "sys.exit(cli.train(['length=512', '--cfg', 'job', '-p', 'length.max_length']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "512"
    assert Path(done.stderr).samefile(site / "hylorada" / "conf")
