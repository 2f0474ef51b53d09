"""The final numbers of a record for trackers, accuracy by depth also as rows and as a picture.

The report draws its own pictures, from records.

Matplotlib is imported when there is something to draw.
"""

from __future__ import annotations

import io
import logging
from typing import Any

from hylorada.errors import HyloradaError
from hylorada.records.base_rows import is_extended
from hylorada.records.metric_names import SUFFIXES
from hylorada.records.summary import tracked_summary
from hylorada.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

SCORES = ("depth", "prompts", "accuracy", "low", "high")
COLUMNS = ["model", "scoring", *SCORES, "chance"]


def mirror(record: dict[str, Any], tracker: Tracker) -> None:
    """Give a tracker the final numbers of a record, its table by depth and its U-curves.

    What cannot be drawn is one warning: no picture ends a run.
    """
    if not tracker.active:
        return
    tracker.summary(tracked_summary(record))
    rows = rows_by_depth(record)
    if rows:
        tracker.table("lim/by_depth", COLUMNS, rows)
    try:
        for suffix in SUFFIXES.values():
            png = draw_curve(record, suffix)
            if png is not None:
                tracker.picture(f"lim/curve{suffix}", png)
    except HyloradaError:  # a signal
        raise
    except Exception as error:  # whatever its drawing library meets
        logger.warning(
            "accuracy by depth cannot be drawn (%s: %s); the numbers are in result.json",
            type(error).__name__, " ".join(str(error).split())[:200],
        )  # fmt: skip


def arms(record: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The base and, where something was trained, the run: label and metrics."""
    label = "base, extended" if is_extended(record) else "base"
    found: list[tuple[str, dict[str, Any]]] = [(label, record["base"].get("extended") or {})]
    if record["parameters"]["trainable"]:
        found.append((record["method"], record["metrics"]))
    return found


def rows_by_depth(record: dict[str, Any]) -> list[list[Any]]:
    """A row of `COLUMNS` for each model, scoring and depth; none if retrieval was not measured."""
    rows = []
    for label, metrics in arms(record):
        for suffix in SUFFIXES.values():
            whole = metrics.get(f"lim/accuracy{suffix}", {})
            for score in whole.get("by_depth", []):
                values = [score[key] for key in SCORES]
                rows.append([label, whole["scoring"], *values, whole["chance"]])
    return rows


def draw_curve(record: dict[str, Any], suffix: str = "") -> bytes | None:
    """The U-curve as a PNG: 95 % intervals, the chance line; None if it was not measured.

    Args:
        record: a result.json.
        suffix: of the metric's name, see `metric_names.SUFFIXES`.
    """
    shown = [
        (label, m[name]) for label, m in arms(record) if (name := f"lim/accuracy{suffix}") in m
    ]
    if not shown:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for (label, whole), colour in zip(shown, ("#666666", "#D55E00"), strict=False):
        depths = [score["depth"] for score in whole["by_depth"]]
        accuracy = [score["accuracy"] for score in whole["by_depth"]]
        errors = [
            [score["accuracy"] - score["low"] for score in whole["by_depth"]],
            [score["high"] - score["accuracy"] for score in whole["by_depth"]],
        ]
        axes.errorbar(
            depths, accuracy, yerr=errors, color=colour, marker="o", markersize=4, capsize=3,
            label=label,
        )  # fmt: skip
    _, whole = shown[-1]
    axes.axhline(whole["chance"], color="#000000", linestyle=":", linewidth=1, label="chance")
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("depth of the wanted item (0: first, 1: last)")
    axes.set_ylabel(f"right answers, {whole['scoring']}")
    axes.set_title(f"{whole['prompts']} prompts, window {whole['window']:,}", fontsize=10)
    axes.legend(frameon=False)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    return png.getvalue()
