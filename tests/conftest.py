"""One thread for each test process: `make test` runs one process per core, and threads that wait
for each other on a busy core cost more than they gain on models this small."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_configure(config: Any) -> None:
    """The suite says what happens on a CPU; `-m cuda` alone sees the GPUs of the machine."""
    if config.option.markexpr.split()[:1] != ["cuda"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
