"""Writing so that a crash at any instant leaves the old file or the new one, never a half.

Also: one live run per directory, and what an operating system's refusal to write, or to read,
means to a user.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from hylorada.errors import DataError, DiskError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {
    errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR,
    errno.ENAMETOOLONG, errno.ELOOP, errno.EIO,
}  # fmt: skip
_REMEDY = "choose another output_root"
ELSEWHERE = "make it accessible, or name another place"
"""What to do about a place that no setting of hylorada names."""


def disk_error(
    error: BaseException,
    where: Path,
    need: int = 0,
    remedy: str = _REMEDY,
    refused: str = "cannot be written",
) -> DiskError | None:
    """What a failed write means to the user; None if the error is of another kind.

    Args:
        error: an OSError, or a library's error that only quotes one (safetensors does).
        where: what was being written.
        need: bytes that were to be written, if known.
        remedy: what to do when that place cannot be used.
        refused: what is not possible there.
    """
    number = error.errno if isinstance(error, OSError) else _quoted_errno(str(error))
    if number == errno.EFBIG:
        size = f" ({_megabytes(need)} are needed)" if need else ""
        return DiskError(
            f"{where}: {_largest_file()}{size}; raise that limit or {remedy}, then run the same "
            "command again"
        )
    if number in _FULL:
        room = f"free {_megabytes(_free(where))}" + (f", needs {_megabytes(need)}" if need else "")
        return DiskError(
            f"{where}: the disk is full or over its quota ({room}); "
            f"free some space or {remedy}, then run the same command again"
        )
    if number in _REFUSED:
        reason = os.strerror(number or 0)
        return DiskError(f"{where}: {refused} ({reason}); {remedy}")
    if number == errno.ENOENT and not where.parent.is_dir():
        return DiskError(
            f"{where}: its directory was removed while it was in use; run the same command again"
        )
    return None


@contextlib.contextmanager
def disk_errors(where: Path, need: int = 0, remedy: str = _REMEDY) -> Iterator[None]:
    """Turn the operating system's refusals into `DiskError`, and leave other errors alone."""
    try:
        yield
    except OSError as error:
        known = disk_error(error, where, need, remedy)
        if known is None:
            raise
        raise known from error


@contextlib.contextmanager
def read_errors(where: Path, remedy: str) -> Iterator[None]:
    """Turn refusals to read what is there into `DataError`; that nothing is there is left alone.

    Args:
        where: what is being read; the error itself may say it more closely.
        remedy: what to do.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"{error.filename or where}: cannot be read ({reason}); {remedy}"
        ) from error


def unforeseen_disk_error(
    error: BaseException, directory: Path, remedy: str = _REMEDY
) -> DiskError | None:
    """As `disk_error`, of a write or a read that nobody guarded: the error may say where it was.

    Args:
        error: an OSError, or a library's error that only quotes one.
        directory: of the run, which is blamed where the error names no place.
        remedy: what to do when that directory cannot be used.
    """
    named, refused = getattr(error, "filename", None), "cannot be read or written"
    where = Path(named) if isinstance(named, str | os.PathLike) else directory
    if not where.absolute().is_relative_to(directory.absolute()):
        remedy = ELSEWHERE
    return disk_error(error, where, remedy=remedy, refused=refused)


def _quoted_errno(text: str) -> int | None:
    known = _FULL | _REFUSED | {errno.EFBIG}
    return next((n for n in known if f"os error {n})" in text), None)


def _largest_file() -> str:
    """Why a file may not grow, where the disk itself has room."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit == resource.RLIM_INFINITY:
        return "larger than a file may be on this file system"
    return f"larger than this process may make a file (ulimit -f: {_megabytes(limit)})"


def _free(path: Path) -> int:
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free


def _megabytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


def make_directory(path: Path, remedy: str = _REMEDY) -> None:
    """Create a directory and its parents.

    Args:
        path: the directory.
        remedy: what to do when it cannot be created.

    Raises:
        DiskError: it cannot be created.
    """
    with disk_errors(path, remedy=remedy):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # no parent is missing: /proc and its like make none
            reason = os.strerror(errno.ENOENT)
            raise DiskError(f"{path}: cannot be made ({reason}); {remedy}") from error


def refuse_unwritable(path: Path, remedy: str = _REMEDY) -> None:
    """Refuse a directory that cannot be made or written, without making it.

    Args:
        path: the directory.
        remedy: what to do then.

    Raises:
        DiskError: its nearest existing parent is a file, or may not be written; no file can have
            such a name.
    """
    with (
        disk_errors(path, remedy=remedy),
        contextlib.suppress(FileNotFoundError, NotADirectoryError),
    ):
        path.lstat()
    existing = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))
    with disk_errors(path, remedy=remedy):
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(existing))
        if not os.access(existing, os.W_OK | os.X_OK):
            read_only = os.statvfs(existing).f_flag & os.ST_RDONLY
            number = errno.EROFS if read_only else errno.EACCES
            raise OSError(number, os.strerror(number), str(existing))


def write_durably(path: Path, data: bytes) -> None:
    """Write a file and wait until the disk has it (not atomic by itself)."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Wait until the disk has a file's content, or the names in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes, remedy: str = _REMEDY) -> None:
    """Write a file atomically: under its name stands the old content or the new one.

    Args:
        path: the file.
        data: its new content.
        remedy: what to do when it cannot be written.

    Raises:
        DiskError: full, read-only, or not permitted; the old content stands.
    """
    beside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with disk_errors(path, need=len(data), remedy=remedy):
        try:
            write_durably(beside, data)
            beside.replace(path)
            sync(path.parent)
        finally:
            beside.unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive(directory: Path, remedy: str = _REMEDY) -> Iterator[None]:
    """Hold a directory for one live run.

    The lock is the kernel's, so that of a killed run is gone with its process; only the note of who
    holds it may be left behind, and it is overwritten.

    Args:
        directory: is made if it is not there.
        remedy: what to do when it cannot be made or written.

    Raises:
        DiskError: a live run holds the directory, or it cannot be written.
    """
    make_directory(directory, remedy)
    owner = directory / ".lock-owner"
    lock = FileLock(directory / ".lock", timeout=0)
    with disk_errors(directory, remedy=remedy):
        try:
            lock.acquire()
        except Timeout:
            known = owner.read_text(errors="replace").strip() if owner.exists() else ""
            held_by = known or "another process"
            raise DiskError(
                f"{directory}: in use by a live run ({held_by}); wait until it ends or stop it"
            ) from None
    try:
        with disk_errors(directory, remedy=remedy):
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()
