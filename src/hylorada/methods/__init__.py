"""The method as a library: section 2 of the paper, one file a paragraph.

Importing it registers the PEFT method "hylorada" and the attention function "s2".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hylorada.methods.attach import adapt, load_adapter, register_method
from hylorada.methods.hylorada_config import HyloradaConfig
from hylorada.methods.tuner import HyloradaModel

if TYPE_CHECKING:
    from hylorada.methods.integrity import IntegrityReport, check_integrity

__all__ = [
    "HyloradaConfig", "HyloradaModel", "IntegrityReport", "adapt", "check_integrity",
    "load_adapter",
]  # fmt: skip

register_method()


def __getattr__(name: str) -> Any:
    if name in ("check_integrity", "IntegrityReport"):
        from hylorada.methods import integrity

        return getattr(integrity, name)
    raise AttributeError(f"module 'hylorada.methods' has no attribute {name!r}")
