"""Finding the records below some folders, the failed and the damaged ones too."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hylorada.comparison.conditions import apart, beside, differing
from hylorada.errors import DataError
from hylorada.records.manifest import damage
from hylorada.records.result import open_record, parse_json

_LARGEST = 1e100  # of the numbers of a record: sums of products of such are finite


@dataclass(frozen=True)
class Record:
    """One run.

    Attributes:
        path: its directory, as found.
        data: its result.json.
        history: the lines of its metrics.jsonl; empty if there is none.
        timing: those of its timing.jsonl, which differ from one attempt to the next.
    """

    path: Path
    data: dict[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)
    timing: list[dict[str, Any]] = field(default_factory=list)

    @property
    def status(self) -> str:
        """How the run ended."""
        return self.data["status"]

    @property
    def ok(self) -> bool:
        """Whether the run came to its end."""
        return self.status == "ok"

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.data["seed"]

    def metric(self, name: str) -> dict[str, Any] | None:
        """A metric of the trained model; None if it was not measured."""
        return self.data["metrics"].get(name)

    def base(self, which: str, name: str) -> dict[str, Any] | None:
        """A metric of the untouched base; `which` is "extended" or "own_window"."""
        return (self.data["base"].get(which) or {}).get(name)

    def part(self, name: str) -> dict[str, Any]:
        """A part of the record; empty if the run did not come that far."""
        return self.data.get(name) or {}


@dataclass(frozen=True)
class Problem:
    """A record that was found and not used."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Collection:
    """What was found, in the order of paths."""

    records: list[Record]
    problems: list[Problem]


def collect(folders: Sequence[Path | str]) -> Collection:
    """Read every result.json below the folders.

    What cannot be read, a folder too, or misses a field is a `Problem`, not an exception. Of
    several records of one run (the same settings under the same conditions, copied or run twice)
    the first that is ok counts.

    Raises:
        DataError: a folder does not exist, or no record is below any of them.
    """
    roots = [Path(folder) for folder in folders]
    for root in roots:
        if not root.exists():
            raise DataError(f"there is no folder {root}; name one that runs lie in, as in outputs")
    found: list[Record] = []
    problems: list[Problem] = []
    seen: set[Path] = set()
    for path in (p for root in roots for p in _result_files(root, problems)):
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        try:
            record = read(path)
        except ValueError as error:
            problems.append(Problem(path, str(error)))
            continue
        place = next((i for i, other in enumerate(found) if _same(record, other)), None)
        if place is None:
            found.append(record)
            continue
        winner, loser = found[place], record
        if record.ok and not winner.ok:
            winner, loser = record, winner
            # In the place of the other, so that records stay in the order of paths.
            found[place] = winner
        reason = f"the same settings as {winner.path}, which is used"
        problems.append(Problem(loser.path / "result.json", reason))
    if not found:
        where = ", ".join(str(root) for root in roots)
        listed = "; ".join(f"{p.path}: {p.reason}" for p in problems[:3])
        raise DataError(
            f"no usable result.json below {where}{f' ({listed})' if listed else ''}; "
            "hylorada-train writes one for each run"
        )
    return Collection(found, problems)


def unfinished(folders: Sequence[Path | str]) -> list[Path]:
    """Directories of runs that have no record yet: running, or killed."""
    return [
        path.parent
        for folder in folders
        for path in sorted(Path(folder).rglob(".hydra"))
        if not (path.parent / "result.json").exists() and "earlier-" not in str(path.parent)
    ]


def _same(record: Record, other: Record) -> bool:
    """Whether two records are of one run, copied or made twice: nothing that is known differs."""
    if record.data["fingerprint"] != other.data["fingerprint"]:
        return False
    known = [apart(each.data) | beside(each.data) for each in (record, other)]
    return not differing(known)


def read(path: Path) -> Record:
    """Read and check one result.json.

    Raises:
        ValueError: what is wrong with it.
    """
    data = open_record(path)
    if key := _too_large(data):
        raise ValueError(f"{key} is too large to compute with (above {_LARGEST:g})")
    reason = damage(path.parent, data, weights=False, missing=False)
    if reason:
        raise ValueError(f"its run is left out: {reason}")
    known = (data.get("files") or {}).get("metrics.jsonl", {}).get("bytes")
    history = _lines(path.parent / "metrics.jsonl", known)
    return Record(path.parent, data, history, _lines(path.parent / "timing.jsonl", None))


def _too_large(value: Any, key: str = "") -> str:
    """The first number, by its dotted name, of which a square may be infinite; empty if none is."""
    if isinstance(value, float | int):
        return key if abs(value) > _LARGEST else ""
    inner: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    found = (_too_large(each, f"{key}.{name}" if key else str(name)) for name, each in inner)
    return next(filter(None, found), "")


def _lines(path: Path, size: int | None) -> list[dict[str, Any]]:
    """The lines that are whole; the last one of a killed run may not be.

    Args:
        path: a file of one JSON object a line.
        size: bytes of it that the record vouches for; None: all.
    """
    lines = []
    try:
        text = path.read_bytes()[:size].decode("utf-8", "replace")
    except OSError:
        return []
    for line in text.splitlines():
        try:
            value = parse_json(line.encode())
        except ValueError:
            continue
        if isinstance(value, dict):
            lines.append(value)
    return lines


def _result_files(root: Path, problems: list[Problem]) -> Iterator[Path]:
    if root.is_file():
        yield root
        return

    def tell(error: OSError) -> None:
        problem = Problem(Path(error.filename), f"cannot be read ({error.strerror})")
        if problem not in problems:  # folders may overlap
            problems.append(problem)

    for folder, inner, files in os.walk(root, onerror=tell):
        # Hidden folders are caches; earlier-N are attempts that were started afresh.
        inner[:] = sorted(
            name for name in inner if not name.startswith(".") and not name.startswith("earlier-")
        )
        if "result.json" in (*files, *inner):
            yield Path(folder) / "result.json"
