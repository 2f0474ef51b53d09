"""Make peft know the method, whichever of the two packages is imported first.

peft has no entry point for methods of other packages, and importing it takes seconds, so
`import hylorada` must not import it. Instead the import of peft is followed by that of
`hylorada.methods`, which registers the method. Standard library only.
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
