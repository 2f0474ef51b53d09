"""Which files hold a split: on the local disk by their names, else from the hub."""

from __future__ import annotations

import re
from pathlib import Path

from hylorada.config import DatasetConfig
from hylorada.data.files import form_of, is_litter, suffix_of
from hylorada.data.splits import WORDS
from hylorada.errors import DataError

# `train.parquet`, `test-00000-of-00001.parquet`, `test-00000-of-00001-29a571947c0b5ccc.parquet`,
# `wiki.valid.raw`
_OFFICIAL = re.compile(
    r"(?:wiki\.)?(train|validation|valid|test)(?:-\d{5}-of-(\d{5})(?:-[0-9a-f]{16})?)?"
)
_PARTIAL = re.compile(r"(train|validation|valid|test)[-_]partial")


def split_files(dataset: DatasetConfig, split: str, folders: tuple[str, ...]) -> list[Path]:
    """Return the files of one official split, in order.

    Args:
        dataset: Its `path` is a folder in the hub's layout (or one above it) or one file of it;
            without a path the hub is asked.
        split: train, validation or test.
        folders: Where below `path` the files may lie; the first that has any of such a name is
            taken.

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
        listed = [_data_files(path / f) for f in folders if (path / f).is_dir()]
        listed.sort(key=lambda files: not any(map(_is_official, files)))  # else the first that has
        candidates = next((files for files in listed if files), [])
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
    raw = {file.stem for file in candidates if file.suffix == ".raw"}
    for file in candidates:
        if file.suffix == ".tokens" and file.stem in raw:
            continue  # WikiText's other form of the same split
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


def _is_official(file: Path) -> bool:
    stem = file.name.removesuffix(suffix_of(file))
    return bool(_OFFICIAL.fullmatch(stem) or _PARTIAL.fullmatch(stem))


def _split(word: str) -> str:
    return WORDS[word]


def _data_files(folder: Path) -> list[Path]:
    files = (p for p in folder.iterdir() if p.is_file() and not is_litter(p.name))
    return sorted(p for p in files if form_of(p))
