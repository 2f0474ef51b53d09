"""LongBench (Bai et al., arXiv 2308.14508) and LongBench-v2 (arXiv 2412.15204): test sets only.

LongBench is one archive, `data.zip`, of JSON-lines files. It is read member by member and never
unpacked; an archive that holds anything else, or tries to be more than it is, is refused.
"""

from __future__ import annotations

import logging
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hylorada.config import DatasetConfig
from hylorada.data.documents import Document
from hylorada.data.files import damaged
from hylorada.data.formats import read_rows
from hylorada.data.json_rows import json_lines
from hylorada.data.kind import Kind
from hylorada.data.rows import Row, RowAccount, document
from hylorada.data.sources import local_path
from hylorada.errors import ConfigError, DataError
from hylorada.settings.harness_tasks import LONGBENCH, LONGBENCH_E, longbench_file

log = logging.getLogger(__name__)

_EVEN = tuple(longbench_file(task).removesuffix("_e") for task in LONGBENCH_E)
TASKS = (
    *_EVEN,
    *(file for file in map(longbench_file, LONGBENCH) if file not in _EVEN),
    *map(longbench_file, LONGBENCH_E),
)

# The official archive is 114 MB, its largest member some 40 MB, and text shrinks 2 to 6 times.
_MAX_MEMBER = 1 << 29  # bytes, unpacked
_MAX_TOTAL = 1 << 32
_MAX_RATIO = 100  # unpacked to packed
# What zipfile raises on a damaged archive; nothing of ours is among them (a `DataError` passes).
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    EOFError,
    NotImplementedError,  # a later version of the format, patched data
    UnicodeDecodeError,  # the name of a member
)
_LITTER = ("__MACOSX/", ".DS_Store", "._")  # left by file managers; passed over


@dataclass(frozen=True)
class LongBenchRow:
    """One question of LongBench, fields as in its files.

    Attributes:
        task: Name of the file it stands in, with `_e` for LongBench-E.
        id: `_id`.
        input: The question or the last example; may be empty.
        context: The long text.
        answers: Every accepted answer.
        length: Words (characters in Chinese) of the text, as its authors counted them.
        language: en or zh.
        all_classes: The classes of a classification task.
    """

    task: str
    id: str
    input: str
    context: str
    answers: tuple[str, ...]
    length: int
    language: str
    all_classes: tuple[str, ...] | None


def read_longbench(dataset: DatasetConfig, split: str) -> Iterator[Document]:
    """Yield the contexts, without their questions, as documents for perplexity.

    Raises:
        DataError: A split other than test, or a source that is not available.
    """
    if split != "test":
        raise DataError(
            f"dataset {dataset.name}: LongBench is a test set and has no {split} split; train on "
            "another data set (pg19, wikitext103, local)"
        )
    source = _source(dataset)
    if source.suffix == ".json":
        yield from _v2_documents(dataset, source)
    else:
        for row in _v1_rows(dataset, source, dataset.tasks):
            yield document(f"{row.task}/{row.id}", row.context)


def read_tasks(dataset: DatasetConfig, tasks: Sequence[str] = ()) -> Iterator[LongBenchRow]:
    """Yield the rows of LongBench, task after task.

    Args:
        dataset: Its source.
        tasks: Which; empty: those of `dataset.tasks`, or else all present.

    Raises:
        ConfigError: A task that LongBench does not have.
        DataError: A task that is not there, or a source that is not available or cannot be trusted.
    """
    yield from _v1_rows(dataset, _source(dataset), tasks or dataset.tasks)


def _source(dataset: DatasetConfig) -> Path:
    """A zip, a folder of jsonl files, or the data.json of v2."""
    if not dataset.path:
        from hylorada.data.hub import hub_file

        name = "data.json" if dataset.hub_id.lower().endswith("v2") else "data.zip"
        return hub_file(dataset.hub_id, name, dataset.revision)
    path = local_path(dataset)
    if path.is_file():
        return path
    for folder in (path, path / "longbench"):
        for name in ("data.zip", "data.json"):
            if (folder / name).is_file():
                return folder / name
        for inner in (folder / "data", folder):
            if any((inner / f"{task}.jsonl").is_file() for task in TASKS):
                return inner
    raise DataError(
        f"{path}: no data.zip, data.json or <task>.jsonl; give LongBench's archive or its folder"
    )


def _v1_rows(dataset: DatasetConfig, source: Path, tasks: Sequence[str]) -> Iterator[LongBenchRow]:
    unknown = sorted(set(tasks) - set(TASKS))
    if unknown:
        raise ConfigError(
            f"dataset.tasks: LongBench has no {', '.join(unknown)}; it has {', '.join(TASKS)}"
        )
    account = RowAccount(f"dataset {dataset.name}, {source.name}")
    if source.is_dir():
        present = {t: source / f"{t}.jsonl" for t in TASKS if (source / f"{t}.jsonl").is_file()}
        for task in _chosen(tasks, present, source):
            for row in read_rows(present[task], []):
                yield from _question(row, task, account)
    else:
        yield from _zip_rows(source, tasks, account)
    account.close()


