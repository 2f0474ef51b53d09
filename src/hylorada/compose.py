"""From `conf/` and command-line words to a `RunConfig`, strictly and once.

Beyond this file and `cli` nothing sees a `DictConfig`. Nothing is registered with Hydra or
OmegaConf: the tree of dataclasses is applied after composition, so that also a key added with ``+``
meets it.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import itertools
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hylorada.command_line.hydra_internals import Hydra, OverridesParser
from hylorada.command_line.overrides import (
    PRIMARY,
    by_size,
    conf_dir,
    key_type,
    rewrite,
    unknown_key,
)
from hylorada.command_line.suggest import did_you_mean
from hylorada.config import RunConfig
from hylorada.config.rules import HUB_KEYS, LOCAL_KEYS, OPEN_KEYS, SWITCH_KEYS
from hylorada.errors import ConfigError

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
_NO_AXES = ("experiment", "group", "output_root", "resume", "hydra/launcher")
# A reference that is not escaped and is more than the name of a setting.
_OTHER_REFERENCE = re.compile(r"(?<!\\)(?:\\\\)*\$\{(?!\.*[\w.]+\})")
_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list, as in [a,b]",
    dict: "settings in braces, as in {key: value}",
}


@dataclass
class Cell:
    """One combination of a sweep."""

    overrides: list[str]
    config: RunConfig


@contextmanager
def opened_hydra(job_name: str = "hylorada") -> Iterator[Hydra]:
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


def by_experiment(hydra: Hydra, overrides: Sequence[str]) -> list[list[str]]:
    """The words of each sweep of a command: ``experiment=a,b`` is two, with axes of their own."""
    named = [i for i, word in enumerate(overrides) if word.startswith("experiment=")]
    if not named:
        return [list(overrides)]
    try:
        (word,) = OverridesParser.create(hydra.config_loader).parse_overrides(
            [overrides[named[-1]]]
        )
        if not word.is_discrete_sweep():
            return [list(overrides)]
        names = list(word.sweep_string_iterator())
    except (HydraException, ValueError) as error:
        raise ConfigError(_explain(error)) from error
    others = [other for i, other in enumerate(overrides) if i not in named]
    return [[*others, f"experiment={name}"] for name in names]


def cells(
    hydra: Hydra, master: DictConfig, own: Path | None = None, *, alone: bool = True
) -> list[Cell]:
    """Every combination of a sweep, composed and typed before the first one starts.

    Args:
        hydra: opened by `opened_hydra`.
        master: composed without the axes.
        own: a folder with more groups.
        alone: whether it is the only sweep of the command, so that it must have an axis.

    Raises:
        ConfigError: a key, an option or a type is wrong in one of them; there is no axis.
    """
    sweeper = master.hydra.sweeper
    if not sweeper._target_.endswith("BasicSweeper") or sweeper.max_batch_size is not None:
        raise ConfigError(
            "hydra.sweeper: sweeps here are plain grids; leave hydra/sweeper=basic and "
            "max_batch_size unset"
        )
    words = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    typed = cast("list[str]", OmegaConf.to_container(master.hydra.overrides.task))  # unresolved
    words = rewrite([*words, *typed], multirun=True, own=own)
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
        swept = (len(values) > 1 or key not in _NO_AXES for key, values in axes.items())
        if alone and not any(swept):
            raise ConfigError(
                "-m runs every combination of the values of its axes, and there is none; write "
                "one, as in -m method=lora,hylorada, or name an experiment that is a sweep, as in "
                "-m experiment=table_short, or leave out -m"
            )
        grid = []
        for combination in itertools.product(*axes.values()):
            overrides = rewrite(combination, own=own)
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
    tree = _resolved(cfg) if isinstance(cfg, DictConfig) else cfg
    config = RunConfig()
    _refuse_unknown(tree, config, "")
    for key, value in _leaves(tree, "", OPEN_KEYS):
        if key in SWITCH_KEYS:
            value = _WORDS.get(str(value).lower(), str(value))
        elif key in LOCAL_KEYS | HUB_KEYS and isinstance(value, str):
            value = os.path.expanduser(value)  # noqa: PTH111, which drops a slash at the end
        *path, last = key.split(".")
        part = functools.reduce(getattr, path, config)
        setattr(part, last, _of_type(key, value, getattr(part, last)))
    return config


def _of_type(key: str, value: Any, default: Any) -> Any:
    """The value as its field has it: a whole number for a float is one, a number for a text text.

    OmegaConf decides, where a look does not tell already: it takes most of the time of a sweep.

    Raises:
        ConfigError: it is of another type.
    """
    if isinstance(value, str | int | float) and type(value) is type(default) and value != "???":
        return value
    if value == default and _types_in(value) == _types_in(default):
        return default
    # In a text OmegaConf would take ${...} for a reference once more.
    asked = type(value)() if "${" in str(value) else value
    try:
        OmegaConf.update(_schema(), key, asked, merge=False)
        converted = OmegaConf.select(_schema(), key, throw_on_missing=True)
    except OmegaConfBaseException as error:
        shown = "null" if value is None else repr(value)
        raise ConfigError(f"{key} is {shown}; it must be {_KINDS[type(default)]}") from error
    if asked is not value:
        return value
    return OmegaConf.to_object(converted) if OmegaConf.is_config(converted) else converted


@functools.cache
def _schema() -> DictConfig:
    """The tree as OmegaConf types it; its values are the last ones that were asked about."""
    return OmegaConf.structured(RunConfig)


def _types_in(value: Any) -> list[type]:
    return [type(value), *(map(type, value) if isinstance(value, list) else ())]


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    """Our own tree as plain containers, references between settings followed."""
    raw = cast("dict[str, Any]", OmegaConf.to_container(cfg))
    raw.pop("hydra", None)
    for key, value in _leaves(raw, ""):
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and _OTHER_REFERENCE.search(text):
                raise ConfigError(
                    f"{key}: ${{...}} may only name another setting, as in ${{length.name}}; "
                    "nothing is read from the environment, so write the value itself"
                )
    try:
        own = OmegaConf.masked_copy(cfg, list(raw))
        return cast("dict[str, Any]", OmegaConf.to_container(own, resolve=True))
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error)) from error


def _leaves(
    tree: Mapping[str, Any], prefix: str, whole: Collection[str] = ()
) -> Iterator[tuple[str, Any]]:
    """Dotted key -> value; groups whose keys are in ``whole`` as one value."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and f"{prefix}{key}" not in whole:
            yield from _leaves(value, f"{prefix}{key}.", whole)
        else:
            yield f"{prefix}{key}", value


