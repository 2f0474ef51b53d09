"""Whether a known weakness is in an installed package: `make audit`.

    python scripts/audit.py PYTHON-OF-THE-ENVIRONMENT PYTHON-WITH-PIP-AUDIT

All that is installed is asked of the package index by pip-audit. Exit code 0: every package was
asked for, and none has a known weakness; 1: some have, and are listed; 2: it could not be asked, as
without a network. A package that the index does not answer for is never taken for sound.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

OWN = "hylorada"


def main(environment: str, auditor: str) -> int:
    """Ask, and say what came of it; the exit code."""
    frozen = _run([environment, "-m", "pip", "list", "--format", "json"])
    if frozen.returncode:
        return _not_asked(f"{environment} cannot list its packages", frozen.stderr)
    with tempfile.TemporaryDirectory() as folder:
        pinned = Path(folder) / "pinned.txt"
        pinned.write_text(requirements(json.loads(frozen.stdout)), encoding="utf-8")
        words = [auditor, "-m", "pip_audit", "--requirement", str(pinned), "--no-deps"]
        words += ["--disable-pip", "--progress-spinner", "off", "--format", "json"]
        asked = _run(words)
    try:
        found = json.loads(asked.stdout)["dependencies"]
    except (ValueError, LookupError, TypeError):
        return _not_asked("the package index cannot be asked", asked.stderr)
    code, lines = judged(found)
    print("\n".join(lines), file=sys.stderr if code == 2 else sys.stdout)
    return code


def requirements(packages: list[dict[str, str]]) -> str:
    """What is installed as lines of requirements; `2.13.0+cpu` is 2.13.0 to the index."""
    return "".join(
        f"{package['name']}=={package['version'].partition('+')[0]}\n"
        for package in packages
        if package["name"] != OWN
    )


def judged(found: list[dict[str, Any]]) -> tuple[int, list[str]]:
    """Exit code and lines for what pip-audit says of each package."""
    weak = [
        f"{package['name']} {package['version']}: {known['id']}"
        + (f", mended in {', '.join(known['fix_versions'])}" if known["fix_versions"] else "")
        for package in found
        for known in package.get("vulns", ())
    ]
    unasked = [package["name"] for package in found if "vulns" not in package]
    if weak:
        return 1, [*weak, f"make audit: {len(weak)} known weaknesses in {len(found)} packages"]
    if unasked or not found:
        named = ", ".join(unasked[:3]) + (", ..." if len(unasked) > 3 else "")
        return 2, [
            f"make audit: the package index has no answer for {len(unasked)} of {len(found)} "
            f"packages ({named}); nothing is known of them. Try again where pypi.org is reachable"
        ]
    return 0, [f"make audit: no known weakness in {len(found)} packages"]


def _run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=False)


def _not_asked(what: str, stderr: str) -> int:
    last = (stderr.strip().splitlines() or ["no reason given"])[-1]
    print(f"make audit: {what} ({last[:300]}); nothing was audited", file=sys.stderr)
    return 2


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
