"""The report as one HTML file that needs nothing else: tables, figures, runs, provenance.

No script, no request to anywhere; every text from a record is escaped.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from hylorada.comparison.cells import number
from hylorada.comparison.collect import Problem, Record
from hylorada.comparison.picture import Picture
from hylorada.evaluation.measurement import Shown, measurements
from hylorada.report.render import cell
from hylorada.report.table import NOT_MEASURED, Row, Table, one_line

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --dim: #5c626b; --line: #d9dce1; --paper: #ffffff;
  --band: #f4f5f7; --bad: #b3261e; --mark: #0b57d0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7e9; --dim: #a2a8b1; --line: #3a3f47;
  --paper: #16181b; --band: #1f2226; --bad: #ff8a80; --mark: #8ab4f8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 100rem; padding: 1.5rem clamp(1rem, 4vw, 3rem) 4rem;
  background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: .5rem 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
p.lead { color: var(--dim); margin: 0 0 1rem; max-width: 62rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: .84rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .55rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
thead th { background: var(--band); font-weight: 600; vertical-align: bottom; }
tbody tr:last-child > * { border-bottom: 0; }
.n { text-align: right; white-space: nowrap; }
thead .n { white-space: normal; }
td.groups { color: var(--dim); white-space: nowrap; }
tbody th { font-weight: 600; white-space: nowrap; }
tbody th[scope="row"] { position: sticky; left: 0; background: var(--paper); }
tr.base > * { color: var(--dim); } tr.base th { font-weight: 400; font-style: italic; }
tr.failed td, tr.failed th { color: var(--bad); }
tr.section th { background: var(--band); font-weight: 600; color: var(--ink); }
.none { color: var(--dim); font-size: .92em; }
ul.notes { margin: .7rem 0 0; padding-left: 1.1rem; color: var(--dim); font-size: .86rem;
  max-width: 70rem; }
figure { margin: 1.2rem 0; }
figure .sheet { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: .6rem;
  max-width: 60rem; }
figure .sheet { overflow-x: auto; } figure svg { display: block; width: 100%; height: auto;
  min-width: 34rem; }
figcaption { color: var(--dim); font-size: .86rem; margin-top: .4rem; max-width: 60rem; }
details { border: 1px solid var(--line); border-radius: 8px; padding: .5rem .9rem;
  margin: .6rem 0; }
summary { cursor: pointer; color: var(--mark); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; font-size: .86rem; }
dt { color: var(--dim); } dd { margin: 0; overflow-wrap: anywhere; }
code { font: .92em ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; } }
@media print { .scroll { overflow: visible; } }
"""


def build_page(
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    records: Sequence[Record],
    problems: Sequence[Problem],
) -> str:
    """The whole document; the same arguments give the same bytes."""
    ok = sum(record.ok for record in records)
    title = "HyLoRADA report"
    lead = (
        f"{len(records)} runs, {ok} finished. Every number is read from a run's record; a cell "
        f"without one says “{NOT_MEASURED}”."
    )
    parts = [f"<h1>{title}</h1>", f'<p class="lead">{_text(lead)}</p>']
    for table in tables:
        parts += [f"<h2>{_text(table.title)}</h2>", _table(table), _notes(table.notes)]
    if pictures:
        parts.append("<h2>Figures</h2>")
        parts += [_figure(picture) for picture in pictures]
    parts += ["<h2>Runs</h2>", _runs(records), "<h2>Where the numbers come from</h2>"]
    parts += _provenance(records)
    if problems:
        parts.append("<h2>Left out</h2>")
        parts.append(_notes([f"{problem.path}: {problem.reason}" for problem in problems]))
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _notes(notes: Iterable[str]) -> str:
    return '<ul class="notes">' + "".join(f"<li>{_text(note)}</li>" for note in notes) + "</ul>"


def _table(table: Table) -> str:
    head = "".join(
        f'<th scope="col"{_numeric(column.numeric)}>{_text(column.heading)}</th>'
        for column in table.columns
    )
    rows = []
    for section in table.sections:
        rows.append(
            f'<tr class="section"><th scope="rowgroup" colspan="{len(table.columns)}">'
            f"{_text(section.heading)}</th></tr>"
        )
        rows += [_row(table, row) for row in section.rows]
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(table: Table, row: Row) -> str:
    cells = []
    for column in table.columns:
        text = _text(cell(row, column.key).text)
        if column.key == "method":
            cells.append(f'<th scope="row">{text}</th>')
            continue
        if text == NOT_MEASURED:
            text = f'<span class="none">{text}</span>'
        kind = ' class="groups"' if column.key == "groups" else _numeric(column.numeric)
        cells.append(f"<td{kind}>{text}</td>")
    return f'<tr class="{row.kind}">{"".join(cells)}</tr>'


