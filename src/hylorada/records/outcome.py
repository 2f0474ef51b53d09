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
    chain,
    in_one_line,
)
from hylorada.process.device import has_bf16
from hylorada.process.disk import unforeseen_disk_error
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
        record["error"] = in_one_line(known) or type(known).__name__
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
    if (stopped := _stop_beneath(error)) is not None:
        return stopped
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
        # A smaller micro-batch is no hint: training itself has come down to a single sequence.
        hints = [
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
    return unforeseen_disk_error(error, directory) or error


def _stop_beneath(error: BaseException) -> Interrupted | None:
    """The signal that broke into a library, which made an error of its own of it.

    Or its cleaning up did, which a signal finds half done: neither is what ended the run.
    """
    stops = (e for e in chain(error) if isinstance(e, Interrupted) and e.at_once)
    return next(stops, None)


def _fewer_bits(precision: str, record: dict[str, Any]) -> str:
    """The setting that computes in half of the bits on the device of a run, if it has one."""
    device = torch.device((record.get("provenance") or {}).get("device") or "cpu")
    if precision in ("bf16", "fp16"):
        return ""
    if has_bf16(device):
        return "train.precision=bf16"
    return "train.precision=fp16" if device.type == "cuda" else ""


# What oneDNN says where it finds no memory; nothing of what it cannot compute ends so.
_ONEDNN = ("could not create a primitive", "could not create a memory object")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or text in _ONEDNN)