def _refuse_unknown(tree: Mapping[str, Any], schema: Any, prefix: str) -> None:
    parts = {item.name: getattr(schema, item.name) for item in dataclasses.fields(schema)}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if key not in parts:
            raise ConfigError(unknown_key(path))
        if dataclasses.is_dataclass(parts[key]):
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"{path} is a group of settings; set one of its keys, as in "
                    f"{path}.{dataclasses.fields(parts[key])[0].name}=..."
                )
            _refuse_unknown(value, parts[key], f"{path}.")
        elif isinstance(value, Mapping) and path not in OPEN_KEYS:
            raise ConfigError(f"{path} is one value, not a group of settings")


def _explain(error: Exception) -> str:
    """One line for an error of Hydra or OmegaConf, naming what is near and what exists."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        key, equals, _ = error.override.partition("=")
        if equals and key.strip("+"):
            return (
                f"cannot read the value of {key}; put text with signs in two pairs of quotes, as "
                f"in \"{key}='a=b'\""
            )
        groups = (file.parent.name for file in conf_dir().glob(f"*/{glob.escape(key)}.yaml"))
        group = next(groups, "")
        return f"cannot read {key!r}; write key=value" + (f", as in {group}={key}" if group else "")
    if isinstance(error, MissingConfigException):
        return _missing_option(error)
    match = re.search(r"Could not override '([^']+)'", text)
    if match:
        return unknown_key(match[1].replace("/", "."))
    match = re.search(r"(?:Ambiguous value for argument|Sweep parameters) '([^'=]+)=", text)
    if match:
        return _several(match[1])
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


def _several(key: str) -> str:
    kind = key_type(key)
    line = f"{key} has several values; add -m to run each"
    if not kind:
        return f"{line}, as in -m {key}=a,b"
    if kind.startswith("list"):
        return f"{line}, or write a list as [a,b]"
    return line if kind != "str" else f"{line}; a comma in a value needs \"{key}='a,b'\""


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
    if group == "length":
        line += "; or any number of tokens, as in length=3000 or length=3k"
    if group == "model":
        line += f"; a hub model of that name: model=custom model.path={option}"
    return line


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
