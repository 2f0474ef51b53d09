"""Files from the hub, each compared with the hash that its repository states.

The hub's cache names large files by their sha256 and small ones by what Git calls them, a sha1. A
file that came damaged is downloaded once more; damaged again, it is named. A download that stands
still is given up after half a minute.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from hylorada.errors import DataError, HyloradaError, chain, in_one_line

log = logging.getLogger(__name__)

REQUEST = 10.0  # seconds for one answer
_READ = 3  # seconds without a byte, six times in a row, before a download is given up
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")
_SMALL = 1 << 26  # bytes of a file that is looked at for any failure

T = TypeVar("T")


def download(hub_id: str, name: str, commit: str, way: str) -> Path:
    """Download one file of a data set, once more if it is not what the repository holds.

    Args:
        hub_id: Repository, as `owner/name`.
        name: Of the file, in the repository.
        commit: Of the repository.
        way: What to do without the hub, for a message.

    Raises:
        DataError: It came damaged twice.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    for again in (False, True):
        try:
            with _impatient():
                path = Path(
                    hf_hub_download(
                        hub_id,
                        name,
                        repo_type="dataset",
                        revision=commit,
                        etag_timeout=REQUEST,
                        force_download=again,
                    )
                )
        except (HfHubHTTPError, LocalEntryNotFoundError):
            raise
        except OSError as error:  # not as long as it should be
            if again:
                raise
            reason = in_one_line(error, 300)
            log.warning("dataset %s: %s: %s; downloading it again", hub_id, name, reason)
            continue
        if _is_whole(path.resolve()):
            return path
        log.warning("dataset %s: %s is not what the repository holds", hub_id, name)
    raise _twice(f"dataset {hub_id}", path, name, way)


def read_model(hub_id: str, revision: str, way: str, read: Callable[[], T]) -> T:
    """What a function makes of the files of a model, which the hub's clients download for it.

    What they had to download is looked at afterwards. Files that were there before are taken as
    they are, unless reading them fails.

    Args:
        hub_id: Repository, as `owner/name`.
        revision: Commit, branch or tag, for a message; empty: main.
        way: What to do without the hub, for a message.
        read: Downloads and reads; called twice where a file came damaged.

    Raises:
        DataError: A file is damaged; it is named.
    """
    from huggingface_hub import constants, file_download

    name = file_download.repo_folder_name(repo_id=hub_id, repo_type="model")
    folder = Path(constants.HF_HUB_CACHE) / name
    what = f"model.path={hub_id}" + (f" (revision {revision})" if revision else "")
    known = _known(folder)
    for again in (False, True):
        failure: Exception | None = None
        try:
            with _impatient():
                result = read()
        except HyloradaError:
            raise
        except Exception as error:  # the clients and transformers raise some twenty kinds
            failure = error
        new = {blob for blob in _blobs(folder) if blob not in known}
        damaged = sorted(blob for blob in new if not _is_whole(blob))
        known |= new.difference(damaged)
        if not damaged:
            if failure is None:
                return result
            if stale := _first_damaged(known, failure):
                at = _name_in(folder, stale)
                raise DataError(
                    f"{what}: {at} in the hub's cache is damaged; delete {stale}, so that it is "
                    f"downloaded again, or {way}"
                ) from failure
            raise failure
        at = _name_in(folder, damaged[0])
        if again:
            raise _twice(what, folder / "blobs" / damaged[0].name, at, way) from failure
        log.warning("%s: %s is not what the repository holds; downloading it again", what, at)
        for blob in damaged:
            blob.unlink()
    raise AssertionError("unreachable")


def _twice(what: str, path: Path, name: str, way: str) -> DataError:
    return DataError(
        f"{what}: {name} was downloaded twice and is damaged; delete {path} and try later, or {way}"
    )


@functools.cache
def _known(folder: Path) -> set[Path]:
    """The files of a repository that were in the cache when this process first looked."""
    return set(_blobs(folder))


def _blobs(folder: Path) -> list[Path]:
    """The files of a repository in the cache, under the names of their hashes."""
    if not (folder / "blobs").is_dir():
        return []
    return [
        path
        for path in (folder / "blobs").iterdir()
        if _SHA256.fullmatch(path.name) or _SHA1.fullmatch(path.name)
    ]


def _name_in(folder: Path, blob: Path) -> str:
    """What a file is called in its repository."""
    for path in (folder / "snapshots").rglob("*"):
        if path.is_symlink() and path.readlink().name == blob.name:
            return path.name
    return blob.name


def _first_damaged(blobs: set[Path], failure: Exception) -> Path | None:
    """A file that may be why reading failed; large ones are looked at if it was of their kind."""
    of_weights = any(
        "safetensor" in f"{type(error).__name__} {error}".lower() for error in chain(failure)
    )
    for blob in sorted(blobs):
        if blob.is_file() and (of_weights or blob.stat().st_size <= _SMALL) and not _is_whole(blob):
            return blob
    return None


def _is_whole(blob: Path) -> bool:
    """Whether a file of the cache is what its name says; of other names nobody knows."""
    if _SHA256.fullmatch(blob.name):
        with blob.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == blob.name
    if _SHA1.fullmatch(blob.name):
        data = blob.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == blob.name
    return True


@contextmanager
def _impatient() -> Iterator[None]:
    """Give up a download that stands still after 6 x 4 seconds instead of a minute."""
    from huggingface_hub import constants

    before = constants.HF_HUB_DOWNLOAD_TIMEOUT
    if "HF_HUB_DOWNLOAD_TIMEOUT" not in os.environ:
        constants.HF_HUB_DOWNLOAD_TIMEOUT = _READ
    try:
        yield
    finally:
        constants.HF_HUB_DOWNLOAD_TIMEOUT = before
