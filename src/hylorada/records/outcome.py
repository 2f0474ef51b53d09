"""However a run ends, it leaves a record, a traceback in run.log and one line for the user."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hylorada.errors import (
    ConfigError,
    DiskError,
    DivergedError,
    HyloradaError,
    Interrupted,
    OutOfMemoryError,
)
from hylorada.process.device import has_bf16
from hylorada.process.disk import disk_error
from hylorada.process.log import LogError
from hylorada.records.result import write_result


@contextlib.contextmanager
def recorded(directory: Path, record: dict[str, Any], log: LogError) -> Iterator[None]:
    """Write result.json when the block ends, well or not.

    What torch and the operating system raise becomes the error that a user can act on.
    """
    try:
        yield
    except BaseException as error:
        known = explained(error, directory, record)
        record["status"] = _status(known)
        record["error"] = " ".join(str(known).split()) or type(known).__name__
        log(known)
        with contextlib.suppress(DiskError):  # the disk may be what failed
            write_result(directory, record)
        if known is error:
            raise
        raise known from error
    record["status"] = "ok"
    write_result(directory, record)


def exit_code(error: BaseException | None) -> int:
    """What the command would return."""
    if error is None:
        return 0
    return error.exit_code if isinstance(error, HyloradaError) else 1


def _status(error: BaseException) -> str:
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return "interrupted"
    return "diverged" if isinstance(error, DivergedError) else "failed"


def explained(error: BaseException, directory: Path, record: dict[str, Any]) -> BaseException:
    """The error in the user's terms; the same one if it is so already, or a bug."""
    if isinstance(error, HyloradaError):
        return error
    if isinstance(error, SystemExit):  # of a library: it would end a sweep as well
        return RuntimeError(f"a library asked the process to exit ({error.code})")
    if is_out_of_memory(error):
        train = record["config"]["train"]
        if train is None:  # an adapter that is only measured
            return OutOfMemoryError(
                f"out of memory at length {record['length']}; try a shorter length"
            )
        hints = [
            f"train.micro_batch_size={train['micro_batch_size'] // 2}"
            if train["micro_batch_size"] > 1
            else "",
            "" if train["gradient_checkpointing"] else "train.gradient_checkpointing=true",
            _fewer_bits(train["precision"], record),
            "a shorter length",
        ]
        return OutOfMemoryError(
            f"out of memory at length {record['length']}; try {', '.join(filter(None, hints))}"
        )
    missing = re.match(r"(\S+) does not have a deterministic implementation", str(error))
    if isinstance(error, RuntimeError) and missing:
        return ConfigError(
            f"train.deterministic=true: {missing[1]} has no kernel on this device that gives the "
            "same bits again; set it to false"
        )
    return disk_error(error, directory) or error


def _fewer_bits(precision: str, record: dict[str, Any]) -> str:
    """The setting that computes in half of the bits on the device of a run, if it has one."""
    device = torch.device((record.get("provenance") or {}).get("device") or "cpu")
    if precision in ("bf16", "fp16"):
        return ""
    if has_bf16(device):
        return "train.precision=bf16"
    return "train.precision=fp16" if device.type == "cuda" else ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
