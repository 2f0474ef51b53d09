"""Files that are there and cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def no_permission(path: Path) -> None:
    """Take the permission to read a file or folder away; skips the test where that stops nobody."""
    before = path.stat().st_mode
    path.chmod(0)
    if os.access(path, os.R_OK):
        path.chmod(before)
        pytest.skip("root reads every file")


def a_folder(path: Path) -> None:
    """Put a folder in the place of a file."""
    path.unlink()
    path.mkdir()
