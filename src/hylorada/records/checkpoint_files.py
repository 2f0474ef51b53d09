"""Checkpoints as they lie there: which there are, and the content of their files. Without torch.

What is missing is told from what is there and cannot be read: only the former may be passed over.
"""

from __future__ import annotations

from pathlib import Path

from hylorada.process.disk import read_errors

STEP = "step-"


def steps_in(directory: Path) -> list[Path]:
    """The checkpoints of a run, the oldest first; none if there is no such directory.

    Raises:
        DataError: the directory cannot be read.
    """
    if not directory.is_dir():
        return []
    with read_errors(directory, "make it readable, or start again with resume=never"):
        return sorted(p for p in directory.iterdir() if p.name.startswith(STEP) and p.is_dir())


def read_file(checkpoint: Path, name: str) -> bytes:
    """A file of a checkpoint.

    Raises:
        FileNotFoundError: it is not there.
        DataError: it is there and cannot be read.
    """
    remedy = f"make it readable, or move {checkpoint.name} away to go on from an earlier one"
    with read_errors(checkpoint / name, remedy):
        return (checkpoint / name).read_bytes()
