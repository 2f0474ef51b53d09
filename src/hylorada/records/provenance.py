"""Where a number came from: code, versions, hardware, weights, text; how much memory it took."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import hylorada

_PACKAGES = (
    "torch", "transformers", "peft", "bitsandbytes", "datasets", "safetensors", "numpy",
)  # fmt: skip


def provenance(device: torch.device) -> dict[str, Any]:
    """Code, versions and hardware of this process."""
    return {
        "git": git_commit(Path(__file__).resolve().parent),
        "versions": {"python": platform.python_version(), **_versions()},
        "device": str(device),
        "hardware": hardware(device),
        "threads": torch.get_num_threads(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


class Text(Protocol):
    """What is read of a split."""

    label: str  # in words
    sha256: str


def add_texts(
    provenance: dict[str, Any], split: str, evaluated: Text, trained: Text | None = None
) -> None:
    """Put down what was read, in words ("pg19 test, 62 of 100 books"), and its hash, by split.

    Args:
        provenance: of a record; changed in place.
        split: that was measured.
        evaluated: its text.
        trained: what was trained on.
    """
    words = provenance.setdefault("dataset", {})
    hashes = provenance.setdefault("dataset_sha256", {})
    if trained is not None:
        words["train"], hashes["train"] = trained.label, trained.sha256
    if split == "train" and hashes.get("train") not in (None, evaluated.sha256):
        split = "train, evaluated"
    words[split], hashes[split] = evaluated.label, evaluated.sha256


def _versions() -> dict[str, str]:
    found = {"hylorada": hylorada.__version__}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def git_commit(folder: Path) -> str | None:
    """The commit of the checkout that this package runs from, ``-dirty`` if its files differ.

    None when it is installed as a wheel, or when git is not there.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True, text=True, timeout=10, check=True,
        ).stdout.strip()  # fmt: skip

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # not some other repository's
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def hardware(device: torch.device) -> str:
    """The processor's or accelerator's name, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {os.cpu_count()} cores"


def name_of(dtype: torch.dtype) -> str:
    """As records have it: float32, bfloat16."""
    return str(dtype).removeprefix("torch.")


def weights_sha256(model: nn.Module) -> str:
    """sha256 over every tensor of the model as loaded: name, type, shape, bytes, in name order.

    It names the weights, not the files they came from: the same model in one shard or five, or
    loaded from another folder, has the same hash. So has a bfloat16 model kept as it is, and the
    same in float32, which holds the same numbers.
    """
    return tensors_sha256(sorted(model.state_dict().items()))


def tensors_sha256(tensors: Iterable[tuple[str, Tensor]], of: str = "") -> str:
    """As `weights_sha256`, of tensors by name, in the order that they come in.

    Args:
        tensors: name and tensor.
        of: what else is to be told by the hash.
    """
    digest = hashlib.sha256(of.encode())
    for name, tensor in tensors:
        if tensor.dtype in (torch.bfloat16, torch.float16):
            tensor = tensor.float()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        data: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(memoryview(data.numpy()))
    return digest.hexdigest()


# Names, places and versions, and what the hash of the weights tells or the run's settings say.
_VOLATILE = {
    "_name_or_path", "name_or_path", "transformers_version", "architectures", "dtype",
    "torch_dtype", "_attn_implementation", "attn_implementation", "hylorada_trained_length",
}  # fmt: skip


def config_sha256(config: Any) -> str:
    """sha256 over a model's settings, which its weights do not tell: RoPE, epsilons and the like.

    It is that of the configuration as this version of transformers completes it. Take it before
    anything changes the model.

    Args:
        config: a transformers configuration.
    """

    def lasting(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {str(k): lasting(v) for k, v in value.items() if k not in _VOLATILE}

    text = json.dumps(lasting(config.to_dict()), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class PeakMemory:
    """The most memory used since `start`, in bytes: of the process on a CPU, allocated on a GPU.

    Linux can reset its high-water mark; where it cannot be reset (macOS, some containers), the
    process's own since its beginning is given.

    Attributes:
        counts: "host" or "device", in a record.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.counts = "device" if device.type == "cuda" else "host"

    def start(self) -> None:
        """Forget what was used before."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    def reserved(self) -> int | None:
        """Bytes that torch took of a GPU for them, gaps between tensors included; else None.

        The context of CUDA, about half a gigabyte, comes on top of both.
        """
        if self._device.type != "cuda":
            return None
        return torch.cuda.max_memory_reserved(self._device)

    def peak(self) -> int:
        """Bytes."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
