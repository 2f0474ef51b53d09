"""The final numbers of a record for trackers, with the tables and pictures of each measurement.

Matplotlib is imported when there is something to draw.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from hylorada.comparison.arms import compare
from hylorada.comparison.collect import Record
from hylorada.errors import HyloradaError, in_one_line
from hylorada.evaluation.measurement import Metrics, measurements, owner
from hylorada.records.base_rows import is_extended
from hylorada.tracking.tracker import Tracker

logger = logging.getLogger(__name__)


def mirror(record: dict[str, Any], tracker: Tracker) -> None:
    """Give a tracker the final numbers of a record, its tables and its pictures.

    What cannot be drawn is one warning: no picture ends a run.
    """
    if not tracker.active:
        return
    tracker.summary(tracked_summary(record))
    shown = arms(record)
    for each in measurements():
        for name, (columns, rows) in each.tracked_tables(shown).items():
            tracker.table(name, columns, rows)
    for each in measurements():
        if not any(name.startswith(each.metrics) for _, metrics in shown for name in metrics):
            continue
        try:
            # The record is complete, but for the word that it is.
            (comparison,), _ = compare([Record(Path(record["name"]), {**record, "status": "ok"})])
            for name, drawn in each.tracked_pictures(comparison).items():
                tracker.picture(name, drawn.png)
        except HyloradaError:  # a signal
            raise
        except Exception as error:  # whatever its drawing library meets
            logger.warning(
                "the pictures of %s cannot be drawn (%s: %s); the numbers are in result.json",
                each.title, type(error).__name__, in_one_line(error, 200),
            )  # fmt: skip


def arms(record: dict[str, Any]) -> list[tuple[str, Metrics]]:
    """The base and, where something was trained, the run: label and metrics."""
    label = "base, extended" if is_extended(record) else "base"
    found: list[tuple[str, Metrics]] = [(label, record["base"].get("extended") or {})]
    if record["parameters"]["trainable"]:
        found.append((record["method"], record["metrics"]))
    return found


def tracked_summary(record: dict[str, Any]) -> dict[str, float]:
    """The final numbers by the names that trackers show them under."""
    values: dict[str, float] = {}
    for name, metric in record["metrics"].items():
        of = owner(name)
        values |= {name: metric["value"]} if of is None else of.tracked(name, metric)
    for name, metric in record["base"]["extended"].items():
        values[f"base/{name}"] = metric["value"]
    values["parameters/trainable"] = record["parameters"]["trainable"]
    for each in measurements():
        values |= each.tracked_costs(record)
    training = record.get("training") or {}
    if training.get("tokens_per_second"):
        values["efficiency/tokens_per_second"] = training["tokens_per_second"]
    if training.get("peak_memory_bytes"):
        values["efficiency/peak_memory_mib"] = training["peak_memory_bytes"] / 2**20
    return values
