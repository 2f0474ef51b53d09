"""Where a report lies, and how its files are written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hylorada.process.disk import make_directory, refuse_unwritable, replace_file

_REMEDY = "choose another folder with --out"


def default_out(folder: Path) -> Path:
    """Where the report on a folder, or on one record, lies."""
    return (folder if folder.is_dir() else folder.parent) / "report"


def refuse_out(out: Path) -> None:
    """Refuse a folder that no report can be written into, before anything is read or drawn.

    Raises:
        DiskError: it cannot be made or written.
    """
    refuse_unwritable(out, _REMEDY)


def write_files(out: Path, files: Mapping[str, str | bytes]) -> None:
    """Write files into a folder, each whole or not at all.

    Raises:
        DiskError: it cannot be written.
    """
    make_directory(out, _REMEDY)
    for name, content in files.items():
        # A path may hold bytes that are no text.
        data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
        replace_file(out / name, data, _REMEDY)
