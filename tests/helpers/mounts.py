"""Real file systems for one process: a small one that is soon full, a folder that is read-only.

The process gets a mount namespace of its own (with a user namespace, so that no root is needed);
nobody else sees the mounts, and they go with it.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

_NEW_MOUNTS, _NEW_USER = 0x00020000, 0x10000000
_READ_ONLY, _REMOUNT, _BIND = 1, 32, 4096


@functools.cache
def _possible() -> bool:
    code = "from helpers.mounts import own_mounts; own_mounts()"
    paths = os.pathsep.join(sys.path)
    return not subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths}, capture_output=True, check=False,
    ).returncode  # fmt: skip


def need_mounts() -> None:
    """Skip the test where the system allows no mounts of one's own."""
    if not sys.platform.startswith("linux") or not _possible():
        pytest.skip("this system lets no process have mounts of its own")


def own_mounts() -> None:
    """From here on this process sees mounts of its own; it may have no threads yet."""
    user, group = os.getuid(), os.getgid()
    _call("unshare", _NEW_USER | _NEW_MOUNTS)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def mount_small(folder: Path | str, size: int) -> None:
    """An empty file system of so many bytes over a folder."""
    _call("mount", b"none", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode())


def mount_read_only(folder: Path | str) -> None:
    """What lies in a folder can be read and not changed."""
    place = os.fsencode(folder)
    _call("mount", place, place, b"", _BIND, None)
    _call("mount", b"none", place, b"", _BIND | _REMOUNT | _READ_ONLY, None)


def _call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
