"""`method.peft`: another method of peft in the place of LoRA; what can be said without peft.

Importing peft takes seconds, so the names of its methods and of their keys are read from its
source. Values are checked where peft is there anyway (`methods.peft_settings`).
"""

from __future__ import annotations

import ast
import functools
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

from hylorada.command_line.suggest import did_you_mean
from hylorada.config import LoraConfig, MethodConfig
from hylorada.errors import ConfigError

# Components that act inside this project's own tuner.
_OWN = ("position_bias", "landmark", "s2_attn")


def check_peft(method: MethodConfig) -> None:
    """Refuses a method of peft that is none, or stands beside what has no effect with it.

    Raises:
        ConfigError: naming the setting.
    """
    if not method.peft:
        return
    known, kind = peft_types(), method.peft.get("peft_type")
    if not isinstance(kind, str):
        raise ConfigError(
            "method.peft has no peft_type; name a method of peft, as in "
            "method.peft={peft_type: VERA}"
        )
    if known and kind not in known:
        meant = kind.upper() if kind.upper() in known else kind
        raise ConfigError(
            f"method.peft.peft_type is {kind!r}, which is no method of this peft"
            f"{did_you_mean(meant, known) or '; it has ' + ', '.join(known)}"
        )
    _check_keys(kind, [key for key in method.peft if key != "peft_type"])
    if method.lora.enabled:
        raise ConfigError(
            f"method.peft replaces LoRA with {kind}, but method.lora.enabled is true; set it to "
            "false, or start from method=baseline"
        )
    if method.name == "baseline":
        raise ConfigError(
            f"method.name is baseline, which trains nothing, but method.peft trains {kind}; give "
            f"it a name, as in method.name={kind.lower()}"
        )
    for item in fields(LoraConfig):
        value = getattr(method.lora, item.name)
        if item.name != "enabled" and value != getattr(LoraConfig(), item.name):
            raise ConfigError(
                f"method.lora.{item.name}={value} has no effect with method.peft ({kind}); set "
                "the corresponding key of method.peft, and start from method=baseline"
            )
    for name in _OWN:
        if getattr(method, name).enabled == "true":
            raise ConfigError(
                f"method.{name}.enabled=true has no effect with method.peft: it acts inside this "
                f"project's own adapter, and {kind} is peft's; set it to false"
            )


@functools.cache
def peft_types() -> list[str]:
    """The methods of the peft that is installed; empty where its source is not as it was."""
    spec = find_spec("peft")
    if spec is None or spec.origin is None:
        return []
    try:
        source = Path(spec.origin).with_name("utils") / "peft_types.py"
        tree = ast.parse(source.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return []
    return [
        line.targets[0].id
        for part in tree.body
        if isinstance(part, ast.ClassDef) and part.name == "PeftType"
        for line in part.body
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name)
    ]


def _check_keys(kind: str, asked: list[str]) -> None:
    name, known = config_keys(kind)
    for key in asked if known else []:
        if key not in known:
            raise ConfigError(
                f"method.peft.{key}: peft's {name} has no such key"
                f"{did_you_mean(key, known) or '; it has ' + ', '.join(known)}"
            )


@functools.cache
def config_keys(kind: str) -> tuple[str, list[str]]:
    """The class of a method's configuration, and its keys; no keys where its source tells none."""
    spec = find_spec("peft")
    if spec is None or spec.origin is None:
        return "", []
    package = Path(spec.origin).parent
    try:
        paths = [package / "config.py", *sorted((package / "tuners").rglob("*.py"))]
        sources = [path.read_text(encoding="utf-8") for path in paths]
        own = _classes(sources, f"self.peft_type = PeftType.{kind}\n")
        name = next((name for name, part in own.items() if _says_kind(part, kind)), "")
        return name, sorted(_fields_of(name, own, sources))
    except (OSError, SyntaxError, ValueError):
        return "", []


def _classes(sources: list[str], said: str) -> dict[str, ast.ClassDef]:
    """The classes of those sources that say something; only these are parsed, which takes time."""
    trees = [ast.parse(source) for source in sources if said in source]
    return {
        part.name: part for tree in trees for part in tree.body if isinstance(part, ast.ClassDef)
    }


def _says_kind(part: ast.ClassDef, kind: str) -> bool:
    """Whether a class sets itself the peft_type of this kind."""
    return any(
        isinstance(line, ast.Assign)
        and ast.unparse(line.targets[0]) == "self.peft_type"
        and ast.unparse(line.value) == f"PeftType.{kind}"
        for line in ast.walk(part)
    )


def _fields_of(name: str, classes: dict[str, ast.ClassDef], sources: list[str]) -> set[str]:
    """The annotated fields of a dataclass and of those that it is derived from."""
    if name not in classes:
        classes = classes | _classes(sources, f"\nclass {name}(")
    part = classes.get(name)
    if part is None:
        return set()
    own = {
        line.target.id
        for line in part.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    }
    return own.union(*(_fields_of(ast.unparse(base), classes, sources) for base in part.bases))
