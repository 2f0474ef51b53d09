"""Reading what the real W&B client wrote without a server."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path


def read_wandb_file(path: Path):
    """Records of a .wandb file: 7 bytes of header, then LevelDB's log format (32 KiB blocks).

    W&B's process may still be writing it: what is not whole ends the records.
    """
    from wandb.proto import wandb_internal_pb2

    data, at, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"[: len(data)]
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # the rest of a block that no header fits into
            at += 32768 - at % 32768
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        if kind == 0 or at + 7 + size > len(data):
            break
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # full, last
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def history(path: Path):
    return [
        {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in r.history.item}
        for r in read_wandb_file(path)
        if r.WhichOneof("record_type") == "history"
    ]


def summary(path: Path):
    """The last value under each name."""
    return {
        (item.key or "/".join(item.nested_key)): json.loads(item.value_json)
        for r in read_wandb_file(path)
        if r.WhichOneof("record_type") == "summary"
        for item in r.summary.update
    }


def wait_for_exit_record(path: Path) -> None:
    """W&B's own process writes the file; it is only waited for when ours ends."""
    until = time.monotonic() + 120
    while not any(r.WhichOneof("record_type") == "exit" for r in read_wandb_file(path)):
        assert time.monotonic() < until, f"{path} was not finished"
        time.sleep(0.05)
