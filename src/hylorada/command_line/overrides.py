"""The words of a command line as Hydra can read them.

Hydra has a grammar for values, in which `a=b`, `~/x` or a name in another script than Latin is no
text. Whoever types a path in a shell need not know it: what a text must be quoted for is quoted
here. What Hydra would take silently for something else than was meant is refused.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra.errors import HydraException

from hylorada.command_line.hydra_internals import Override, OverridesParser
from hylorada.command_line.other_trainers import meant_by
from hylorada.command_line.suggest import did_you_mean, nearest
from hylorada.config import RunConfig
from hylorada.config.rules import HUB_KEYS, LOCAL_KEYS, OPEN_KEYS, SWITCH_KEYS
from hylorada.errors import ConfigError

PRIMARY = "config"  # conf/config.yaml
_PLACES = LOCAL_KEYS | HUB_KEYS
_HYDRAS_OWN = (
    "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.output_subdir",
)  # fmt: skip
_OPENING = {"(": ")", "[": "]", "{": "}"}


def conf_dir() -> Path:
    """The folder of YAML groups: in the package in a wheel, at the repository's top otherwise."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parents[1] / "conf"):
        if (folder / f"{PRIMARY}.yaml").is_file():
            return folder
    raise ConfigError(f"no conf/ in {package}; the installation is incomplete, install it again")


def rewrite(
    overrides: Sequence[str], *, multirun: bool = False, own: Path | None = None
) -> list[str]:
    """The words as Hydra can read them.

    ``length=512`` becomes ``length='512'`` (Hydra takes a bare number for an integer, and a group's
    option must be a string), alone and in a list; ``length=3000`` the nearest length's batch with
    that number of tokens. ``model=org/name`` and ``model=./folder`` become ``model=custom`` with
    that path, and so does ``model.path=`` alone. ``launcher=`` is short for ``hydra/launcher=``.
    Texts are quoted where they must be. Of two options of one group, the later one counts, as in
    Hydra. Rewritten words stay as they are.

    Args:
        overrides: as typed.
        multirun: whether a comma separates the values of an axis.
        own: a folder with more groups (``--config-dir``).

    Raises:
        ConfigError: an unknown key; a list for a group; a word that would remove a part of the
            tree or move a run's directory.
    """
    typed = [_Word(word, multirun, own) for word in overrides]
    last = {word.key: word for word in typed if word.equals}
    words: list[str] = []
    for word in typed:
        rewritten = word.rewritten()
        # Of an option that a later one replaces, nothing may stay beside it.
        words += rewritten if last.get(word.key, word) is word else rewritten[:1]
    keys = {word.partition("=")[0].lstrip("+") for word in words}
    if "model.path" in keys and "model" not in keys:  # else it would bear the default's name
        words.insert(0, "model=custom")
    return words


