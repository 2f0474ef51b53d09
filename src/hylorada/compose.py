"""From `conf/` and command-line words to a `RunConfig`, strictly and once.

Beyond this file and `cli` nothing sees a `DictConfig`. Nothing is registered with Hydra or
OmegaConf: the tree of dataclasses is applied after composition, so that also a key added with ``+``
meets it.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra import initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hylorada.config import SWITCH_KEYS, RunConfig
from hylorada.errors import ConfigError
from hylorada.suggest import did_you_mean

PRIMARY = "config"  # conf/config.yaml
# What a launcher's own package adds to the name of its extra in pyproject.toml.
LAUNCHER_EXTRAS = {"joblib": "joblib", "submitit_slurm": "slurm"}
_WORDS = {
    "true": "true",
    "on": "true",
    "yes": "true",
    "1": "true",
    "false": "false",
    "off": "false",
    "no": "false",
    "0": "false",
    "auto": "auto",
}
_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    ListConfig: "a list, as in [a,b]",
}


@dataclass
class Cell:
    """One combination of a sweep."""

    overrides: list[str]
    config: RunConfig


def conf_dir() -> Path:
    """The folder of YAML groups: beside this file in a wheel, at the repository's top otherwise."""
    here = Path(__file__).resolve().parent
    for folder in (here / "conf", here.parents[1] / "conf"):
        if (folder / f"{PRIMARY}.yaml").is_file():
            return folder
    raise ConfigError(f"no conf/ beside {here}; the installation is incomplete, install it again")


@contextmanager
def session(job_name: str = "hylorada") -> Iterator[Hydra]:
    """Hydra on `conf_dir()`, forgotten again at the end."""
    with initialize_config_dir(str(conf_dir()), job_name=job_name, version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        yield hydra


def compose(hydra: Hydra, overrides: Sequence[str], *, multirun: bool = False) -> DictConfig:
    """Hydra's config for these words, its errors turned into one line.

    Raises:
        ConfigError: naming the nearest key or option.
    """
    mode = RunMode.MULTIRUN if multirun else RunMode.RUN
    try:
        return hydra.compose_config(PRIMARY, list(overrides), mode, with_log_configuration=multirun)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(_explain(error)) from error


def cells(hydra: Hydra, master: DictConfig) -> list[Cell]:
    """Every combination of a sweep, composed and typed before the first one starts.

    Raises:
        ConfigError: a key, an option or a type is wrong in one of them.
    """
    sweeper = master.hydra.sweeper
    if not sweeper._target_.endswith("BasicSweeper") or sweeper.max_batch_size is not None:
        raise ConfigError(
            "hydra.sweeper: sweeps here are plain grids; leave hydra/sweeper=basic and "
            "max_batch_size unset"
        )
    words = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    words = rewrite([*words, *master.hydra.overrides.task])
    axes: dict[str, list[str]] = {}  # a later word replaces an earlier one, as on one command line
    try:
        for word in OverridesParser.create(hydra.config_loader).parse_overrides(words):
            key = word.get_key_element()
            if not word.is_sweep_override():
                axes[key] = [f"{key}={word.get_value_element_as_str()}"]
            elif word.is_discrete_sweep():
                axes[key] = [f"{key}={value}" for value in word.sweep_string_iterator()]
            else:
                raise ConfigError(f"{key}: an interval cannot be swept; list its values")
        grid = []
        for combination in itertools.product(*axes.values()):
            overrides = rewrite(combination)
            config = to_typed(hydra.config_loader.load_sweep_config(master, overrides))
            grid.append(Cell(overrides, config))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(_explain(error)) from error
    return grid


def to_typed(cfg: DictConfig | Mapping[str, Any]) -> RunConfig:
    """The dataclasses for a composed config: no key too many, no wrong type.

    Raises:
        ConfigError: an unknown key (with the nearest one) or a value of the wrong type.
    """
    try:
        whole = cfg if isinstance(cfg, DictConfig) else OmegaConf.create(dict(cfg))
        own = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
        container = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error)) from error
    tree = cast("dict[str, Any]", container)
    _refuse_unknown(tree, RunConfig(), "")
    typed = OmegaConf.structured(RunConfig)
    for key, value in _leaves(tree, ""):
        if key in SWITCH_KEYS:
            value = _WORDS.get(str(value).lower(), str(value))
        try:
            OmegaConf.update(typed, key, value, merge=False)
        except OmegaConfBaseException as error:
            wanted = _KINDS[type(OmegaConf.select(typed, key))]
            shown = "null" if value is None else repr(value)
            raise ConfigError(f"{key} is {shown}; it must be {wanted}") from error
    config = OmegaConf.to_object(typed)
    assert isinstance(config, RunConfig)
    return config


