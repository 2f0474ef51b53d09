"""Checkpoints that are complete and hashed, or do not exist.

`checkpoints/step-00000020/` holds

* `trainables.safetensors`: every parameter that trains, by its full name;
* `optimizer.safetensors`: AdamW's moments, as `<parameter name>/<moment>`;
* `best.safetensors`, with `train.keep_best`: the parameters with the best validation loss so far;
* `state.json`: step, counters, generators, and how long metrics.jsonl was;
* `MANIFEST.json`: size and sha256 of the others (safetensors notices a truncation, but no flipped
  bit).

A checkpoint is written under another name, flushed to the disk, and renamed: under its final name
it is whole. One that is damaged later is set aside as `.bad-step-...`, never chosen and never
deleted; one that cannot be read stays where it is, and the run is refused. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from hylorada.errors import DataError
from hylorada.process.disk import disk_errors, make_directory, sync, write_durably
from hylorada.process.fault_points import fault_point
from hylorada.process.ranks import Ranks
from hylorada.records.checkpoint_files import STEP, read_file, steps_in
from hylorada.records.result import parse_json

logger = logging.getLogger(__name__)

FORMAT = 1
_BAD = ".bad-"
_PARTIAL = ".partial-"

Named = Sequence[tuple[str, nn.Parameter]]
"""The trainable parameters, with their full names."""


@dataclass
class Checkpoint:
    """A checkpoint in memory, verified against its manifest."""

    path: Path
    state: dict[str, Any]
    trainables: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    best: dict[str, Tensor] = field(default_factory=dict)


class Damaged(Exception):
    """Why a checkpoint directory cannot be used."""


def save_checkpoint(
    directory: Path,
    state: dict[str, Any],
    trainables: Named,
    optimizer: torch.optim.Optimizer,
    keep: int,
    best: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write the checkpoint of ``state["step"]``, then delete all but the newest ``keep``.

    The ``best`` weights, where there are some, are part of each, so that none is lost with another.
    One that was written while steps were being skipped (``state["skipped_in_row"]`` above 0) takes
    no place among these: it stands beside them until another is written, so that a run which
    diverges leaves the checkpoints from before it did. A checkpoint of that step which is already
    there holds the same state and is left alone.

    Raises:
        DiskError: full or read-only; earlier checkpoints are untouched, the partial one is gone.
    """
    step = state["step"]
    final = directory / f"{STEP}{step:08d}"
    make_directory(directory)
    _remove_partial(directory)
    if not final.exists():
        fault_point("before_checkpoint", step)
        files = {
            "trainables.safetensors": _serialise({name: p.detach() for name, p in trainables}),
            "optimizer.safetensors": _serialise(_moments(trainables, optimizer)),
            **({"best.safetensors": _serialise(best)} if best else {}),
            "state.json": json.dumps({"format": FORMAT, **state}).encode(),
        }
        partial = directory / f"{_PARTIAL}{final.name}"
        with disk_errors(directory, need=sum(map(len, files.values()))):
            try:
                _write_all(partial, files, step)
                partial.rename(final)
                sync(directory)
            except OSError:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        fault_point("after_checkpoint", step)
    _prune(directory, keep)
    return final


def _serialise(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: t.cpu().contiguous() for name, t in tensors.items()})


