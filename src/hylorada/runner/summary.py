"""The few lines a run ends with: what it measured, beside the untouched base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

CONVENTIONS = {"eval/ppl": "blocks", "eval/ppl_sliding": "sliding"}


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
    shown = list(metrics)
    if "eval/ppl_sliding" not in shown:  # the only convention of the base's own window
        shown.append("eval/ppl_sliding")

    first = metrics[shown[0]]
    table = Table(
        title=f"perplexity on {record['dataset']}, {first['split']}: {first['tokens']} tokens",
        title_justify="left",
    )
    for header in ("model", "window", *(CONVENTIONS[name] for name in shown), "change"):
        table.add_column(header, justify="left" if header == "model" else "right", no_wrap=True)

    def add(label: str, window: int, row: dict[str, Any], change: str = "") -> None:
        cells = [f"{row[name]['value']:.3f}" if name in row else "-" for name in shown]
        table.add_row(label, str(window), *cells, change)

    add("base, as it is", own["window"], {"eval/ppl_sliding": own})
    add("base, extended, untrained", record["length"], extended)
    if record["parameters"]["trainable"]:
        change = (first["value"] / extended[shown[0]]["value"] - 1) * 100
        label = f"{record['method']}, {record['training']['steps']} steps"
        add(label, record["length"], metrics, f"{change:+.2f} %")
    console.print(table)
    console.print(f"record: {run_dir / 'result.json'}", soft_wrap=True)


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
