"""HyLoRADA: long-context parameter-efficient fine-tuning in which every switch proves that it acts.

`import hylorada` loads neither torch nor peft; the public names load what they need when they are
first used. It does see to it that peft knows the method, whichever of the two is imported first, so
that `PeftModel.from_pretrained` reads a saved adapter.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hylorada.peft_registration import register_with_peft

if TYPE_CHECKING:
    from hylorada.comparison.rows import records_as_rows
    from hylorada.loading.finished_run import load_run
    from hylorada.methods import HyloradaConfig, adapt, check_integrity

__all__ = ["HyloradaConfig", "adapt", "check_integrity", "load_run", "records_as_rows"]
__version__ = "0.2.0"

_HOME = {
    "HyloradaConfig": "hylorada.methods",
    "adapt": "hylorada.methods",
    "check_integrity": "hylorada.methods",
    "load_run": "hylorada.loading.finished_run",
    "records_as_rows": "hylorada.comparison.rows",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'hylorada' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


# Before the hub's clients are imported: they would tell it of this machine's packages.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
register_with_peft()
