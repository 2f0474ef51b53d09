"""`method.peft`: another method of peft in the place of LoRA; what can be said without peft.

Importing peft takes seconds, so the names of its methods are read from its source. The keys of a
method's own configuration are checked where peft is there anyway (`methods.peft_settings`).
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
    if method.lora.enabled:
        raise ConfigError(
            f"method.peft puts {kind} in the place of LoRA, and method.lora.enabled is true; set "
            "it to false, or start from method=baseline"
        )
    if method.name == "baseline":
        raise ConfigError(
            f"method.name is baseline, which trains nothing, and method.peft trains {kind}; name "
            f"it, as in method.name={kind.lower()}"
        )
    for item in fields(LoraConfig):
        value = getattr(method.lora, item.name)
        if item.name != "enabled" and value != getattr(LoraConfig(), item.name):
            raise ConfigError(
                f"method.lora.{item.name}={value} has no effect with method.peft ({kind}); write "
                "what it has of that into method.peft, and start from method=baseline"
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
