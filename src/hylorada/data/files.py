"""Which files of a folder are data, and how they are opened: forms, compression, encodings."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hylorada.errors import DataError, in_one_line

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (".csv", ".tsv")
TEXT_SUFFIXES = (".txt", ".raw", ".tokens")
SUFFIXES = (".parquet", *JSON_SUFFIXES, *TABLE_SUFFIXES, *TEXT_SUFFIXES)
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")  # of all but parquet, which compresses by itself
FORMS = f"{', '.join(SUFFIXES)} (all but parquet also with {', '.join(COMPRESSIONS)} after it)"

# What a stream raises that is not what its name says.
UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)

# Forms that text is often kept in, and how it becomes one that is read.
_CURES = {
    (".zip", ".tar", ".tgz", ".7z", ".rar", ".gz", ".bz2", ".xz", ".zst"): "unpack it",
    (
        ".arrow",
        ".feather",
    ): "write it again, as by datasets.load_from_disk(FOLDER).to_parquet(FILE)",
    (".pkl", ".pickle", ".pt", ".npy", ".npz"): "write its texts to JSON lines",
    (".xlsx", ".xls", ".ods"): "save it as CSV",
    (".pdf", ".docx", ".doc", ".rtf", ".epub", ".html", ".htm"): "save it as plain text",
    (".db", ".sqlite", ".sqlite3"): "export its table as CSV",
}
_BACKUP = re.compile(
    r".*~|#.*#|~\$.*|.*\.(bak|backup|orig|old|swp|swo|tmp|temp|part|partial|crdownload)",
    re.IGNORECASE,
)
_LITTER = ("__macosx", "__pycache__", "thumbs.db", "desktop.ini")
# What the `datasets` library writes beside the data.
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_LFS = b"version https://git-lfs.github.com/spec/"  # of a file that Git has not fetched
_LISTED = 4  # names in a message
LARGEST = 1 << 28  # bytes of one row
# What a packed file may grow to: text becomes 3 to 20 times as large, a bomb 1000 times and more.
_GROWTH = 200
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}  # in this order: the first begins with the third


@dataclass
class Listing:
    """What lies below a folder.

    Attributes:
        data: the files that are read, in the order of their paths.
        litter: files and folders that are hidden, or that systems and editors leave behind.
        others: files of other forms.
        dead: links that lead nowhere.
    """

    data: list[Path] = field(default_factory=list)
    litter: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    dead: list[Path] = field(default_factory=list)

    def left_out(self, folder: Path) -> str:
        """What is not read and why, in words; empty if all is."""
        parts = []
        if self.litter:
            what = "hidden or left by a system or an editor"
            parts.append(f"{len(self.litter)} {what} ({_named(self.litter, folder)})")
        if self.others:
            parts.append(f"{len(self.others)} of other forms ({_named(self.others, folder)})")
        if self.dead:
            parts.append(f"{len(self.dead)} links that lead nowhere ({_named(self.dead, folder)})")
        cures = {f"{cure(path)}: {path.name}" for path in self.others if cure(path)}
        told = f"; to have it read, {min(cures)}" if cures else ""
        return f"{' and '.join(parts)}{told}" if parts else ""


def list_files(folder: Path) -> Listing:
    """Look through a folder and those below it, linked ones too, each once.

    Raises:
        DataError: one of them cannot be listed, or a file lies there packed and unpacked.
    """
    found, seen = Listing(), set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        here = Path(place)
        state = here.stat()
        known = (state.st_dev, state.st_ino) in seen
        seen.add((state.st_dev, state.st_ino))
        if known:  # a link that leads back
            folders.clear()
            continue
        for name in [*folders, *names]:
            if is_litter(name):
                found.litter.append(here / name)
        folders[:] = [name for name in folders if not is_litter(name)]
        for path in (here / name for name in names if not is_litter(name)):
            if path.is_file():
                read = suffix_of(path) in _READ and path.name not in _DESCRIPTIONS
                (found.data if read else found.others).append(path)
            elif not path.exists():
                found.dead.append(path)
    for paths in (found.data, found.litter, found.others, found.dead):
        paths.sort()
    present = set(found.data)
    for path in found.data:
        if path.suffix.lower() in COMPRESSIONS and path.with_suffix("") in present:
            raise DataError(
                f"{path} and {path.with_suffix('').name} lie side by side and would be read twice; "
                "remove one of them"
            )
    return found


def _refuse(error: OSError) -> None:
    raise DataError(
        f"{error.filename} cannot be listed ({error.strerror}); make it readable"
    ) from error


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is nobody's text: `.git`, `__MACOSX`, `a.txt~`."""
    return name.startswith(".") or name.lower() in _LITTER or bool(_BACKUP.fullmatch(name))


