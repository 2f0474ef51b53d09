"""Make peft know the method, whichever of the two packages is imported first.

Both intrusions into peft are here, each for something that peft has no door for:

* It has no entry point for methods of other packages, and importing it takes seconds, so
  `import hylorada` must not import it. Instead the import of peft is followed by that of
  `hylorada.methods`, which registers the method (`register_with_peft`).
* Its list of methods is a closed enum, so that gets one more member (`add_method`).

This file itself needs the standard library alone: peft is imported by whoever calls `add_method`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any


class _AfterPeft(MetaPathFinder):
    """Finds peft as the other finders do, and registers the method once peft has been executed.

    It stays in place when somebody only looks for peft (transformers does) without importing it.
    """

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != "peft":
            return None
        others = [f for f in sys.meta_path if f is not self and hasattr(f, "find_spec")]
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((s for s in specs if s is not None), None)
        if spec is None or spec.loader is None:
            return spec
        exec_module = spec.loader.exec_module

        def execute_then_register(module: Any) -> None:
            exec_module(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            import_module("hylorada.methods")

        setattr(spec.loader, "exec_module", execute_then_register)  # noqa: B010  (mypy)
        return spec


def register_with_peft() -> None:
    """Register the method now if peft is loaded, otherwise as soon as it is."""
    if "peft" in sys.modules:
        import_module("hylorada.methods")
    else:
        sys.meta_path.insert(0, _AfterPeft())


def add_method(
    name: str, config_class: type, model_class: type, prefix: str, other_name: str
) -> None:
    """Make a class of adapters a method that peft knows by name; a second call changes nothing.

    Args:
        name: of the method, in capitals.
        config_class: its configuration.
        model_class: its tuner.
        prefix: how the names of its parameters begin.
        other_name: another name under which files call it; it may be one that peft itself has.
    """
    utils, mapping = import_module("peft.utils"), import_module("peft.mapping")
    types = utils.PeftType
    if name not in types.__members__:
        member = str.__new__(types, name)
        member._name_ = member._value_ = name
        type.__setattr__(types, name, member)
        types._member_names_.append(name)
        types._member_map_[name] = member
        types._value2member_map_[name] = member
    if types(name) not in mapping.PEFT_TYPE_TO_TUNER_MAPPING:
        utils.register_peft_method(
            name=name.lower(), config_cls=config_class, model_cls=model_class, prefix=prefix
        )
    mapping.PEFT_TYPE_TO_CONFIG_MAPPING[other_name] = config_class
