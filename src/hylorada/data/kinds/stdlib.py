"""The corpus `stdlib`: the source of the running Python's standard library.

It is real text on every machine that can run this package, needs no network, and has files far
longer than 32K tokens. The split is by top-level module or package *name*, never by content, so
that a module keeps its split in every version of Python.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from hylorada.config import SPLITS, DatasetConfig
from hylorada.data.documents import Document
from hylorada.data.kind import Kind, OwnText
from hylorada.errors import ConfigError, DataError

PRETRAIN_HELDOUT = "pretrain_heldout"
"""The text on which the shipped weights were validated: in none of `SPLITS`, never offered."""

# Chosen as the first of `hylorada-stdlib-<n>`, n = 0, 1, ..., that gives on CPython 3.11 7-10 % of
# the text to test, 4-7 % to validation and 3-5 % to the held-out part, and puts at least two
# documents above 110 KB (about 32K tokens) into test, one into validation, and at least four above
# 30 KB into each. No model was looked at.
_SALT = "hylorada-stdlib-106"
_BUCKETS = ((8, "test"), (13, "validation"), (17, PRETRAIN_HELDOUT), (100, "train"))

_SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__",
        "dist-packages",
        "idle_test",
        "lib-dynload",
        "site-packages",
        "test",
        "tests",
    }
)
_SKIPPED_PACKAGES = frozenset(
    {
        "__phello__",  # frozen-module fixtures
        "ensurepip",  # a loader of bundled wheels
        "pydoc_data",  # the language reference, dumped by a machine into one dictionary
        "turtledemo",
    }
)
_MACHINE_MADE = ("_sysconfigdata", "_opcode_metadata", "_missing_stdlib_info")

# Names whose text was moved to, or shares long passages with, another module in some version of
# Python: they take that module's split.
_SAME_TEXT = {
    "annotationlib": "typing",
    "ast_unparse": "ast",
    "genericpath": "path",
    "imp": "importlib",
    "lib2to3": "tokenize",
    "ntpath": "path",
    "nturl2path": "urllib",
    "posixpath": "path",
    "sre_compile": "re",
    "sre_constants": "re",
    "sre_parse": "re",
}


def group_name(relative: Path) -> str:
    """Return the name by which a file of the standard library is assigned to a split.

    A private implementation goes with its public face: `_pydecimal` is `decimal`, `_pyio` is `io`.

    Args:
        relative: Path of the file, relative to the standard library's folder.
    """
    top = relative.parts[0].removesuffix(".py")
    if top.startswith("__"):
        return top
    name = top.removeprefix("_py") if top.startswith("_py") else top.lstrip("_")
    return _SAME_TEXT.get(name, name)


def split_of(group: str) -> str:
    """Return the split of a group: a function of its name alone."""
    digest = hashlib.sha256(f"{_SALT}:{group}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64 * 100
    return next(split for bound, split in _BUCKETS if position < bound)


def read_stdlib(split: str, root: Path | None = None) -> Iterator[Document]:
    """Yield the documents of one split, sorted by path.

    Args:
        split: One of `SPLITS`, or `PRETRAIN_HELDOUT` for the evaluation of the shipped weights.
        root: The standard library's folder. Default: that of the running Python.

    Yields:
        One document per source file; its name is the path relative to `root`, with `/`.

    Raises:
        ValueError: `split` is unknown.
        DataError: There is no standard library to read as files.
    """
    if split not in (*SPLITS, PRETRAIN_HELDOUT):
        raise ValueError(f"unknown split {split!r} of the corpus stdlib: use one of {SPLITS}")
    folder = Path(sysconfig.get_paths()["stdlib"]) if root is None else Path(root)
    paths = source_files(folder)
    if not paths:
        raise DataError(
            f"the corpus stdlib found no standard library source (*.py) in {folder}: it may be "
            "missing or zipped; use a Python installed with its library as files, or choose "
            "another dataset (dataset=local path=...)"
        )
    return _read(folder, paths, split)


def _read(folder: Path, paths: list[Path], split: str) -> Iterator[Document]:
    for path in paths:
        if split_of(group_name(path)) != split:
            continue
        text = _decode(folder / path)
        if text is not None and text.strip() and not _is_codec_table(path, text):
            yield Document(path.as_posix(), text)


def source_files(folder: Path) -> list[Path]:
    """Return the files of the corpus, of all splits, sorted.

    Args:
        folder: The standard library's folder.
    """
    found = []
    for parent, folders, names in os.walk(folder):  # a folder that is not there has no files
        relative = Path(parent).relative_to(folder)
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        if not relative.parts:
            folders[:] = [
                name
                for name in folders
                if name not in _SKIPPED_PACKAGES and not name.startswith("config-")
            ]
        found += [
            relative / name
            for name in names
            if name.endswith(".py") and not name.startswith(_MACHINE_MADE)
        ]
    return sorted(found, key=Path.as_posix)


def _is_codec_table(relative: Path, text: str) -> bool:
    """Tell the tables in `encodings/` that `gencodec.py` made from the codecs that people wrote."""
    return relative.parts[0] == "encodings" and ("gencodec.py" in text or "decoding_table" in text)


def _decode(path: Path) -> str | None:
    """Return the text with plain newlines, or None where the file is not valid Python text."""
    try:
        with tokenize.open(path) as file:  # universal newlines, the declared encoding, no BOM
            return file.read()
    except (SyntaxError, UnicodeDecodeError):
        return None


def _read_split(dataset: DatasetConfig, split: str) -> Iterator[Document]:
    if dataset.path or dataset.hub_id:
        raise ConfigError(
            "dataset: stdlib is the running Python's own library and takes no path or hub_id; "
            "use dataset=local for files"
        )
    return read_stdlib(split)


def _files() -> list[Path]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    return [folder / name for name in source_files(folder)]


_PYTHON = platform.python_version()

KIND = Kind(
    read=_read_split,
    title="the standard library",
    sources=(),
    own=OwnText(f"the standard library of Python {_PYTHON}", _files, {"python": _PYTHON}),
)