class _Word:
    def __init__(self, word: str, multirun: bool, own: Path | None) -> None:
        self.word, self.multirun = word, multirun
        self.folders = [conf_dir(), *([own] if own else [])]
        typed, self.equals, self.value = word.partition("=")
        self.sign = re.match(r"\+*~?", typed)[0]  # type: ignore[index]
        self.key = typed.removeprefix(self.sign)
        if self.key == "launcher":
            self.key = "hydra/launcher"

    def rewritten(self) -> list[str]:
        key, value = self.key, self.value
        self._refuse()
        if not self.equals:
            return [self.word]
        if self._is_group():
            if key == "length":
                return self._length()
            if key == "model":
                return self._model()
            return [f"{self.sign}{key}={value}"]
        kind = key_type(key)
        if open_key(key):  # no preset need have it
            return [f"++{key}={value if _parsed(value) else quoted(value)}"]
        if kind == "list[str]":
            text = ",".join(_list_of_texts(item.strip()) for item in _split(value))
        elif kind == "str" and self.multirun and self._is_sweep(value):
            text = ",".join(self._text(item.strip()) for item in _split(value))
        elif kind == "str":
            text = self._text(value)
        else:
            text = value
        return [f"{self.sign}{key}={text}"]

    def _refuse(self) -> None:
        key = self.key
        if self.sign.endswith("~"):
            raise ConfigError(f"~{key}: a part of the settings cannot be removed; set it instead")
        if key in _HYDRAS_OWN:
            raise ConfigError(
                f"{key}: a run's directory follows from its settings; output_root=FOLDER moves all,"
                " group=NAME names the folder in it"
            )
        if key == "hydra.mode":
            raise ConfigError("hydra.mode: give the flag -m for a sweep instead")
        if self.equals and not (self._is_group() or key.startswith("hydra") or _is_known(key)):
            raise ConfigError(unknown_key(key, self.value))
        if self._is_group() and self.value.lstrip().startswith("["):
            name = "launcher" if key == "hydra/launcher" else key
            options = ",".join(item.strip() for item in _split(self.value.strip(" []")))
            raise ConfigError(
                f"{name} takes one option at a time; to run each, add -m and write {name}={options}"
            )

    def _is_group(self) -> bool:
        name = self.key.partition("@")[0]
        if not re.fullmatch(r"[\w-]+(/[\w-]+)*", name):
            return False
        return name.startswith("hydra/") or any((f / name).is_dir() for f in self.folders)

    def _is_option(self, option: str) -> bool:
        return any((folder / self.key / f"{option}.yaml").is_file() for folder in self.folders)

    # --- groups ---

    def _length(self) -> list[str]:
        """A preset, or any number of tokens with the batch of the nearest one."""
        bare = unquoted(self.value)
        match = re.fullmatch(r"(\d+)(k?)", bare.lower())
        if match is None and re.fullmatch(r"[+-]?[\d.]+ *(e[+-]?\d+)?k?", bare.lower()):
            raise ConfigError(
                f"length={bare}: it must be a whole number of tokens, as in length=3000 or "
                "length=3k"
            )
        if match is None or self._is_option(bare):
            # Also `512,2k` and `choice(512,2k)`.
            numbers = re.sub(r"(?<![\w.'\"])\d+(?![\w.'\"])", r"'\g<0>'", self.value)
            return [f"{self.sign}length={numbers}"]
        tokens = int(match[1]) * (1024 if match[2] else 1)
        presets = {
            by_size(file.stem)[0]: file.stem for file in (conf_dir() / "length").glob("*.yaml")
        }
        size = min(presets, key=lambda size: (abs(math.log(size / max(tokens, 1))), -size))
        preset = [f"{self.sign}length={quoted(presets[size])}"]
        if size == tokens:
            return preset
        return [*preset, f"length.max_length={tokens}", f"length.name={quoted(bare.lower())}"]

    def _model(self) -> list[str]:
        bare = unquoted(self.value)
        if self.multirun and self._is_sweep(self.value):
            items = (unquoted(item) for item in _split(self.value))
            return [f"{self.sign}model={','.join(map(_quoted_if_needed, items))}"]
        if not self._is_free_form(bare):
            return [f"{self.sign}model={self.value}"]
        path = bare if "/" in bare or bare.startswith((".", "~")) else f"./{bare}"
        return [f"{self.sign}model=custom", f"model.path={quoted(_literal(path))}"]

    def _is_free_form(self, value: str) -> bool:
        """Whether it is a hub id or a folder and no option."""
        if not value or self._is_option(value):
            return False
        if _is_there(value):
            return True
        looks_so = "/" in value or value.startswith((".", "~")) or value.endswith(".gguf")
        return looks_so and not ("," in value and len(_split(value)) > 1)

    # --- texts ---

    def _is_sweep(self, value: str) -> bool:
        """Whether a comma in it separates values; one that is part of a path must be quoted."""
        items = _split(value)
        if len(items) < 2:
            return False
        is_place = self.key == "model" or self.key in _PLACES
        if is_place and _is_there(value) and not all(map(_is_there, items)):
            raise ConfigError(
                f"{self.key}: in a sweep a comma separates values; write a path that has one in "
                f'two pairs of quotes: "{self.key}={quoted(value)}"'
            )
        return True

    def _text(self, value: str) -> str:
        """A value whose key takes a text, such that Hydra reads that text."""
        is_place, parsed = self.key in _PLACES, _parsed(value)
        if self.key in SWITCH_KEYS:
            return value
        if parsed is None or (is_place and _is_there(value)):
            return self._plain(value)
        if parsed.is_sweep_override():
            # A comma in a place is part of it, unless it may be a forgotten -m.
            several = any(map(_is_there, _split(value))) or self.key in HUB_KEYS
            return value if self.multirun or several or not is_place else self._plain(value)
        read = parsed.value()
        if (
            read is None
            or value.startswith(("'", '"'))
            or (isinstance(read, str) and (is_place and _is_there(read)))
        ):
            return value
        return self._plain(value)

    def _plain(self, value: str) -> str:
        """The text, quoted where Hydra would not read it as it stands."""
        text = _literal(value) if self.key in _PLACES else value
        return _quoted_if_needed(text)


def own_folder(typed: str) -> Path:
    """The folder of ``--config-dir``.

    Raises:
        ConfigError: there is none.
    """
    folder = Path(typed).expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(f"--config-dir: there is no folder {folder}")
    return folder


def searched(own: Path) -> str:
    """The word by which Hydra looks for groups in a folder, too."""
    return f"hydra.searchpath=[{quoted(f'file://{own}')}]"


def unknown_key(key: str, value: str = "") -> str:
    """One line for a key that is not there; its value is never shown."""
    meant = meant_by(key, value)
    if not meant:
        near = did_you_mean(key, known_keys())
        return f"unknown key {key}{near or '; hylorada-train --cfg job prints all there are'}"
    is_key = re.match(r"[a-z_.]+(?=$|[=,])", meant)
    return f"unknown key {key}; " + (f"did you mean {meant}?" if is_key else meant)


