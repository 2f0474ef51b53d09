"""What a run is called beside its base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hylorada.process.counts import number_of


def run_label(record: Mapping[str, Any]) -> str:
    """The method and the steps that it was trained for."""
    training = record["training"]
    if not training:
        return record["method"]
    skipped = training.get("skipped_steps")
    return f"{record['method']}, {number_of(training['steps'], 'step')}" + (
        f", {skipped} skipped" if skipped else ""
    )
