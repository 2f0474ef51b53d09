"""The notebook runs from top to bottom, as it stands: its cells in one process, without a hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK: dict[str, Any] = json.loads((ROOT / "docs/quickstart.ipynb").read_text(encoding="utf-8"))
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_one_and_holds_no_output_of_this_machine() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(ids) == len(set(ids))
    for cell in CELLS:
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
        # Neither magics nor shell: the same cells run as a plain program.
        compile("".join(cell["source"]), cell["id"], "exec")


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    program = tmp_path / "notebook.py"
    program.write_text("\n\n".join("".join(cell["source"]) for cell in CELLS), encoding="utf-8")
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1",
             "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| hylorada | 2,048 |" in done.stdout
    assert "import os" in done.stdout
    assert "causality: passed" in done.stdout
    records = [json.loads(p.read_text()) for p in tmp_path.rglob("result.json")]
    assert sorted(record["method"] for record in records) == ["baseline", "hylorada", "lora"]
