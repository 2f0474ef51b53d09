"""What a run leaves behind: metrics.jsonl while it goes, result.json however it ends.

`metrics.jsonl` holds deterministic fields alone, so that an interrupted and continued run writes
the same bytes as an uninterrupted one; wall-clock times go to `timing.jsonl`. A table is a pure
function of `result.json`.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from hylorada.config import RunConfig, to_dict
from hylorada.errors import DataError
from hylorada.process.disk import disk_errors, read_errors, replace_file
from hylorada.process.redaction import redacted
from hylorada.records.manifest import altered, beginning_sha256, damage, record_sha256
from hylorada.records.schema import VERSION, record_flaws
from hylorada.settings.fingerprint import fingerprint, run_name

RESULT = "result.json"
_RESTORE = "restore it from a copy, or run again with resume=never"


class JsonLines:
    """An append-only file of one JSON object a line; each line is handed over whole.

    Args:
        path: the file; created when the first line is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, values: dict[str, Any]) -> None:
        """Write one line.

        Raises:
            DiskError: full or read-only.
            ValueError: a value is not finite; the caller must say so in words instead.
        """
        line = json.dumps(redacted(values), allow_nan=False) + "\n"
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(line)

    def sync(self) -> int:
        """Wait until the disk has every line; return the size in bytes."""
        with disk_errors(self.path), self.path.open("ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def truncate(self, size: int) -> None:
        """Forget the lines written after a checkpoint, which is about to be continued.

        Raises:
            DataError: the file is shorter than when the checkpoint was written.
        """
        with disk_errors(self.path):
            if self.refuse_shorter(size) > size:
                os.truncate(self.path, size)

    def refuse_shorter(self, size: int, sha256: str | None = None) -> int:
        """Refuse a file that is not what it was when a checkpoint was written; its size in bytes.

        Args:
            size: that it had then, in bytes.
            sha256: that these bytes had; None: it is not known.

        Raises:
            DataError: it is shorter, or begins otherwise.
        """
        present = self.path.stat().st_size if self.path.exists() else 0
        if present < size:
            raise DataError(
                f"{self.path}: {present} bytes, but it had {size} at the checkpoint; it was "
                "changed by hand, so start again with resume=never"
            )
        if sha256 and beginning_sha256(self.path, size) != sha256:
            raise DataError(
                f"{self.path}: damaged or changed by hand since the checkpoint; restore it, or "
                "start again with resume=never"
            )
        return present


def parse_json(data: bytes | str) -> Any:
    """What a small file of JSON holds.

    Raises:
        ValueError: it holds none, or nests it deeper than any file of a run does.
    """
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_result(run_dir: Path) -> dict[str, Any] | None:
    """The record of a directory; None if there is none, or a file that holds no object at all.

    Such a file is what a crash of the machine leaves; the run is then as if it had not ended.

    Raises:
        DataError: it cannot be read, is not what was written, or no record of a run.
    """
    path = run_dir / RESULT
    if not os.path.lexists(path):
        return None
    try:
        with read_errors(path, "make it readable, or run again with resume=never"):
            record = parse_json(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(record, dict):
        return None
    reason = _damaged(record)
    if reason:
        raise DataError(f"{run_dir / RESULT}: {reason}; {_RESTORE}")
    return record


def finished_record(run_dir: Path, products: str = "") -> dict[str, Any]:
    """The record of a run that came to its end, and left what it says that it left.

    All that measures, exports or loads a finished run begins here.

    Args:
        run_dir: the run's directory.
        products: only files whose names begin so are looked at; an adapter's weights are only
            looked at for their size, since who loads them reads them whole.

    Raises:
        DataError: no record is there, one that is damaged, of a run that is not finished, or of an
            adapter that was only measured; or a file that it names is damaged or missing.
    """
    path = run_dir / RESULT
    with read_errors(path, "make it readable"):
        is_there = path.is_file()
    if not is_there:
        what = f"no {RESULT} here" if run_dir.exists() else "there is no such directory"
        raise DataError(f"run={run_dir}: {what}; give the directory of a run")
    try:
        record = open_record(path)
    except ValueError as error:
        raise DataError(f"{path}: {error}; {_RESTORE}") from error
    if record["status"] != "ok":
        raise DataError(
            f"run={run_dir}: this run is not finished (status {record['status']}); run it to its "
            "end first"
        )
    if record["config"]["train"] is None:
        raise DataError(
            f"run={run_dir}: the record of an adapter that was only measured; use the adapter "
            f"itself, adapter={record['config']['method'].get('adapter')}"
        )
    reason = damage(run_dir, record, products, weights=False)
    if reason:
        raise DataError(f"{reason}; restore it from a copy, or train it again")
    return record


def open_record(path: Path) -> dict[str, Any]:
    """The record in a file: that which was written, in a schema that this version reads.

    Raises:
        ValueError: the first thing that is wrong, in words and without the path.
    """
    try:
        if path.is_fifo():  # it would be waited for
            raise ValueError("cannot be read (it is a pipe)")
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    try:
        record = parse_json(data)
    except ValueError as error:
        raise ValueError(f"damaged, it is not JSON ({error})") from error
    reason = _damaged(record)
    if reason:
        raise ValueError(reason)
    whole: dict[str, Any] = record
    return whole


def _damaged(record: Any) -> str:
    """Why a value is no record of a run, or not the one that was written; empty if it is."""
    schema = record.get("schema") if isinstance(record, dict) else VERSION
    if isinstance(schema, int) and schema != VERSION:
        return (
            f"of another version of hylorada (schema {schema}, this one reads {VERSION}), which "
            "alone can read it"
        )
    if isinstance(record, dict) and altered(record):
        return "damaged or changed by hand, it does not match its own sha256"
    flaw = next(record_flaws(record), None)
    return f"damaged, or no record of a run: {flaw}" if flaw else ""


def write_result(run_dir: Path, record: dict[str, Any]) -> None:
    """Write result.json atomically, with its own hash; a value that is not finite becomes null.

    Args:
        run_dir: the run's directory.
        record: gets the hash, too.

    Raises:
        DiskError: full or read-only.
    """
    written = json.loads(to_json(record))
    record["sha256"] = written["sha256"] = record_sha256(written)
    replace_file(run_dir / RESULT, json.dumps(written, indent=1).encode())


def to_json(value: Any) -> bytes:
    """Indented JSON without secrets, in which a number that is not finite is null."""
    return json.dumps(finite(redacted(value)), indent=1, allow_nan=False).encode()


def blank_result(config: RunConfig) -> dict[str, Any]:
    """A record that knows what was asked and nothing else yet; see `schema.Record`."""
    return {
        "schema": VERSION,
        "status": "running",
        "error": None,
        "name": run_name(config),
        "fingerprint": fingerprint(config),
        "method": config.method.name,
        "length": config.length.max_length,
        "seed": config.seed,
        "model": config.model.name,
        "dataset": config.dataset.name,
        "metrics": {},
        "base": {},
        "left_out": {},
        "position_range": None,
        "parameters": None,
        "training": None,
        "integrity": None,
        "config": to_dict(config),
        "provenance": {},
    }


def finite(value: Any) -> Any:
    """The value with None in place of every number that is not finite; JSON has no such numbers."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
