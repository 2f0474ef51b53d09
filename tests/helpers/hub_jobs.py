"""Has `hub_client` read data sets and models from a hub, in a process of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SRC = Path(__file__).resolve().parents[2] / "src"


def parquet(columns: dict[str, list]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


ANSWERING = {
    "TEST_HUB_ANSWERS": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "300", "HF_HUB_ETAG_TIMEOUT": "300",
}  # fmt: skip
"""Variables for a hub that leaves no request without an answer: nothing is given up in between."""


def run_jobs(jobs: dict, home: Path, endpoint: str, **more: str) -> dict:
    """What became of each job, see `hub_client`, in a process with a cache and a hub of its own."""
    environment = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("HF_", "HUGGINGFACE")) and not k.lower().endswith("_proxy")
    }
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "PYTHONPATH": str(SRC),
                    "HF_HUB_DISABLE_XET": "1"} | more  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("hub_client.py"))],
        input=json.dumps(jobs), capture_output=True, text=True, env=environment, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)
