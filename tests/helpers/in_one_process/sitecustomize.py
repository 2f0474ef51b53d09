"""Put first into PYTHONPATH, it makes one of the processes of a run fail, as TEST_FAILS says.

The processes are started as commands of their own, so that nothing can be changed in them from
where they are started.
"""

from __future__ import annotations

import os
from typing import Any


def _out_of_memory(step: int) -> None:
    import torch

    raise torch.OutOfMemoryError(f"no memory in step {step}")


def _full_disk(step: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))


def _bug(step: int) -> None:
    raise KeyError(f"a bug in step {step}")


def _refused(step: int) -> None:
    from hylorada.errors import IntegrityError

    raise IntegrityError("refused here alone")


def _install() -> None:
    fails = {
        "memory": _out_of_memory, "disk": _full_disk, "bug": _bug, "gate": _refused,
    }[os.environ["TEST_FAILS"]]  # fmt: skip
    from hylorada.training.step import OptimizerStep

    launch, backward = OptimizerStep.launch, OptimizerStep._backward
    under_way = 0

    def numbered(self: Any, step: int, *words: Any, **named: Any) -> Any:
        nonlocal under_way
        under_way = step
        return launch(self, step, *words, **named)

    def failing(self: Any, loss_model: Any, batch: Any, tokens: int) -> Any:
        if under_way == 3:
            fails(under_way)
        return backward(self, loss_model, batch, tokens)

    OptimizerStep.launch = numbered  # type: ignore[method-assign]
    OptimizerStep._backward = failing  # type: ignore[method-assign]


if os.environ.get("RANK") and os.environ.get("RANK") == os.environ.get("TEST_RANK"):
    _install()