def unknown_flag(word: str, flags: Sequence[str]) -> str:
    """One line for a word with dashes that is no flag; its value is never shown."""
    flag = word.partition("=")[0]
    name = flag.strip("-").replace("-", "_")
    if near := get_close_matches(flag, flags, n=1, cutoff=0.75):
        return f"unrecognized arguments: {flag}; did you mean {near[0]}?"
    meant = meant_by(name) or nearest(name, known_keys())
    if found := re.match(r"[a-z_.]+(?:=\w+)?(?=$|,)", meant):
        setting = found[0] if "=" in found[0] else f"{found[0]}=VALUE"
        meant = f"settings are written without dashes, as in {setting}"
    return f"unrecognized arguments: {flag}" + (f"; {meant}" if meant else "")


def quoted(value: str) -> str:
    """The value as a string of Hydra's grammar."""
    # Backslashes count only where they stand before a quote.
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    return "'" + re.sub(r"\\+\Z", lambda match: match[0] * 2, escaped) + "'"


def unquoted(value: str) -> str:
    """What a string of Hydra's grammar says; any other value as it is."""
    value = value.strip()
    if value[:1] not in ("'", '"'):
        return value
    parsed = _parsed(value)
    read = None if parsed is None or parsed.is_sweep_override() else parsed.value()
    return read if isinstance(read, str) else value


def by_size(option: str) -> tuple[float, str]:
    """Sorts 512, 1k, 16k by what they say and names by the alphabet."""
    match = re.fullmatch(r"(\d+)(k?)", option)
    return (int(match[1]) * (1024 if match[2] else 1), "") if match else (0.0, option)


def known_keys() -> list[str]:
    """Every key of the tree, dotted: groups and parts as well as values."""
    return list(_types())


def key_type(key: str) -> str:
    """The type of a value, as `config` writes it; empty for a part and for what is not there."""
    return _types().get(key, "")


@functools.cache
def _types() -> dict[str, str]:
    def walk(part: Any, prefix: str) -> Iterator[tuple[str, str]]:
        for item in dataclasses.fields(part):
            key, value = f"{prefix}{item.name}", getattr(part, item.name)
            is_part = dataclasses.is_dataclass(value)
            yield key, "" if is_part else str(item.type)
            if is_part:
                yield from walk(value, f"{key}.")

    return dict(walk(RunConfig(), ""))


def open_key(key: str) -> str:
    """The key of `OPEN_KEYS` that a key is or lies in; empty for all others."""
    return next((name for name in OPEN_KEYS if f"{key}.".startswith(f"{name}.")), "")


def _is_known(key: str) -> bool:
    return key.partition("@")[0] in _types() or bool(open_key(key))


def _parsed(value: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(f"key={value}")
    except HydraException:
        return None


def _quoted_if_needed(text: str) -> str:
    """A text, quoted unless Hydra reads it as it stands, in a sweep too."""
    if not re.fullmatch(r"[\w./+@%$-]*|[^\\:]*\$\{[^\\:]*", text, re.ASCII):
        return quoted(text)
    parsed = _parsed(text)
    if parsed is None or parsed.is_sweep_override() or str(parsed.value()) != text:
        return quoted(text)
    return text


def _list_of_texts(value: str) -> str:
    """A list whose items are quoted where Hydra would not read them; any other value as it is."""
    if not (value.startswith("[") and value.endswith("]")):
        return value
    items = (unquoted(item) for item in _split(value[1:-1]) if item.strip())
    return f"[{','.join(map(_quoted_if_needed, items))}]"


def without_references(text: str) -> str:
    """A text in which OmegaConf takes ``${`` for itself."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def _literal(path: str) -> str:
    """A path in which ``${`` stands for itself, unless it refers to another setting.

    A function, as in ``${oc.env:HOME}``, is left to be refused.
    """
    found = re.findall(r"\$\{(\.*)([^{}]*)\}", path)
    refers = found and all(dots or ":" in key or _is_known(key) for dots, key in found)
    if refers and not _is_there(path):
        return path
    return without_references(path)


def _is_there(path: str) -> bool:
    """Whether a file or folder of that name exists; never an error."""
    return bool(path) and os.path.lexists(os.path.expanduser(path))  # noqa: PTH111


def _split(value: str) -> list[str]:
    """At the commas outside of quotes and brackets; at each one if these do not match up."""
    items, depth, quote = [""], list[str](), ""
    for i, letter in enumerate(value):
        if letter == "," and not depth and not quote:
            items.append("")
            continue
        items[-1] += letter
        if quote:
            quote = "" if letter == quote and value[i - 1] != "\\" else quote
        elif letter in "'\"" and value[:i].rstrip()[-1:] in ("", *",([{:"):  # else an apostrophe
            quote = letter
        elif letter in _OPENING:
            depth.append(_OPENING[letter])
        elif depth and letter == depth[-1]:
            depth.pop()
    return value.split(",") if depth or quote else items
