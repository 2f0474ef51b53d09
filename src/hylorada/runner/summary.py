"""The few lines a run ends with: what it measured, beside the untouched base."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hylorada.evaluation.measurement import Lines, Metrics, measurements
from hylorada.records.base_rows import base_label
from hylorada.records.run_label import run_label


def print_summary(record: dict[str, Any], run_dir: Path, console: Console | None = None) -> None:
    """Print what was measured of the base and of this run, and where the record lies.

    Args:
        record: a result.json.
        run_dir: its directory.
        console: default: standard output.
    """
    console = console or summary_console()
    for table in summary_tables(record, record["metrics"]):
        console.print(table)
    console.print(f"record: {run_dir / 'result.json'}", soft_wrap=True)


def summary_console() -> Console:
    """Standard output; wide enough for whole lines where no terminal sets the width."""
    piped = not sys.stdout.isatty()
    return Console(highlight=False, width=140 if piped and "COLUMNS" not in os.environ else None)


def summary_tables(record: dict[str, Any], metrics: Metrics) -> list[Table]:
    """The tables of each measurement among the metrics, the base first.

    Args:
        record: a result.json.
        metrics: those of its metrics that are to be shown.
    """
    arms: list[tuple[str, Metrics]] = [(base_label(record), record["base"].get("extended") or {})]
    if record["parameters"]["trainable"]:
        arms.append((run_label(record), metrics))
    return [
        _table(lines) for each in measurements() for lines in each.summary(record, metrics, arms)
    ]


def _table(lines: Lines) -> Table:
    table = Table(title=lines.title, title_justify="left")
    if lines.wraps:
        table.add_column(lines.first, no_wrap=True)
    else:  # on a narrow terminal the names of models are broken, never the numbers
        table.add_column(lines.first, overflow="fold")
    for header in lines.headers:
        table.add_column(header, justify="right", no_wrap=not lines.wraps)
    for row in lines.rows:
        table.add_row(*row)
    return table
