"""Records as rows of plain values, for pandas and the like."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hylorada.comparison.collect import collect
from hylorada.config.python_arguments import path
from hylorada.errors import ConfigError

_SCALARS = (str, int, float, bool, type(None))
# Long, or said elsewhere: hashes of files, earlier measurements, each check of the gate.
_LEFT_OUT = ("files", "evaluations", "integrity.checks", "integrity.probed", "provenance.inputs")


def records_as_rows(*folders: str | Path) -> list[dict[str, Any]]:
    """One flat row for each run below some folders: `pandas.DataFrame(records_as_rows("outputs"))`.

    A key is the place of a value in the record, its parts joined by dots: ``length`` (tokens),
    ``training.seconds``, ``parameters.by_group.lora``, ``config.train.lr``,
    ``provenance.hardware``. A metric has its own name, and what else is known of it behind that:
    ``eval/ppl``, ``eval/ppl.tokens``; of the untouched base ``base.extended.eval/ppl``. Units are
    those of the record (docs/RECORDS.md). Lists of numbers are left out, such as those by document;
    ``directory`` is where the record lies. Rows have the keys that their records have.

    Args:
        folders: with runs at any depth; every result.json below them is read.

    Returns:
        Rows in the order of paths, the failed runs too (``status``). Of one run found twice, one.

    Raises:
        ConfigError: what is given is no folder's path, as a list of paths is none.
        DataError: a folder does not exist, or no record is below any of them.

    Warns:
        UserWarning: a record is damaged or there twice; it is left out.
    """
    if not folders or "" in folders:
        raise ConfigError('records_as_rows: no folder; name one, as in records_as_rows("outputs")')
    collection = collect([path("records_as_rows: a folder", folder) for folder in folders])
    for problem in collection.problems:
        warnings.warn(f"left out {problem.path}: {problem.reason}", stacklevel=2)
    return [
        {"directory": str(record.path), **dict(_flat(record.data))} for record in collection.records
    ]


def _flat(data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if key == "metrics":
            yield from _metrics(value, "")
        elif key == "base":
            for which, metrics in value.items():
                yield from _metrics(metrics or {}, f"base.{which}.")
        else:
            yield from _leaves(key, value)


def _metrics(metrics: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, metric in metrics.items():
        for field, value in metric.items():
            if field == "value":
                yield f"{prefix}{name}", value
            else:
                yield from _leaves(f"{prefix}{name}.{field}", value)


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if key in _LEFT_OUT:
        return
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    elif isinstance(value, _SCALARS):
        yield key, value
    elif isinstance(value, list) and all(isinstance(item, str) for item in value):
        yield key, ", ".join(value)
