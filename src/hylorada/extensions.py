"""Parts that are found by their names: one file in a folder, or an entry point of another package.

A measurement, a kind of data set and a tracker are each a module of their own in a folder of this
package, or a module of another package that names it under an entry-point group
(https://packaging.python.org/specifications/entry-points/). The module's name, or that of the
entry point, is the name that users type; no list has to be kept. Finding the names imports none of
the modules, so that settings are checked before torch loads.
"""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from hylorada.errors import ConfigError


@dataclass(frozen=True)
class Extensions:
    """The modules of one folder, and those that other packages add.

    Attributes:
        package: the folder, as a dotted name.
        group: of the entry points.
    """

    package: str
    group: str

    def names(self) -> list[str]:
        """What there is, this package's own first, each in the order of its name.

        Raises:
            ConfigError: two parts have one name.
        """
        folder = importlib.import_module(self.package)
        own = sorted(module.name for module in pkgutil.iter_modules(folder.__path__))
        added = sorted(point.name for point in _points(self.group))
        names = [*own, *added]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(
                f"{self.group}: {', '.join(twice)} is there twice; rename the entry point of one "
                "of the installed packages"
            )
        return names

    def load(self, name: str) -> ModuleType:
        """The module of that name, imported.

        Raises:
            ConfigError: there is none.
        """
        for point in _points(self.group):
            if point.name == name:
                module = point.load()
                if not isinstance(module, ModuleType):
                    raise ConfigError(
                        f"{self.group}: the entry point {name} of {point.value} is not a module"
                    )
                return module
        if name not in self.names():
            raise ConfigError(f"{self.group}: no {name!r}; use one of {', '.join(self.names())}")
        return importlib.import_module(f"{self.package}.{name}")

    def part(self, name: str, attribute: str) -> Any:
        """What the module of that name is there for.

        Args:
            name: one of `names`.
            attribute: under which its module keeps it.

        Raises:
            ConfigError: no such module, one that cannot be imported, or one without the attribute.
        """
        try:
            module = self.load(name)
        except ImportError as error:
            raise ConfigError(f"{self.group}: {name} cannot be imported ({error})") from error
        if not hasattr(module, attribute):
            raise ConfigError(f"{self.group}: {name} defines no {attribute}")
        return getattr(module, attribute)


def _points(group: str) -> tuple[EntryPoint, ...]:
    """The entry points of a group, read anew only where a package may have come or gone.

    That takes a hundredth of a second, and a run asks some forty times.
    """
    return _read_points(group, tuple(map(_state, sys.path)))


@functools.lru_cache(maxsize=16)
def _read_points(group: str, _places: tuple[Any, ...]) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=group))


def _state(place: str) -> tuple[Any, ...]:
    """Changes when a package is put into a place of `sys.path`, or taken out of it."""
    try:
        found = os.stat(place or ".")  # noqa: PTH116, the empty place is where we are
    except OSError:
        return (place,)
    return place, found.st_dev, found.st_ino, found.st_mtime_ns


DATA_KINDS = Extensions("hylorada.data.kinds", "hylorada.data_kinds")
"""`dataset.kind`: each module has a `KIND`, see `hylorada.data.kind`."""

TRACKERS = Extensions("hylorada.tracking.trackers", "hylorada.trackers")
"""`track.kind`: each module has a `Backend`, see `hylorada.tracking.backend`."""

MEASUREMENTS = Extensions("hylorada.evaluation.measurements", "hylorada.measurements")
"""`eval.measurements`: each has a `MEASUREMENT`, see `hylorada.evaluation.measurement`."""