def rewrite(overrides: Sequence[str]) -> list[str]:
    """The words as Hydra can read them.

    ``length=512`` becomes ``length='512'`` (Hydra takes a bare number for an integer, and a group's
    option must be a string), alone and in a list. ``model=org/name`` and ``model=./folder`` become
    ``model=custom`` with that path. ``launcher=`` is short for ``hydra/launcher=``.

    Raises:
        ConfigError: a word that would remove a part of the tree or move a run's directory.
    """
    words: list[str] = []
    for word in overrides:
        key, equals, value = word.partition("=")
        if key.startswith("~"):
            raise ConfigError(f"{key}: a part of the settings cannot be removed; set it instead")
        if key.lstrip("+") in (
            "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.output_subdir",
        ):  # fmt: skip
            raise ConfigError(
                f"{key}: a run's directory follows from its settings; output_root=FOLDER moves all"
            )
        if key == "hydra.mode":
            raise ConfigError("hydra.mode: give the flag -m for a sweep instead")
        if key == "launcher" and equals:
            words.append(f"hydra/launcher={value}")
        elif key == "length" and equals:
            words.append(f"length={_quoted_numbers(value)}")
        elif key == "model" and equals and _is_free_form(bare := value.strip("'\"")):
            words += ["model=custom", f"model.path={quoted(bare)}"]
        else:
            words.append(word)
    return words


def quoted(value: str) -> str:
    """The value as a string of Hydra's grammar."""
    return "'" + value.replace("'", "\\'") + "'"


def by_size(option: str) -> tuple[float, str]:
    """Sorts 512, 1k, 16k by what they say and names by the alphabet."""
    match = re.fullmatch(r"(\d+)(k?)", option)
    return (int(match[1]) * (1024 if match[2] else 1), "") if match else (0.0, option)


def known_keys() -> list[str]:
    """Every key of the tree, dotted: groups and parts as well as values."""

    def walk(part: Any, prefix: str) -> Iterator[str]:
        for item in dataclasses.fields(part):
            key = f"{prefix}{item.name}"
            yield key
            value = getattr(part, item.name)
            if dataclasses.is_dataclass(value):
                yield from walk(value, f"{key}.")

    return list(walk(RunConfig(), ""))


def _quoted_numbers(value: str) -> str:
    return re.sub(r"(?<![\w.'\"])\d+(?![\w.'\"])", r"'\g<0>'", value)


def _is_free_form(value: str) -> bool:
    if "," in value or not ("/" in value or value.startswith((".", "~"))):
        return False
    return not (conf_dir() / "model" / f"{value}.yaml").is_file()


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _refuse_unknown(tree: Mapping[str, Any], schema: Any, prefix: str) -> None:
    parts = {item.name: getattr(schema, item.name) for item in dataclasses.fields(schema)}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if key not in parts:
            raise ConfigError(f"unknown key {path}{did_you_mean(path, known_keys())}")
        if dataclasses.is_dataclass(parts[key]):
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"{path} is a group of settings; set one of its keys, as in "
                    f"{path}.{dataclasses.fields(parts[key])[0].name}=..."
                )
            _refuse_unknown(value, parts[key], f"{path}.")
        elif isinstance(value, Mapping):
            raise ConfigError(f"{path} is one value, not a group of settings")


def _explain(error: Exception) -> str:
    """One line for an error of Hydra or OmegaConf, naming what is near and what exists."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override.partition('=')[0]!r}; write key=value"
    if isinstance(error, MissingConfigException):
        return _missing_option(error)
    match = re.search(r"Could not override '([^']+)'", text)
    if match:
        key = match[1].replace("/", ".")
        return f"unknown key {key}{did_you_mean(key, known_keys())}"
    match = re.search(r"(?:Ambiguous value for argument|Sweep parameters) '([^'=]+)=", text)
    if match:
        return f"{match[1]} has several values; add -m to run each, or write a list as [a,b]"
    match = re.search(r"An item is already at '([^']+)'|Multiple values for (\w+)\.", text)
    if match:
        return f"{match[1] or match[2]} exists already; leave out the +"
    if "group override must be a string" in text:
        return "a group takes the name of an option, as in length=4k train=demo"
    cause: BaseException = error
    while not str(cause).strip() and cause.__cause__ is not None:
        cause = cause.__cause__
    match = re.search(r"Error merging override ([^=]+)=", text)
    if match and error.__cause__ is not None:
        return f"{match[1]}: {_first_line(error.__cause__)}"
    return _first_line(cause)


def _missing_option(error: MissingConfigException) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if group == "hydra/launcher" and option in LAUNCHER_EXTRAS:
        extra = LAUNCHER_EXTRAS[option]
        return f"this launcher is not installed; run: pip install 'hylorada[{extra}]'"
    options = sorted(error.options or (), key=by_size)
    if not options:
        return _first_line(error)
    name = "launcher" if group == "hydra/launcher" else group
    if group == "experiment":
        return (
            f"experiment={option}: there is no such overlay{did_you_mean(option, options) or '.'} "
            f"There are: {', '.join(options)}; to name the folder of the runs: group={option}"
        )
    near = did_you_mean(option, options) or "."
    line = f"{name}={option}: there is no such option{near} There are: {', '.join(options)}"
    if group == "model":
        line += f"; a hub model of that name: model=custom model.path={option}"
    return line


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
