"""Which device a run uses and in which precision, refused in one line where the hardware cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from hylorada.errors import ConfigError


def choose_device(wanted: str) -> torch.device:
    """``auto`` takes a GPU if there is one.

    Raises:
        ConfigError: cuda is asked for and not there.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ConfigError("device=cuda: torch sees no CUDA device here; use device=cpu or auto")
    if wanted == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def choose_autocast(precision: str, device: torch.device) -> torch.dtype | None:
    """What autocast computes in, None without it: ``auto`` is bf16 on a GPU that has it, else none.

    Raises:
        ConfigError: bf16 is asked for on hardware that would only emulate it, or fp16 on a CPU.
    """
    if precision == "fp32":
        return None
    if precision == "fp16":
        if device.type == "cpu":
            raise ConfigError(
                "train.precision=fp16: for GPUs without bf16 arithmetic, and slower on a CPU; use "
                "fp32 or auto"
            )
        return torch.float16
    supported = has_bf16(device)
    if precision == "bf16" and not supported:
        other = "fp16, fp32 or auto" if device.type == "cuda" else "fp32 or auto"
        raise ConfigError(
            f"train.precision=bf16: this {device.type} has no bf16 arithmetic; use {other}"
        )
    return torch.bfloat16 if supported and (precision == "bf16" or device.type == "cuda") else None


def choose_dtype(
    wanted: str, precision: str, device: torch.device, stored: Callable[[], torch.dtype]
) -> torch.dtype:
    """The precision of the frozen weights; bfloat16 goes with bf16 autocast, and only with it.

    Args:
        wanted: ``model.dtype``: auto, float32 or file.
        precision: ``train.precision``: auto, fp32, bf16 or fp16.
        device: of the model.
        stored: tells the precision of the files of weights; asked only where it matters.

    Raises:
        ConfigError: bfloat16 weights are to be kept where nothing computes in bf16.
    """
    if wanted == "float32" or (wanted == "auto" and device.type == "cpu"):
        return torch.float32
    if stored() != torch.bfloat16:
        return torch.float32
    if wanted == "auto":
        bf16 = choose_autocast(precision, device) == torch.bfloat16
        return torch.bfloat16 if bf16 else torch.float32
    if precision in ("fp32", "fp16"):
        raise ConfigError(
            f"model.dtype=file: the weights are bfloat16, and train.precision={precision} computes "
            f"in float{precision[2:]}; set model.dtype=float32, or train.precision to bf16 or auto"
        )
    if not has_bf16(device):
        raise ConfigError(
            f"model.dtype=file: the weights are bfloat16, and this {device.type} has no bf16 "
            "arithmetic; set model.dtype=float32"
        )
    return torch.bfloat16


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bf16 itself.

    Before Ampere, torch would emulate it on a GPU, several times slower.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return cpu_has_bf16()


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 matrices itself (avx512_bf16, AMX, or ARM's bf16)."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def refuse_too_many(processes: int) -> None:
    """Refuse more processes than this machine has GPUs, of which each takes one.

    Raises:
        ConfigError: saying how many there are.
    """
    count = torch.cuda.device_count()
    if processes > count:
        raise ConfigError(
            f"{processes} processes on this machine, which has {count} GPUs; start as many at "
            "most, or set device=cpu"
        )
