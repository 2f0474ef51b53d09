"""Files of data sets on the Hugging Face hub, through its own clients, into its own cache.

`datasets` says which files make a configuration's split; `huggingface_hub` downloads them. What is
whole in the hub's cache at a pinned commit is used without the network. Whatever goes wrong ends
in one line that names the repository, the reason, and the way without a network, within half a
minute of the last byte.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from hylorada.data.hub_downloads import download
from hylorada.data.hub_faults import explained, some, unreachable
from hylorada.data.hub_layout import layout
from hylorada.data.official_files import official_files
from hylorada.errors import DataError
from hylorada.records.result import parse_json

log = logging.getLogger(__name__)

_DEADLINE = 25.0  # seconds for asking what a repository holds
_REQUEST = 10.0  # seconds for one answer
_COMMIT = re.compile(r"[0-9a-f]{40}")

# Where data sets that were loading scripts are available as files.
_MIRRORS = {
    "pg19": "emozilla/pg19",
    "wikitext": "Salesforce/wikitext",
    "longbench": "zai-org/LongBench",
}

T = TypeVar("T")


def dataset_files(hub_id: str, config: str, split: str, revision: str) -> list[Path]:
    """Return the local files of one split of a data set, downloading what is not in the cache.

    Args:
        hub_id: Repository, as `owner/name`.
        config: Configuration name; empty: its only or default one.
        split: train, validation or test.
        revision: Commit, branch or tag; empty: main.

    Raises:
        DataError: They are not available.
    """

    def choose(splits: list[str]) -> str:
        if split not in splits:
            raise DataError(
                f"dataset {hub_id} ({config or 'default'}): no {split} split; it has {some(splits)}"
            )
        return split

    # By the names of the files, so that a cache which others have filled serves as well.
    return _files(hub_id, config, revision, choose, lambda at: _cached_split(at, config, split))


def files_of_any_layout(
    hub_id: str, config: str, revision: str, choose: Callable[[list[str]], str]
) -> list[Path]:
    """As `dataset_files`, of a data set that may have other splits and other names of files.

    Args:
        hub_id: Repository, as `owner/name`.
        config: Configuration name; empty: its only or default one.
        revision: Commit, branch or tag; empty: main.
        choose: The split to read of those that there are; raises `DataError` where none will do.

    Raises:
        DataError: They are not available.
    """
    return _files(hub_id, config, revision, choose, lambda at: _listed_files(at, config, choose))


def _files(
    hub_id: str,
    config: str,
    revision: str,
    choose: Callable[[list[str]], str],
    cached_at: Callable[[Path | None], list[Path]],
) -> list[Path]:
    snapshot = _snapshot(hub_id, revision)
    if _settled(revision) and (cached := cached_at(snapshot)):
        return cached
    with explained(f"dataset {hub_id}", revision, _copy_of(hub_id)):
        try:
            commit, splits = _within(_DEADLINE, lambda: _splits(hub_id, config, revision or None))
        except Exception as error:
            if not unreachable(error) or not (cached := cached_at(snapshot)):
                raise
            log.warning("dataset %s: the hub is out of reach; taking %s", hub_id, cached[0].parent)
            return cached
        names = splits[choose(list(splits))]
        log.info("dataset %s at %s: %s", hub_id, commit, ", ".join(names))
        paths = [download(hub_id, name, commit, _copy_of(hub_id)) for name in names]
        _remember(hub_id, revision, commit)
        _write_listing(_cache_folder(hub_id) / "snapshots" / commit, config, splits)
        return paths


def snapshot_of(file: Path) -> Path:
    """The folder in the hub's cache that a file's name in its repository is relative to."""
    return next(folder for folder in file.parents if folder.parent.name == "snapshots")


def hub_file(hub_id: str, name: str, revision: str) -> Path:
    """Return one file of a data set's repository, downloading it if it is not in the cache.

    Raises:
        DataError: It is not available.
    """
    snapshot = _snapshot(hub_id, revision)
    cached = snapshot / name if snapshot is not None and (snapshot / name).is_file() else None
    if cached is not None and _settled(revision):
        return cached
    with explained(f"dataset {hub_id}", revision, _copy_of(hub_id)):
        try:
            commit, files = _within(_DEADLINE, lambda: _repository(hub_id, revision or None))
        except Exception as error:
            if cached is None or not unreachable(error):
                raise
            log.warning("dataset %s: the hub is out of reach; taking %s", hub_id, cached)
            return cached
        if name not in files:
            raise DataError(
                f"dataset {hub_id}: no {name} in the repository (found {some(files)}); "
                f"{_copy_of(hub_id)}"
            )
        path = download(hub_id, name, commit, _copy_of(hub_id))
        _remember(hub_id, revision, commit)
        return path


def check_model(hub_id: str, revision: str) -> None:
    """Fail early where a model can only fail late: transformers asks for each file for minutes.

    A model whose config.json is in the hub's cache passes unasked.

    Raises:
        DataError: No such model or revision, gated, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(hub_id, "config.json", revision=revision or None), str):
        return
    way = "without a network set model.path to a local copy, or use model=tiny (embedded)"
    with explained(f"model.path={hub_id}", revision, way):

        def ask() -> None:
            api = HfApi()
            api.model_info(hub_id, revision=revision or None, timeout=_REQUEST)
            api.auth_check(hub_id)

        _within(_DEADLINE, ask)


