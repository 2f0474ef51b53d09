"""Each run by itself, behind a click: what it did, the gate's verdict, provenance, settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hylorada.comparison.arms import Arm, Comparison
from hylorada.comparison.cells import NOT_MEASURED, number
from hylorada.comparison.collect import Record
from hylorada.evaluation.measurement import Shown, measurements
from hylorada.process.counts import number_of
from hylorada.records.chosen_settings import choice_in_words, chosen_in
from hylorada.report.html_parts import text
from hylorada.report.table import one_line


def run_details(record: Record, arm: Arm, comparison: Comparison) -> str:
    """One run, folded to a line that tells it from every other of the report."""
    kind = "ok" if record.ok else "failed"
    numbers = [
        f"{one.heading} {shown}"
        for each in measurements()
        for one in each.of_each_run()
        if (shown := _measured(record, one)) != NOT_MEASURED
    ]
    settings = f" ({comparison.label})" if comparison.label else ""
    which = f"{comparison.length:,} tokens{settings}, seed {record.seed}"
    line = "; ".join([which, *numbers])
    return (
        f'<details class="run {kind}"><summary><b>{text(arm.label)}</b> '
        f"<span>{text(line)}; {text(_status(record))}; gate {text(_verdict(record))}</span>"
        f"</summary>{_training(record)}{_gate(record)}{_provenance(record)}{_settings(record)}"
        "</details>"
    )


def _status(record: Record) -> str:
    status = record.status
    if error := one_line(record.data.get("error"), 120):
        return f"{status}: {error}"
    skipped = record.part("training").get("skipped_steps")
    return f"{status}, {number_of(skipped, 'step')} skipped" if skipped else status


def _verdict(record: Record) -> str:
    gate = record.part("integrity")
    return ("passed" if gate["ok"] else "failed") if "ok" in gate else NOT_MEASURED


def _measured(record: Record, shown: Shown) -> str:
    metric = record.metric(shown.metric)
    if metric is None:
        return NOT_MEASURED
    return "overflow" if metric["value"] is None else number(shown.scale * metric["value"])


def _training(record: Record) -> str:
    training = record.part("training")
    facts = {
        "directory": str(record.path),
        "steps": _count(training.get("steps")),
        "trained on, tokens": _count(training.get("tokens")),
        "seconds": _count(training.get("seconds")),
        "precision": training.get("precision") or "-",
    }
    if (chosen := chosen_in(record.data)) is not None:
        facts["chosen"] = f"{choice_in_words(chosen)}; the grid: {chosen['grid']}"
    if error := record.data.get("error"):
        facts = {"error": one_line(error, 2000)} | facts
    return f"<h4>Training</h4>{_list(facts)}"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _gate(record: Record) -> str:
    """Each check of the gate, in the order they ran."""
    gate = record.part("integrity")
    rows = []
    for name, check in (gate.get("checks") or {}).items():
        failed = not check["ok"]
        word = "failed" if failed else "skipped" if check.get("skipped") else "passed"
        why = check.get("skipped") or check.get("detail") or ""
        marked = ' class="check-failed"' if failed else ""
        rows.append(f"<dt{marked}>{text(name)}: {word}</dt><dd>{text(why)}</dd>")
    rows += [f"<dt>warning</dt><dd>{text(each)}</dd>" for each in gate.get("warnings") or []]
    checks = f"<dl>{''.join(rows)}</dl>" if rows else ""
    return f"<h4>Integrity gate: {text(_verdict(record))}</h4>{checks}"


def _provenance(record: Record) -> str:
    facts = {
        ("text" if name == "dataset" else name.replace("_", " ")): value
        for name, value in sorted(record.part("provenance").items())
    }
    return f"<h4>Provenance</h4>{_list(facts)}"


def _settings(record: Record) -> str:
    config = json.dumps(record.part("config"), indent=1, sort_keys=True)
    return f"<h4>Settings</h4><pre><code>{text(config)}</code></pre>"


def _list(facts: Mapping[str, Any]) -> str:
    return (
        "<dl>"
        + "".join(f"<dt>{text(name)}</dt><dd>{_value(v)}</dd>" for name, v in facts.items())
        + "</dl>"
    )


def _value(value: Any) -> str:
    if isinstance(value, dict):
        shown = (f"{k} {_flat(v)}" for k, v in sorted(value.items()) if v not in ("", 0, [], None))
        return text("; ".join(shown))
    return text(value) if value is not None else "unknown"


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_flat(v)}" for k, v in value.items() if v not in ("", None))
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