def _moments(trainables: Named, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for name, parameter in trainables
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _write_all(partial: Path, files: dict[str, bytes], step: int) -> None:
    partial.mkdir()
    manifest = {}
    for name, data in files.items():
        write_durably(partial / name, data)
        manifest[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        fault_point("inside_checkpoint", step)
    write_durably(partial / "MANIFEST.json", json.dumps(manifest, indent=1).encode())
    sync(partial)


def load_newest(directory: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; None if none was ever written.

    Raises:
        DataError: there are checkpoints and every one is damaged (a fresh start must be asked for),
            or one that might be chosen cannot be read.
    """
    if not directory.is_dir():
        return None
    _remove_partial(directory)
    for path in reversed(steps_in(directory)):
        try:
            return read_checkpoint(path)
        except Damaged as why:
            aside = _set_aside(path)
            logger.warning("%s is damaged (%s); set aside as %s", path, why, aside.name)
    tried = sorted(p.name for p in directory.glob(f"{_BAD}*"))
    if tried:
        raise DataError(
            f"{directory}: no usable checkpoint, all are damaged ({', '.join(tried)}); "
            "start again with resume=never"
        )
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        Damaged: a file is missing, or has another size or hash.
        DataError: a file is there and cannot be read, or is of another format.
    """
    try:
        manifest = parse_json(read_file(path, "MANIFEST.json"))
        files = {}
        for name, expected in manifest.items():
            files[name] = data = read_file(path, name)
            if len(data) != expected["bytes"]:
                raise Damaged(f"{name} has {len(data)} bytes instead of {expected['bytes']}")
            if hashlib.sha256(data).hexdigest() != expected["sha256"]:
                raise Damaged(f"{name} does not match its sha256")
        state = parse_json(files["state.json"])
        if state.get("format") != FORMAT:
            raise DataError(
                f"{path}: of another version of hylorada (format {state.get('format')}, this one "
                f"reads {FORMAT}); use that version, or start again with resume=never"
            )
        best = files.get("best.safetensors")
        return Checkpoint(
            path,
            state,
            safetensors.torch.load(files["trainables.safetensors"]),
            safetensors.torch.load(files["optimizer.safetensors"]),
            {} if best is None else safetensors.torch.load(best),
        )
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Damaged(f"{Path(error.filename).name} is missing") from error
    except (
        KeyError, ValueError, TypeError, AttributeError, safetensors.SafetensorError,
    ) as error:  # fmt: skip
        raise Damaged(f"{type(error).__name__}: {error}") from error


def of_first(checkpoint: Checkpoint | None, ranks: Ranks) -> Checkpoint:
    """The checkpoint that the first process has read, on every process.

    Args:
        checkpoint: of the first process.
        ranks: the processes of the run.
    """
    if ranks.world == 1 and checkpoint is not None:
        return checkpoint
    own = checkpoint or Checkpoint(Path(), {}, {}, {})
    given = [str(own.path), json.dumps(own.state)]
    parts = [own.trainables, own.optimizer, own.best]
    path, state = (ranks.bytes_of_first(text.encode()).decode() for text in given)
    read = [
        safetensors.torch.load(ranks.bytes_of_first(safetensors.torch.save(part))) for part in parts
    ]
    return Checkpoint(Path(path), json.loads(state), *read)


def refuse_other_parameters(checkpoint: Checkpoint, trainables: Named) -> None:
    """Refuse a checkpoint of another model.

    Raises:
        DataError: it holds other parameters than the model trains.
    """
    shapes = {name: tuple(p.shape) for name, p in trainables}
    saved = {name: tuple(t.shape) for name, t in checkpoint.trainables.items()}
    if shapes != saved:
        differing = sorted(n for n in shapes | saved if shapes.get(n) != saved.get(n))
        raise DataError(
            f"{checkpoint.path}: it holds other parameters than this run trains, first "
            f"{differing[0]}; use another directory or resume=never"
        )


def restore(checkpoint: Checkpoint, trainables: Named, optimizer: torch.optim.Optimizer) -> None:
    """Put parameters and moments back, bit for bit.

    Raises:
        DataError: the checkpoint holds other parameters than the model trains.
    """
    refuse_other_parameters(checkpoint, trainables)
    for name, parameter in trainables:
        with torch.no_grad():
            parameter.copy_(checkpoint.trainables[name])
        moments = {
            key.removeprefix(f"{name}/"): value
            for key, value in checkpoint.optimizer.items()
            if key.startswith(f"{name}/")
        }
        if moments:
            # AdamW keeps its step counter beside the parameter only if it is fused.
            with_step = parameter.device if optimizer.defaults.get("fused") else "cpu"
            optimizer.state[parameter] = {
                key: value.to(with_step if key == "step" else parameter.device, copy=True)
                for key, value in moments.items()
            }


def _set_aside(path: Path) -> Path:
    name = f"{_BAD}{path.name}"
    number = 0
    while (aside := path.with_name(f"{name}-{number}" if number else name)).exists():
        number += 1
    with disk_errors(path):
        path.rename(aside)
    return aside


def _remove_partial(directory: Path) -> None:
    for path in directory.glob(f"{_PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)


def _is_skipping(path: Path) -> bool:
    """Whether the step before it moved no weights; of one that cannot be read nobody knows."""
    try:
        return parse_json((path / "state.json").read_bytes()).get("skipped_in_row", 0) > 0
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _prune(directory: Path, keep: int) -> None:
    *older, newest = steps_in(directory)
    good = [path for path in (*older, newest) if not _is_skipping(path)]
    kept = {newest, *good[-max(keep, 1) :]}
    for path in older:
        if path in kept:
            continue
        # Renamed first: an interrupted deletion must not leave half a checkpoint under its name.
        doomed = path.with_name(f"{_PARTIAL}{path.name}-old")
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
