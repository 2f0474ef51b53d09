"""From `method.peft` of a run's settings to a `PeftConfig`, or one line that says why not.

Every configuration class of peft says its keys and their types by itself; a key that it does not
have would end up in a warning, a value of another type somewhere inside peft. What cannot be
trained or measured here as it is meant is refused with its reason.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType

from hylorada.command_line.suggest import did_you_mean
from hylorada.errors import ConfigError, in_one_line

IN_THE_WRAPPER = "in peft's wrapper around the model, which these measurements leave out"
INSTEAD = "give an adapter of the weights, such as LoRA"
_OF_THE_RUN = (
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "runtime_config",
)  # fmt: skip
_CALLS = "by a call in each step of training (update_and_allocate), which this loop does not make"


def kind_of(config: PeftConfig) -> str:
    """The name of a method in peft, as in VERA."""
    return str(getattr(config.peft_type, "value", config.peft_type))


def not_measurable(config: PeftConfig) -> str:
    """Why an adapter cannot be measured by the hidden states of the model inside peft's wrapper.

    Empty if nothing is known that speaks against it.
    """
    kind = kind_of(config)
    if config.is_prompt_learning:
        return f"{kind} puts virtual tokens before the text, which these measurements leave out"
    if kind == "POLY":
        return "POLY needs to be told the task of each text"
    if kind == "XLORA":
        return f"XLORA mixes adapters by a classifier {IN_THE_WRAPPER}"
    if getattr(config, "alora_invocation_tokens", None):
        return f"activated LoRA is switched on by its invocation tokens {IN_THE_WRAPPER}"
    return ""


def _not_trainable(config: PeftConfig) -> str:
    """Why a method would not be what its name says when this project's loop trains it."""
    kind = kind_of(config)
    if kind == "HYLORADA":
        return "HYLORADA is this project's own method, whose settings are method.lora and so on"
    if kind == "ADALORA":
        return f"ADALORA gives its ranks away {_CALLS}"
    if kind == "ADAMSS" and getattr(config, "use_asa", False):
        return f"ADAMSS with use_asa chooses its subspaces {_CALLS}"
    return ""


def peft_config(settings: Mapping[str, Any]) -> PeftConfig:
    """The configuration of a method of peft for causal language modelling.

    Args:
        settings: `peft_type` and keys of that method's configuration, as plain values.

    Raises:
        ConfigError: an unknown method or key, a value of another type or out of its range, or a
            method that cannot be trained or measured here.
    """
    asked = dict(settings)
    kind = str(asked.pop("peft_type", ""))
    every: dict[Any, type[PeftConfig]] = PEFT_TYPE_TO_CONFIG_MAPPING  # type: ignore[assignment]
    if kind not in PeftType.__members__ or PeftType(kind) not in every:
        raise ConfigError(
            f"method.peft.peft_type is {kind!r}, which is no method of this peft"
            f"{did_you_mean(kind, list(PeftType.__members__))}"
        )
    config_class = every[PeftType(kind)]
    _check_keys(config_class, asked)
    try:
        config = config_class(task_type="CAUSAL_LM", **asked)  # type: ignore[arg-type]
    except (ValueError, TypeError, AssertionError) as error:
        raise ConfigError(f"method.peft ({kind}): {in_one_line(error, 300)}") from error
    reason = not_measurable(config)
    if reason:
        raise ConfigError(f"method.peft: {reason}; choose an adapter of the weights, such as VERA")
    reason = _not_trainable(config)
    if reason:
        raise ConfigError(f"method.peft: {reason}; choose another method")
    return config


def _check_keys(config_class: type[PeftConfig], asked: Mapping[str, Any]) -> None:
    known = [item.name for item in fields(config_class) if item.init]  # type: ignore[arg-type]
    try:
        hints = get_type_hints(config_class)
    except (NameError, TypeError):  # a name that is only there for type checkers
        hints = {}
    for key, value in asked.items():
        if key in _OF_THE_RUN:
            raise ConfigError(f"method.peft.{key} follows from the run; leave it out")
        if key not in known:
            free = sorted(k for k in known if k not in _OF_THE_RUN)
            raise ConfigError(
                f"method.peft.{key}: peft's {config_class.__name__} has no such key"
                f"{did_you_mean(key, free) or '; it has ' + ', '.join(free)}"
            )
        if key in hints and not _fits(value, hints[key]):
            raise ConfigError(
                f"method.peft.{key} is {value!r}; peft's {config_class.__name__} takes "
                f"{_in_words(hints[key])}"
            )


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is of a type as annotated; what is not known here fits."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    kind = origin or hint
    if kind in (list, tuple, set):
        return isinstance(value, list) and all(_fits(v, inner[0]) for v in value if inner)
    if kind is dict:
        return isinstance(value, dict)
    if kind is bool:
        return isinstance(value, bool)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    if kind is str:
        return isinstance(value, str)
    if kind is type(None):
        return value is None
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return value in [member.value for member in kind]
    return True


def _in_words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        # In one order: Python hands out a union in that in which the process first met its parts.
        words = {_in_words(one) for one in inner}
        return " or ".join(sorted(words, key=lambda word: (word == "null", word)))
    if origin is Literal:
        return " or ".join(repr(one) for one in inner)
    names = {
        int: "a whole number", float: "a number", bool: "true or false", str: "a text",
        type(None): "null", list: "a list", tuple: "a list", set: "a list",
        dict: "settings in braces",
    }  # fmt: skip
    return names.get(origin or hint, getattr(hint, "__name__", str(hint)))
