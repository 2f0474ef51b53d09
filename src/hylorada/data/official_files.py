"""Which of some files hold a split, by the names that the hub and the data sets' authors use."""

from __future__ import annotations

import re
from pathlib import Path

from hylorada.data.files import suffix_of
from hylorada.data.splits import WORDS
from hylorada.errors import DataError

# `train.parquet`, `test-00000-of-00001.parquet`, `test-00000-of-00001-29a571947c0b5ccc.parquet`,
# `wiki.valid.raw`
_OFFICIAL = re.compile(
    r"(?:wiki\.)?(train|validation|valid|test)(?:-\d{5}-of-(\d{5})(?:-[0-9a-f]{16})?)?"
)
_PARTIAL = re.compile(r"(train|validation|valid|test)[-_]partial")


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


def is_official(file: Path) -> bool:
    """Whether a file is named as one of a split, or of a part of one."""
    stem = file.name.removesuffix(suffix_of(file))
    return bool(_OFFICIAL.fullmatch(stem) or _PARTIAL.fullmatch(stem))


def _split(word: str) -> str:
    return WORDS[word]
