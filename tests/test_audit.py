"""`make audit`: what is not known to be sound is never said to be."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "audit.py"
spec = importlib.util.spec_from_file_location("audit", SCRIPT)
assert spec is not None
assert spec.loader is not None
audit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(audit)

SOUND = {"name": "a", "version": "1", "vulns": []}
WEAK = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3", "4"]}]}
UNASKED = {"name": "c", "skip_reason": "Dependency not found on PyPI"}


def test_all_asked_and_none_weak_is_the_only_success():
    assert audit.judged([SOUND]) == (0, ["make audit: no known weakness in 1 packages"])
    code, lines = audit.judged([SOUND, WEAK, UNASKED])
    assert (code, lines[0]) == (1, "b 2: PYSEC-1, mended in 3, 4")
    code, lines = audit.judged([SOUND, UNASKED])
    assert code == 2
    assert "no answer for 1 of 2 packages (c); nothing is known of them" in lines[0]
    assert audit.judged([])[0] == 2


def test_the_index_is_asked_for_what_is_installed():
    packages = [{"name": "torch", "version": "2.13.0+cpu"}, {"name": "hylorada", "version": "1"}]
    assert audit.requirements(packages) == "torch==2.13.0\n"


def run(auditor: Path | str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(SCRIPT), sys.executable, str(auditor)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def fake(folder: Path, body: str) -> Path:
    """A program in place of pip-audit's Python."""
    program = folder / "auditor"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    return program


def test_without_a_network_it_fails_in_one_line(tmp_path):
    done = run(fake(tmp_path, "echo 'ConnectionError: pypi.org' >&2; exit 1"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "make audit: the package index cannot be asked (ConnectionError: pypi.org); nothing was "
        "audited\n"
    )
    # What pip-audit makes of an index that answers 404 to everything: success.
    said = json.dumps({"dependencies": [UNASKED]})
    done = run(fake(tmp_path, f"echo '{said}'"))
    assert done.returncode == 2
    assert "nothing is known of them" in done.stderr


def test_with_an_answer_it_says_so(tmp_path):
    done = run(fake(tmp_path, f"echo '{json.dumps({'dependencies': [SOUND]})}'"))
    assert (done.returncode, done.stderr) == (0, "")
    done = run(fake(tmp_path, f"echo '{json.dumps({'dependencies': [SOUND, WEAK]})}'; exit 1"))
    assert done.returncode == 1
    assert "PYSEC-1" in done.stdout
