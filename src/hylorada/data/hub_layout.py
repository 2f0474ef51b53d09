"""Which files make which split of a data set in the hub's layout, as `datasets` resolves them.

By `configs:` in its card (README.md), else by the names of files and folders. Only names are looked
at here; code that a repository holds is never run.
"""

from __future__ import annotations

from typing import Any

from hylorada.errors import DataError, in_one_line


def layout(where: str, config: str, revision: str | None = None) -> dict[str, list[str]]:
    """The files of each split: URLs for a repository, paths for a folder.

    Args:
        where: A repository, as `owner/name`, or a folder.
        config: Configuration name; empty: its only or default one.
        revision: Commit of a repository.

    Raises:
        DataError: No such configuration, or several and none named; the message lists them.
    """
    import datasets

    try:
        builder = datasets.load_dataset_builder(where, config or None, revision=revision)
    except ValueError as error:
        reason = in_one_line(error, 300)
        raise DataError(f"dataset {where}: {reason} (dataset.hub_config)") from error
    found: dict[Any, list[str]] = builder.config.data_files or {}
    return {str(name): list(map(str, files)) for name, files in found.items()}
