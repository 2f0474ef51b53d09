"""Which files hold a split: on the local disk by their names, else from the hub."""

from __future__ import annotations

import re
from pathlib import Path

from hylorada.config import DatasetConfig
from hylorada.data.rows import SUFFIXES, suffix_of
from hylorada.errors import DataError

# `train.parquet`, `test-00000-of-00001.parquet`, `test-00000-of-00001-29a571947c0b5ccc.parquet`,
# `wiki.valid.raw`
_OFFICIAL = re.compile(
    r"(?:wiki\.)?(train|validation|valid|test)(?:-\d{5}-of-(\d{5})(?:-[0-9a-f]{16})?)?"
)
_PARTIAL = re.compile(r"(train|validation|valid|test)[-_]partial")
_SPLIT_OF_WORD = {"valid": "validation", "val": "validation", "dev": "validation"}


def split_files(dataset: DatasetConfig, split: str, folders: tuple[str, ...]) -> list[Path]:
    """Return the files of one official split, in order.

    Args:
        dataset: Its `path` is a folder in the hub's layout (or one above it) or one file of it;
            without a path the hub is asked.
        split: train, validation or test.
        folders: Where below `path` the files may lie; the first that has any is taken.

    Raises:
        DataError: No path, no files for this split, or not all of its shards.
    """
    if not dataset.path:
        if not dataset.hub_id:
            raise DataError(f"dataset {dataset.name}: neither dataset.path nor dataset.hub_id")
        from hylorada.data.hub import dataset_files

        return dataset_files(dataset.hub_id, dataset.hub_config, split, dataset.revision)
    path = local_path(dataset)
    if path.is_file():
        candidates = [path]
    else:
        nonempty = (_data_files(path / f) for f in folders if (path / f).is_dir())
        candidates = next((files for files in nonempty if files), [])
    return official_files(candidates, split, path, partial_allowed="partial" in dataset.name)


def local_path(dataset: DatasetConfig) -> Path:
    """The data set's path.

    Raises:
        DataError: It does not exist.
    """
    path = Path(dataset.path).expanduser()
    if not path.exists():
        raise DataError(f"dataset.path: {path} does not exist; give a file or a folder")
    return path


def official_files(
    candidates: list[Path], split: str, path: Path, *, partial_allowed: bool = False
) -> list[Path]:
    """Of some files, those that hold `split` by the names that the hub uses."""
    files, shards, partial = [], 0, []
    for file in candidates:
        stem = file.name.removesuffix(suffix_of(file))
        if (match := _OFFICIAL.fullmatch(stem)) and _split(match[1]) == split:
            files.append(file)
            shards = max(shards, int(match[2] or 1))
        elif (match := _PARTIAL.fullmatch(stem)) and _split(match[1]) == split:
            partial.append(file)
    if files and shards != len(files):
        names = ", ".join(f.name for f in files)
        raise DataError(f"{path}: {len(files)} of {shards} files of the {split} split ({names})")
    if files:
        return files
    if partial and partial_allowed:
        return partial
    found = ", ".join(f.name for f in candidates[:8]) or "no data file"
    if partial:
        raise DataError(
            f"{path}: {partial[0].name} is only a part of the {split} split; to use it, name the "
            "data set so (dataset.name with 'partial' in it)"
        )
    raise DataError(
        f"{path}: no file of the {split} split (found {found}); files are named "
        f"{split}.parquet or {split}-00000-of-00001.parquet"
    )


def labelled_split(relative: Path) -> str | None:
    """The split that a file of one's own is named for, by its name or a folder's; else None."""
    for part in reversed(relative.parts):
        match = re.match(r"(train|validation|valid|val|dev|test)(?![a-z])", part.lower())
        if match:
            return _split(match[1])
    return None


def _split(word: str) -> str:
    return _SPLIT_OF_WORD.get(word, word)


def _data_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_file() and suffix_of(p) in SUFFIXES)
