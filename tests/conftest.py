"""One thread for each test process: `make test` runs one process per core, and threads that wait
for each other on a busy core cost more than they gain on models this small."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# What the caller's own job, terminal or settings say is not about the runs of the tests: within a
# job of SLURM a run would be one of its tasks, and have that job started again.
FOREIGN = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_", "TORCHELASTIC_", "SLURM_",
    "SUBMITIT_", "HYLORADA_FAULT", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_ENDPOINT",
    "HF_TOKEN", "TRANSFORMERS_OFFLINE", "WANDB_", "MKL_NUM_THREADS", "COLUMNS", "LINES",
    "NO_COLOR", "FORCE_COLOR", "TTY_",
)  # fmt: skip
for name in [name for name in os.environ if name.startswith(FOREIGN)]:
    del os.environ[name]
# Who starts the suite by nohup, or in the background of a script, hands down that these signals
# are ignored, also to the processes that the tests send them to.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


def pytest_runtest_setup(item: Any) -> None:
    """A test draws its own random numbers, whichever tests ran before it in this process."""
    seed = zlib.crc32(item.nodeid.encode())
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


@pytest.fixture(autouse=True)
def _no_handler_stays() -> Iterator[None]:
    """What a test, a fixture of its file, or a library adds to loggers goes with its streams."""
    _without_handlers()
    yield
    _without_handlers()


def _without_handlers() -> None:
    names = [name for name in logging.root.manager.loggerDict if name.startswith("hylorada")]
    for logger in (logging.getLogger(), *map(logging.getLogger, names)):
        for handler in logger.handlers[:]:
            if not type(handler).__module__.startswith("_pytest"):
                logger.removeHandler(handler)


def pytest_configure(config: Any) -> None:
    """The suite says what happens on a CPU; `-m cuda` alone sees the GPUs of the machine."""
    if config.option.markexpr.split()[:1] != ["cuda"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
