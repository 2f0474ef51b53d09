"""HyLoRADA: long-context parameter-efficient fine-tuning in which every switch proves that it acts.

`import hylorada` loads neither torch nor peft; the public names load what they need when they are
first used. It does see to it that peft knows the method, whichever of the two is imported first, so
that `PeftModel.from_pretrained` reads a saved adapter.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hylorada.peft_registration import register_with_peft

if TYPE_CHECKING:
    from hylorada.loading.finished_run import load_run
    from hylorada.methods import HyloradaConfig, adapt, check_integrity

__all__ = ["HyloradaConfig", "adapt", "check_integrity", "load_run"]
__version__ = "0.2.0"

_HOME = {
    "HyloradaConfig": "hylorada.methods",
    "adapt": "hylorada.methods",
    "check_integrity": "hylorada.methods",
    "load_run": "hylorada.loading.finished_run",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'hylorada' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


register_with_peft()
