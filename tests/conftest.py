"""One thread for each test process: `make test` runs one process per core, and threads that wait
for each other on a busy core cost more than they gain on models this small."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Who starts the suite by nohup hands that down to the processes whose terminals are hung up.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


# These files take the longest, by default or of what is slow. They are begun first, so that at the
# end no process waits long for another (`--dist loadfile --no-loadscope-reorder`).
LONGEST = (
    "runner/test_processes.py", "runner/test_ranks_of_a_run.py", "runner/test_compile.py",
    "runner/test_resume.py",
    "methods/test_sequence_split.py", "zoo/test_zoo.py", "runner/test_overlays.py",
    "commands/test_overview.py", "test_quickstart.py", "test_packaging.py", "test_scripts.py",
    "tracking/test_tracker_hangs.py", "data/test_hub.py", "benchmarks/test_gpu.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """The longest files first."""
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


def pytest_collection_finish() -> None:
    """What importing has left is not looked through again: that takes a third of a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_handler_stays() -> Iterator[None]:
    """What a test, or a library in it, adds to the root logger writes to streams of that test."""
    root = logging.getLogger()
    former = root.handlers[:]
    yield
    for handler in root.handlers[:]:
        if handler not in former:
            root.removeHandler(handler)


def pytest_configure(config: Any) -> None:
    """The suite says what happens on a CPU; `-m cuda` alone sees the GPUs of the machine."""
    if config.option.markexpr.split()[:1] != ["cuda"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
