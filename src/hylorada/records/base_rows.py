"""How the untouched base stands in a record: under which name, and with which numbers.

A base is "extended" only where something was extended; up to its trained length it is itself, and
its own window is not set beside a run's window that is as short.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EXTENDED = "base, extended, untrained"
PLAIN = "base"

Metrics = dict[str, dict[str, Any]]


def is_extended(record: Mapping[str, Any]) -> bool:
    """Whether the base's range was extended for the run's window.

    Records say what was done; of those from before they did, the trained length tells, which is the
    base's own window.
    """
    reached = record.get("position_range")
    if reached:
        return reached["kind"] != "none"
    trained = (record.get("provenance") or {}).get("base_model_trained_length")
    if trained is None:
        own = ((record.get("base") or {}).get("own_window") or {}).values()
        trained = next((metric["window"] for metric in own if metric.get("window")), 0)
    return trained < record["length"]


def base_label(record: Mapping[str, Any]) -> str:
    """What the base in the run's window is called."""
    return EXTENDED if is_extended(record) else PLAIN


def own_window(record: Mapping[str, Any]) -> Metrics:
    """The base in its own window; none where that is no shorter than the run's."""
    measured: Metrics = (record.get("base") or {}).get("own_window") or {}
    return {n: m for n, m in measured.items() if (m.get("window") or 0) < record["length"]}
