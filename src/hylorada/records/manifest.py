"""What a finished run left, by size and hash, so that damage to it is found before it is used.

A record holds its own hash and those of the files beside it that are products of the run: the
adapter, metrics.jsonl, integrity.json. Records from before there were hashes have nothing to
compare, and pass.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SINGLE = ("metrics.jsonl", "integrity.json", "adapter/adapter_config.json")
_WEIGHTS = "*.safetensors"  # in adapter/
_GROWING = ".jsonl"  # a file to which later lines may be added

Files = dict[str, dict[str, Any]]


def describe(directory: Path, *only: str) -> Files:
    """Size and sha256 of the products that are there, by name from the run's directory.

    Args:
        directory: of the run.
        only: names; none: all.
    """
    weights = sorted(path.name for path in (directory / "adapter").glob(_WEIGHTS))
    names = only or (*_SINGLE, *(f"adapter/{name}" for name in weights))
    return {
        name: {"bytes": (directory / name).stat().st_size, "sha256": _sha256(directory / name)}
        for name in names
        if (directory / name).is_file()
    }


def damage(
    directory: Path,
    record: Mapping[str, Any],
    below: str = "",
    *,
    weights: bool = True,
    missing: bool = True,
) -> str | None:
    """What is wrong with the products of a run, in words: the first of them; None if nothing is.

    Args:
        directory: of the run.
        record: its result.json.
        below: only products whose names begin so.
        weights: whether to read the adapter's weights, and not only look at their size.
        missing: whether a product that is not there counts as damage.
    """
    for name, expected in (record.get("files") or {}).items():
        if not name.startswith(below):
            continue
        path, size = directory / name, expected["bytes"]
        try:
            found = path.stat().st_size
            if found < size or (found > size and not name.endswith(_GROWING)):
                return f"{path}: damaged (it has {found} bytes instead of {size})"
            if name.endswith(".safetensors") and not weights:
                continue
            if _sha256(path, size) != expected["sha256"]:
                return f"{path}: damaged (it does not match its sha256)"
        except (FileNotFoundError, NotADirectoryError):
            if missing:
                return f"{path}: missing"
        except OSError as error:
            return f"{path}: cannot be read ({error.strerror})"
    return None


def record_sha256(record: Mapping[str, Any]) -> str:
    """sha256 of a record as plain JSON values, without the hash that it holds of itself."""
    return plain_sha256({key: value for key, value in record.items() if key != "sha256"})


def plain_sha256(value: Any) -> str:
    """sha256 of plain JSON values, however a file spells them."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def beginning_sha256(path: Path, size: int) -> str:
    """sha256 of the first bytes of a file.

    Args:
        path: the file.
        size: how many bytes.
    """
    return _sha256(path, size)


def altered(record: Mapping[str, Any]) -> bool:
    """Whether a record is not what was written: changed by hand, or by a disk."""
    return "sha256" in record and record["sha256"] != record_sha256(record)


def _sha256(path: Path, size: int | None = None) -> str:
    """Of a file, or of its first bytes."""
    with path.open("rb") as file:
        if size is None or size == path.stat().st_size:
            return hashlib.file_digest(file, "sha256").hexdigest()
        return hashlib.sha256(file.read(size)).hexdigest()