def _numeric(numeric: bool) -> str:
    return ' class="n"' if numeric else ""


def _figure(picture: Picture) -> str:
    svg = picture.svg[picture.svg.index("<svg") :]
    # Several drawings share one document: their ids must differ, and so must what refers to them.
    for pattern in (r'(\bid=")', r'(href="#)', r"(url\(#)"):
        svg = re.sub(pattern, rf"\g<1>{picture.name}-", svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{_text(picture.caption)}" ', 1)
    return (
        f'<figure><div class="sheet">{svg}</div>'
        f"<figcaption>{_text(picture.caption)}</figcaption></figure>"
    )


def _runs(records: Sequence[Record]) -> str:
    """Each run by itself: no pooling, no mean."""
    shown = [one for each in measurements() for one in each.of_each_run()]
    heads = (
        ("method", False), ("length", True), ("seed", True), ("status", False),
        *((one.heading, True) for one in shown), ("steps", True), ("tokens trained", True),
        ("seconds", True), ("precision", False), ("integrity gate", False), ("directory", False),
    )  # fmt: skip
    head = "".join(f'<th scope="col"{_numeric(n)}>{_text(name)}</th>' for name, n in heads)
    rows = []
    for record in records:
        training, gate = record.part("training"), record.part("integrity")
        passed = ("passed" if gate["ok"] else "failed") if "ok" in gate else NOT_MEASURED
        status = record.status
        if error := one_line(record.data.get("error"), 120):
            status += f": {error}"
        elif skipped := training.get("skipped_steps"):
            status += f", {skipped} steps skipped"
        values = [
            f"{record.data['length']:,}",
            str(record.seed),
            status,
            *(_measured(record, each) for each in shown),
            _count(training.get("steps")),
            _count(training.get("tokens")),
            _count(training.get("seconds")),
            training.get("precision") or "-",
            passed,
            record.path.name,
        ]
        columns = zip(values, heads[1:], strict=True)
        cells = "".join(f"<td{_numeric(n)}>{_text(v)}</td>" for v, (_, n) in columns)
        kind = "arm" if record.ok else "failed"
        name = _text(record.data["method"])
        rows.append(f'<tr class="{kind}"><th scope="row">{name}</th>{cells}</tr>')
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _measured(record: Record, shown: Shown) -> str:
    metric = record.metric(shown.metric)
    if metric is None:
        return NOT_MEASURED
    return "overflow" if metric["value"] is None else number(shown.scale * metric["value"])


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _provenance(records: Sequence[Record]) -> list[str]:
    """What was the same for many runs is said once, with the runs it holds for."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        facts = {
            k: v for k, v in record.part("provenance").items() if k not in ("time", "inputs")
        }  # what was read has its hashes beside these
        if "dataset" in facts:
            facts["text"] = facts.pop("dataset")
        facts["model"] = record.part("config").get("model") or record.data["model"]
        facts["dataset"] = record.part("config").get("dataset") or record.data["dataset"]
        groups.setdefault(json.dumps(facts, sort_keys=True), []).append(record)
    parts = []
    for key, members in groups.items():
        facts = json.loads(key)
        items = "".join(
            f"<dt>{_text(name.replace('_', ' '))}</dt><dd>{_value(facts[name])}</dd>"
            for name in sorted(facts)
        )
        times = sorted(t for r in members if (t := r.part("provenance").get("time")))
        if times:
            items += f"<dt>started</dt><dd>{_text(times[0])} to {_text(times[-1])}</dd>"
        names = ", ".join(record.data["name"] for record in members)
        summary = f"{len(members)} run" + ("s" if len(members) > 1 else "")
        parts.append(
            f"<details open><summary>{summary} on {_text(facts.get('hardware') or 'unknown')}"
            f"</summary><dl>{items}<dt>runs</dt><dd>{_text(names)}</dd></dl></details>"
        )
    for record in records:
        config = json.dumps(record.part("config"), indent=1, sort_keys=True)
        parts.append(
            f"<details><summary>settings of {_text(record.data['name'])}</summary>"
            f"<pre><code>{_text(config)}</code></pre></details>"
        )
    return parts


def _value(value: Any) -> str:
    if isinstance(value, dict):
        shown = (f"{k} {_flat(v)}" for k, v in sorted(value.items()) if v not in ("", 0, [], None))
        return _text("; ".join(shown))
    return f"<code>{_text(value)}</code>" if value is not None else "unknown"


def _flat(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
