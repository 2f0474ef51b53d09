"""Every source of randomness: set before anything random happens, saved and put back exactly."""

from __future__ import annotations

import base64
import contextlib
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries draw from the global generator
    torch.manual_seed(seed)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Ask torch for deterministic kernels; those without one warn and run.

    torch would also fill every new buffer with NaN then; that costs time and is switched off.
    """
    switches: Any = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        switches.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    switches.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        switches.fill_uninitialized_memory = before[2]


@contextlib.contextmanager
def repeatable(device: torch.device, strict: bool) -> Iterator[None]:
    """What is asked of a GPU, where `deterministic` costs and does not keep its promise.

    With its warnings instead of errors, attention's backward pass adds up in any order, while
    scattering and indexing already sort first.

    Args:
        device: of the run; on a CPU nothing changes.
        strict: the same bits again, by slower kernels; what has no such kernel raises. Otherwise
            torch's own choice, whose results differ by rounding from one time to the next.
    """
    if device.type != "cuda":
        yield
        return
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.deterministic,
    )
    if strict:  # read when cuBLAS starts; without it a product may differ from run to run
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(strict)
    torch.backends.cudnn.deterministic = strict
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.deterministic = before[2]


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of every generator that a run on this device draws from, for a JSON file."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(name), np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": _to_text(torch.get_rng_state()),
        "cuda": [_to_text(state) for state in cuda],
    }


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put back what `random_state` returned; of several GPUs (once all were kept) this one's."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(_from_text(state["torch"]))
    if state["cuda"] and device.type == "cuda":
        kept = state["cuda"][min(device.index or 0, len(state["cuda"]) - 1)]
        torch.cuda.set_rng_state(_from_text(kept), device)


def _to_text(state: torch.Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode()


def _from_text(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