def _zip_rows(source: Path, tasks: Sequence[str], account: RowAccount) -> Iterator[LongBenchRow]:
    try:
        with zipfile.ZipFile(source) as archive:
            members = _members(source, archive)
            for task in _chosen(tasks, members, source):
                with archive.open(members[task]) as file:
                    for row in json_lines(Path(members[task].filename), file):
                        yield from _question(row, task, account)
    except _UNREADABLE as error:
        raise damaged(source, error) from error


def _members(source: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The task files of an archive, by task.

    Raises:
        DataError: Anything in it is not what LongBench's archive holds.
    """
    members: dict[str, zipfile.ZipInfo] = {}
    total = 0
    for info in archive.infolist():
        name = info.filename
        parts = PurePosixPath(name).parts
        if not parts:
            raise _hostile(source, name, "without a name")
        if name.startswith(("/", "\\")) or ".." in parts or "\\" in name or ":" in name:
            raise _hostile(source, name, "a path that leaves the archive")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise _hostile(source, name, "a link")
        if info.is_dir() or name.startswith(_LITTER[0]) or parts[-1].startswith(_LITTER[1:]):
            continue
        task = name.removeprefix("data/").removesuffix(".jsonl")
        if task not in TASKS or name != f"data/{task}.jsonl":
            raise _hostile(source, name, "not one of LongBench's files")
        if task in members:
            raise _hostile(source, name, "there twice")
        if info.flag_bits & 1:
            raise _hostile(source, name, "encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _hostile(source, name, f"compressed in another way (type {info.compress_type})")
        total += info.file_size
        ratio = info.file_size / max(info.compress_size, 1)
        if info.file_size > _MAX_MEMBER or total > _MAX_TOTAL or ratio > _MAX_RATIO:
            raise _hostile(
                source, name, f"{info.file_size / 2**20:.0f} MiB unpacked, {ratio:.0f} times packed"
            )
        members[task] = info
    return members


def _hostile(source: Path, member: str, reason: str) -> DataError:
    return DataError(
        f"{source} is refused: its member {member[:120]!r} is {reason}; nothing was read, get "
        "data.zip from the LongBench repository"
    )


def _chosen(tasks: Sequence[str], present: dict[str, Any], source: Path) -> list[str]:
    missing = [task for task in tasks if task not in present]
    if missing or not present:
        raise DataError(
            f"{source}: no {', '.join(missing) or 'task'} in it; it has "
            f"{', '.join(sorted(present)) or 'none of the tasks'} (dataset.tasks)"
        )
    return list(tasks) or [task for task in TASKS if task in present]


def _question(row: Row, task: str, account: RowAccount) -> Iterator[LongBenchRow]:
    """The row's question, or nothing where it is not one."""
    context = account.text(row, "context")
    if context is None or row.values is None:
        return
    values = row.values
    answers, classes = values.get("answers"), values.get("all_classes")
    wrong = [name for name in ("input", "language", "_id") if not isinstance(values.get(name), str)]
    if not _strings(answers):
        wrong.append("answers")
    if classes is not None and not _strings(classes):
        wrong.append("all_classes")
    if not isinstance(values.get("length"), int):
        wrong.append("length")
    if wrong:
        account.usable -= 1
        account.reject(row, f"{', '.join(wrong)} missing or of the wrong type")
        return
    assert isinstance(answers, list)
    yield LongBenchRow(
        task=task,
        id=values["_id"],
        input=values["input"],
        context=context,
        answers=tuple(answers),
        length=values["length"],
        language=values["language"],
        all_classes=None if classes is None else tuple(classes),
    )


_V2_TEXTS = (
    "_id", "domain", "sub_domain", "difficulty", "length", "question",
    "choice_A", "choice_B", "choice_C", "choice_D", "answer",
)  # fmt: skip


def _v2_documents(dataset: DatasetConfig, source: Path) -> Iterator[Document]:
    """The contexts of the questions that are whole."""
    if dataset.tasks:
        raise ConfigError("dataset.tasks: LongBench-v2 has no tasks; leave it empty")
    account = RowAccount(f"dataset {dataset.name}, {source.name}")
    for row in read_rows(source, []):
        context = account.text(row, "context")
        if context is None or row.values is None:
            continue
        values = row.values
        wrong = [name for name in _V2_TEXTS if not isinstance(values.get(name), str)]
        if wrong or values["answer"] not in ("A", "B", "C", "D"):
            account.usable -= 1
            account.reject(row, f"{', '.join(wrong or ['answer'])} missing or of the wrong type")
            continue
        yield document(f"longbench-v2/{values['_id']}", context)
    account.close()


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(x, str) for x in value)


KIND = Kind(read_longbench, "LongBench", splits=("test",), tasks=TASKS)
