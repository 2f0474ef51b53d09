"""The few lines a run ends with: what it measured, beside the untouched base."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hylorada.records.base_rows import base_label, own_window
from hylorada.records.metric_names import COMPARED, PERPLEXITIES, SUFFIXES

BENCHMARKS = ("longbench/", "ruler/")
CONVENTIONS = {name: convention for convention, name in PERPLEXITIES.items()}
Metrics = dict[str, dict[str, Any]]


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
    """A table for each kind of measurement among the metrics, the base first.

    Args:
        record: a result.json.
        metrics: those of its metrics that are to be shown.
    """
    extended: Metrics = record["base"].get("extended") or {}
    arms = [(base_label(record), extended)]
    if record["parameters"]["trainable"]:
        arms.append((_label(record), metrics))
    tables = []
    if any(name in metrics for name in CONVENTIONS):
        tables.append(_perplexity(record, metrics, extended))
    for suffix in SUFFIXES.values():
        if f"lim/accuracy{suffix}" in metrics:
            tables.append(_retrieval(metrics, arms, suffix))
    if "context_gain/gain" in metrics:
        tables.append(_context_gain(metrics, arms))
    scores = [name for name in metrics if name.startswith(BENCHMARKS)]
    if scores:
        tables.append(_benchmarks(metrics, arms, scores))
    return tables


def _label(record: dict[str, Any]) -> str:
    training = record["training"]
    if not training:
        return record["method"]
    skipped = training.get("skipped_steps")
    return f"{record['method']}, {training['steps']} steps" + (
        f", {skipped} skipped" if skipped else ""
    )


def _perplexity(record: dict[str, Any], metrics: Metrics, extended: Metrics) -> Table:
    own = own_window(record)
    shown = [name for name in metrics if name in CONVENTIONS]
    first = metrics[shown[0]]
    if COMPARED["sliding"] in own and COMPARED["sliding"] not in shown:
        shown.append(COMPARED["sliding"])  # what the base's own window is measured in, always
    compared = _compared(metrics, extended)
    table = _table(
        f"perplexity on {record['dataset']}, {first['split']}: {first['tokens']} tokens",
        ["window", *(CONVENTIONS[name] for name in shown), *(["change"] if compared else [])],
    )

    def add(label: str, window: int, row: Metrics, change: str = "") -> None:
        cells = [_number(row[name]["value"]) if name in row else "-" for name in shown]
        table.add_row(label, str(window), *cells, *([change] if compared else []))

    if own:
        add("base, as it is", next(iter(own.values()))["window"], own)
    add(base_label(record), record["length"], extended)
    if record["parameters"]["trainable"]:
        change = ""
        if compared:
            value, base = metrics[compared]["value"], extended[compared]["value"]
            change = f"{(value / base - 1) * 100:+.2f} %" if value and base else ""
        add(_label(record), record["length"], metrics, change)
    return table


def _compared(metrics: Metrics, extended: Metrics) -> str | None:
    """The perplexity that a run is compared with the extended base in."""
    return next((name for name in COMPARED.values() if name in metrics and name in extended), None)


def _retrieval(metrics: Metrics, arms: list[tuple[str, Metrics]], suffix: str) -> Table:
    whole = metrics[f"lim/accuracy{suffix}"]
    low, high = whole["prompt_tokens"]
    table = _table(
        f"right answers by depth, {whole['scoring']} ({whole['form']}): {whole['prompts']} prompts "
        f"of {low} to {high} tokens, chance {whole['chance']:.1%}",
        [*(f"{score['depth']:g}" for score in whole["by_depth"]), "all", "edges -\nmiddle"],
    )
    for label, arm in arms:
        found = arm.get(f"lim/accuracy{suffix}")
        if found is None or found["prompts_sha256"] != whole["prompts_sha256"]:
            continue
        gap = arm.get(f"lim/middle_gap{suffix}")
        cells = [f"{score['accuracy']:.1%}" for score in found["by_depth"]]
        table.add_row(label, *cells, f"{found['value']:.1%}", f"{gap['value']:+.1%}" if gap else "")
    return table


def _context_gain(metrics: Metrics, arms: list[tuple[str, Metrics]]) -> Table:
    whole = metrics["context_gain/gain"]
    contexts = [score["context"] for score in whole["by_context"]]
    table = _table(
        f"loss of the same {whole['by_context'][0]['tokens']} tokens by context before them, "
        "nats per token",
        [*map(str, contexts), "gain"],
    )
    for label, arm in arms:
        found = arm.get("context_gain/gain")
        if found and [score["context"] for score in found["by_context"]] == contexts:
            cells = [f"{s['sum_nll'] / s['tokens']:.3f}" for s in found["by_context"]]
            table.add_row(label, *cells, f"{found['value']:+.3f}")
    return table


def _benchmarks(metrics: Metrics, arms: list[tuple[str, Metrics]], names: list[str]) -> Table:
    first = metrics[names[0]]
    table = Table(
        title=f"scores from 0 to 100, window {first['window']}, 95 % intervals, by lm-eval "
        f"{first['lm_eval']} with the official cut and scores",
        title_justify="left",
    )
    table.add_column("task", no_wrap=True)
    for header in ("examples", "cut", *(label for label, _ in arms)):
        table.add_column(header, justify="right")  # too many to stand in one line everywhere
    for name in names:
        whole = metrics[name]
        cells = [str(whole["examples"]), str(whole["cut"])]
        for _, arm in arms:
            found = arm.get(name)
            same = found is not None and found["questions_sha256"] == whole["questions_sha256"]
            cells.append(
                f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
                if found is not None and same
                else "-"
            )
        table.add_row(name, *cells)
    return table


def _table(title: str, headers: list[str]) -> Table:
    table = Table(title=title, title_justify="left")
    # On a narrow terminal the names of models are broken, never the numbers.
    table.add_column("model", overflow="fold")
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _number(value: float | None) -> str:
    return "overflow" if value is None else f"{value:.3f}"


def tracked_summary(record: dict[str, Any]) -> dict[str, float]:
    """The final numbers by the names that trackers show them under."""
    metrics: Metrics = record["metrics"]
    values: dict[str, float] = {}
    for name, metric in metrics.items():
        values[name] = metric["value"]
        for bucket in metric.get("by_position", []):
            if bucket["ppl"] is not None:
                values[f"{name}_by_position/{bucket['start']}-{bucket['end']}"] = bucket["ppl"]
    for name, metric in record["base"]["extended"].items():
        values[f"base/{name}"] = metric["value"]
    values["parameters/trainable"] = record["parameters"]["trainable"]
    gained = params_per_percent(record)
    if gained is not None:
        values["efficiency/params_per_percent"] = gained
    training = record.get("training") or {}
    if training.get("tokens_per_second"):
        values["efficiency/tokens_per_second"] = training["tokens_per_second"]
    if training.get("peak_memory_bytes"):
        values["efficiency/peak_memory_mib"] = training["peak_memory_bytes"] / 2**20
    return values


def params_per_percent(record: dict[str, Any]) -> float | None:
    """Trainable parameters per 1 % of perplexity gained on the extended base; None without gain."""
    metrics, extended = record["metrics"], record["base"]["extended"]
    name = _compared(metrics, extended)
    if name is None:
        return None
    base, value = extended[name]["value"], metrics[name]["value"]
    if not base or value is None:
        return None
    percent = (base - value) / base * 100
    trainable = record["parameters"]["trainable"]
    return trainable / percent if trainable and percent > 0 else None
