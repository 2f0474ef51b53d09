"""The few lines a run ends with: what it measured, beside the untouched base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def print_summary(record: dict[str, Any], run_dir: Path, console: Console | None = None) -> None:
    """Print a table of perplexities of the base and this run, and where the record lies.

    Args:
        record: a result.json.
        run_dir: its directory.
        console: default: standard output.
    """
    console = console or Console(highlight=False)
    metrics: dict[str, Any] = record["metrics"]
    extended = record["base"]["extended"]
    own = record["base"]["own_window"]["eval/ppl_sliding"]
    first = next(iter(metrics.values()))

    table = Table(title=f"perplexity, {record['dataset']} {first['split']}", title_justify="left")
    table.add_column("model")
    table.add_column("window", justify="right")
    for metric in metrics.values():
        table.add_column(convention(metric), justify="right")
    table.add_column("against extended base", justify="right")

    # Only the sliding convention is measured in the base's own window.
    own_cells = [
        f"{own['value']:.3f}" if metric["convention"] == "sliding" else "not measured"
        for metric in metrics.values()
    ]
    if not any(metric["convention"] == "sliding" for metric in metrics.values()):
        own_cells[0] = f"{own['value']:.3f} ({convention(own)})"
    table.add_row("base, as it is", str(own["window"]), *own_cells, "")
    _add(table, f"base, range extended to {record['length']}", extended, extended)
    if record["parameters"]["trainable"]:
        label = f"{record['method']}, {record['training']['steps']} steps"
        _add(table, label, metrics, extended)
    console.print(table)
    console.print(f"record: {run_dir / 'result.json'}", soft_wrap=True)


def convention(metric: dict[str, Any]) -> str:
    """The name of a metric's convention, with its stride."""
    stride = metric.get("stride")
    return f"{metric['convention']}, stride {stride}" if stride else metric["convention"]


def _add(table: Table, label: str, metrics: dict[str, Any], base: dict[str, Any]) -> None:
    name, first = next(iter(metrics.items()))
    change = (first["value"] / base[name]["value"] - 1) * 100
    values = [f"{metric['value']:.3f}" for metric in metrics.values()]
    shown = "" if metrics is base else f"{change:+.1f} %"
    table.add_row(label, str(first["window"]), *values, shown)


def tracked_summary(record: dict[str, Any]) -> dict[str, float]:
    """The final numbers by the names that trackers show them under."""
    metrics: dict[str, Any] = record["metrics"]
    values: dict[str, float] = {}
    for name, metric in metrics.items():
        values[name] = metric["value"]
        for bucket in metric["by_position"]:
            if bucket["ppl"] is not None:
                values[f"{name}_by_position/{bucket['start']}-{bucket['end']}"] = bucket["ppl"]
    for name, metric in record["base"]["extended"].items():
        values[f"base/{name}"] = metric["value"]
    values["parameters/trainable"] = record["parameters"]["trainable"]
    gained = params_per_percent(record)
    if gained is not None:
        values["efficiency/params_per_percent"] = gained
    return values


def params_per_percent(record: dict[str, Any]) -> float | None:
    """Trainable parameters per 1 % of perplexity gained on the extended base; None without gain."""
    name, metric = next(iter(record["metrics"].items()))
    base = record["base"]["extended"][name]["value"]
    percent = (base - metric["value"]) / base * 100
    trainable = record["parameters"]["trainable"]
    return trainable / percent if trainable and percent > 0 else None