def cure(path: Path) -> str:
    """What makes a file of another form one that is read; empty where nothing is known."""
    suffix = path.suffix.lower()
    return next((told for suffixes, told in _CURES.items() if suffix in suffixes), "")


def suffix_of(path: Path) -> str:
    """The ending that decides the form, a compression with what is before it."""
    suffixes = [s.lower() for s in path.suffixes[-2:]]
    return (
        "".join(suffixes)
        if suffixes[-1:] and suffixes[-1] in COMPRESSIONS
        else "".join(suffixes[-1:])
    )


def form_of(path: Path) -> str:
    """`suffix_of` without the compression; empty if such a file is not read."""
    suffix = suffix_of(path)
    return suffix if suffix in SUFFIXES else suffix.rpartition(".")[0] if suffix in _READ else ""


_READ = {
    *SUFFIXES,
    *(suffix + packed for suffix in SUFFIXES if suffix != ".parquet" for packed in COMPRESSIONS),
}


def unknown_form(path: Path) -> DataError:
    """The error for a file that is not read."""
    told = cure(path)
    return DataError(
        f"{path}: not of a form that is read; {told + ', or ' if told else ''}use {FORMS}"
    )


def damaged(path: Path, error: Exception) -> DataError:
    """The error for a file that exists and cannot be read through."""
    reason = in_one_line(getattr(error, "strerror", None) or error, 160)
    denied = isinstance(error, PermissionError)
    remedy = "make it readable" if denied else "replace it with a whole copy"
    return DataError(f"{path} cannot be read ({reason}); {remedy}")


def open_text(path: Path) -> io.BufferedIOBase:
    """Open a file for reading UTF-8: unpacked as its name says, recoded as its mark says.

    A mark of UTF-8 stays; UTF-16 and UTF-32 are known by theirs.

    Raises:
        DataError: Git holds the place of a file that it has not fetched.
    """
    file = _unpacked(path)
    head = _peek(file, len(_LFS))
    if head == _LFS:
        raise DataError(f"{path} is a pointer of Git LFS, not the text; fetch it with git lfs pull")
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return io.BufferedReader(_Recoded(file, encoding))
    return file


def lines(file: Any, most: int | None = None) -> Iterator[tuple[int, bytes | None]]:
    """The lines of a binary file with their numbers, from 1; None in place of one that is too long.

    Args:
        file: of which no more than that is held in memory.
        most: bytes of a line; default: `LARGEST`.
    """
    most = most or LARGEST
    number = 0
    while line := file.readline(most + 1):
        number += 1
        if len(line) <= most:
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(1 << 20)
        yield number, None


def _unpacked(path: Path) -> io.BufferedIOBase:
    packed = path.suffix.lower()
    file: Any
    if packed == ".gz":
        file = gzip.GzipFile(path)
    elif packed == ".bz2":
        file = bz2.BZ2File(path)
    elif packed == ".xz":
        file = lzma.LZMAFile(path)  # noqa: SIM115
    elif packed == ".zst":
        import pyarrow as pa

        file = pa.input_stream(str(path), compression="zstd")
    else:
        return path.open("rb")
    return io.BufferedReader(_Bounded(file, max(LARGEST, _GROWTH * path.stat().st_size)))


class _Bounded(io.RawIOBase):
    """What a packed file holds, up to a size.

    Raises:
        OSError: while reading, where it holds more.
    """

    def __init__(self, file: Any, most: int) -> None:
        self._file, self._most, self._read = file, most, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._file.read(len(buffer))
        self._read += len(data)
        if self._read > self._most:
            raise OSError(
                f"it unpacks to more than {self._most >> 20} MiB, {_GROWTH} times its size and "
                "more, as no text does"
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def _peek(file: io.BufferedIOBase, size: int) -> bytes:
    return file.peek(size)[:size]  # type: ignore[attr-defined]


class _Recoded(io.RawIOBase):
    """A stream of another encoding as UTF-8.

    Raises:
        OSError: while reading, what is not of that encoding.
    """

    def __init__(self, file: io.BufferedIOBase, encoding: str) -> None:
        self._file, self._encoding = file, encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._ready = b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._ready and not self._ended:
            data = self._file.read(1 << 16)
            self._ended = not data
            try:
                self._ready = self._decoder.decode(data, self._ended).encode()
            except UnicodeError as error:
                raise OSError(f"it begins as {self._encoding.upper()} and is not") from error
        part = self._ready[: len(buffer)]
        buffer[: len(part)] = part
        self._ready = self._ready[len(part) :]
        return len(part)

    def close(self) -> None:
        self._file.close()
        super().close()


def _named(paths: list[Path], folder: Path) -> str:
    listed = ", ".join(path.relative_to(folder).as_posix() for path in paths[:_LISTED])
    return listed if len(paths) <= _LISTED else f"{listed} and {len(paths) - _LISTED} more"
