"""Which files hold a split: on the local disk by their names, else from the hub."""

from __future__ import annotations

from pathlib import Path

from hylorada.config import DatasetConfig
from hylorada.data.files import form_of, is_litter
from hylorada.data.official_files import is_official, official_files
from hylorada.errors import DataError


def split_files(dataset: DatasetConfig, split: str, folders: tuple[str, ...]) -> list[Path]:
    """Return the files of one official split, in order.

    Args:
        dataset: Its `path` is a folder in the hub's layout (or one above it) or one file of it;
            without a path the hub is asked.
        split: train, validation or test.
        folders: Where below `path` the files may lie; the first that has any of such a name is
            taken.

    Raises:
        DataError: No path, no files for this split, or not all of its shards.
    """
    if not dataset.path:
        if not dataset.hub_id:
            raise DataError(f"dataset {dataset.name}: neither dataset.path nor dataset.hub_id")
        from hylorada.data.hub import dataset_files

        return dataset_files(dataset.hub_id, dataset.hub_config, split, dataset.revision)
    path = local_path(dataset)
    if path.is_file():
        candidates = [path]
    else:
        listed = [_data_files(path / f) for f in folders if (path / f).is_dir()]
        listed.sort(key=lambda files: not any(map(is_official, files)))  # else the first that has
        candidates = next((files for files in listed if files), [])
    return official_files(candidates, split, path, partial_allowed="partial" in dataset.name)


def local_path(dataset: DatasetConfig) -> Path:
    """The data set's path.

    Raises:
        DataError: It does not exist.
    """
    path = Path(dataset.path).expanduser()
    if not path.exists():
        raise DataError(f"dataset.path: {path} does not exist; give a file or a folder")
    return path


def _data_files(folder: Path) -> list[Path]:
    files = (p for p in folder.iterdir() if p.is_file() and not is_litter(p.name))
    return sorted(p for p in files if form_of(p))