def cached_commit(hub_id: str, revision: str, kind: str) -> str | None:
    """The commit that a revision stands at in the hub's cache; None if nothing of it is there.

    Args:
        hub_id: Repository, as `owner/name`.
        revision: Commit, branch or tag; empty: main.
        kind: model or dataset.
    """
    if _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import constants, file_download

    name = file_download.repo_folder_name(repo_id=hub_id, repo_type=kind)
    reference = Path(constants.HF_HUB_CACHE) / name / "refs" / (revision or "main")
    return _read_reference(reference) if reference.is_file() else None


def _snapshot(hub_id: str, revision: str) -> Path | None:
    """The folder of a revision in the hub's cache, if there is one."""
    commit = revision
    if not _COMMIT.fullmatch(revision):
        reference = _cache_folder(hub_id) / "refs" / (revision or "main")
        if not reference.is_file():
            return None
        commit = _read_reference(reference)
    snapshot = _cache_folder(hub_id) / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def _read_reference(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace").strip()


def _remember(hub_id: str, revision: str, commit: str) -> None:
    """Note which commit a branch stood at, where the hub's clients note it too."""
    if not _COMMIT.fullmatch(revision):
        reference = _cache_folder(hub_id) / "refs" / (revision or "main")
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit, encoding="utf-8")


def _cache_folder(hub_id: str) -> Path:
    from huggingface_hub import constants, errors, file_download

    try:
        name = file_download.repo_folder_name(repo_id=hub_id, repo_type="dataset")
    except errors.HFValidationError:
        raise DataError(
            f"dataset {hub_id}: this is no name of a repository on the hub; write owner/name"
        ) from None
    return Path(constants.HF_HUB_CACHE) / name


def _settled(revision: str) -> bool:
    """Whether the cache may be used without asking: a commit cannot move, a branch can."""
    from huggingface_hub import constants

    return bool(_COMMIT.fullmatch(revision)) or constants.HF_HUB_OFFLINE


def _cached_split(snapshot: Path | None, config: str, split: str) -> list[Path]:
    """A split's files in the cache by their names; none unless all its shards are there."""
    for folder in (config, "data", ".") if config else ("data", "."):
        if snapshot is not None and (snapshot / folder).is_dir():
            files = sorted(p for p in (snapshot / folder).iterdir() if p.is_file())
            try:
                return official_files(files, split, snapshot)
            except DataError:
                continue
    return []


def _listed_files(
    snapshot: Path | None, config: str, choose: Callable[[list[str]], str]
) -> list[Path]:
    """A split's files in the cache as they were found there; none unless they are all there."""
    splits = _read_listing(snapshot, config) if snapshot is not None else {}
    if snapshot is None or not splits:
        return []
    files = [snapshot / name for name in splits[choose(list(splits))]]
    return files if all(file.is_file() for file in files) else []


def _listing(snapshot: Path, config: str) -> Path:
    """Where it is put down which files make which split, beside the snapshots of a repository."""
    name = hashlib.sha256(config.encode()).hexdigest()[:16]
    return snapshot.parents[1] / "hylorada" / snapshot.name / f"{name}.json"


def _read_listing(snapshot: Path, config: str) -> dict[str, list[str]]:
    try:
        found = parse_json(_listing(snapshot, config).read_bytes())
    except (OSError, ValueError):  # never written, or not to its end
        return {}
    whole = isinstance(found, dict) and all(
        isinstance(names, list) and all(isinstance(name, str) for name in names)
        for names in found.values()
    )
    return found if whole else {}


def _write_listing(snapshot: Path, config: str, splits: dict[str, list[str]]) -> None:
    path = _listing(snapshot, config)
    with suppress(OSError):  # a cache that is only read
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(splits), encoding="utf-8")


def _repository(hub_id: str, revision: str | None) -> tuple[str, list[str]]:
    """Commit and file names of a repository."""
    from huggingface_hub import HfApi

    info = HfApi().dataset_info(hub_id, revision=revision, timeout=_REQUEST)
    return str(info.sha), [s.rfilename for s in info.siblings or []]


def _splits(hub_id: str, config: str, revision: str | None) -> tuple[str, dict[str, list[str]]]:
    """Commit, and names of the files that make each split."""
    commit, files = _repository(hub_id, revision)
    script = f"{hub_id.rpartition('/')[2]}.py"
    if script in files:
        mirror = _MIRRORS.get(script.removesuffix(".py").lower(), "a copy in parquet files")
        raise DataError(
            f"dataset {hub_id}: its data come by a loading script ({script}), which is never run; "
            f"use {mirror} (dataset.hub_id), or set dataset.path to a copy of its data in parquet"
        )
    from huggingface_hub import HfFileSystem

    system = HfFileSystem()
    found = layout(hub_id, config, commit)
    return commit, {
        split: [str(vars(system.resolve_path(url))["path_in_repo"]) for url in urls]
        for split, urls in found.items()
    }


def _within(seconds: float, work: Callable[[], T]) -> T:
    """Run `work`, but not longer: the clients' own retries would go on for minutes."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return results[0]


def _copy_of(hub_id: str) -> str:
    return f"without a network set dataset.path to a copy of {hub_id}'s files"
