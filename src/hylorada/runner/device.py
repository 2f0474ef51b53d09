"""Which device a run uses and in which precision, refused in one line where the hardware cannot."""

from __future__ import annotations

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


def choose_bf16(precision: str, device: torch.device) -> bool:
    """Whether to run under bf16 autocast: ``auto`` does on a GPU that has it, never on a CPU.

    Raises:
        ConfigError: bf16 is asked for on hardware that would only emulate it.
    """
    if precision == "fp32":
        return False
    if device.type == "cuda":
        # Without emulation: before Ampere torch would emulate bf16, several times slower.
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        supported = cpu_has_bf16()
    if precision == "bf16" and not supported:
        raise ConfigError(
            f"train.precision=bf16: this {device.type} has no bf16 arithmetic; use fp32 or auto"
        )
    return supported and (precision == "bf16" or device.type == "cuda")


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 matrices itself (avx512_bf16, AMX, or ARM's bf16)."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
