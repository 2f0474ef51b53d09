"""The report as one HTML file that needs nothing else: verdicts, tables, figures, runs.

No script, no request to anywhere; every text from a record is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hylorada.comparison.arms import Comparison
from hylorada.comparison.cells import NOT_MEASURED
from hylorada.comparison.collect import Problem, Record
from hylorada.comparison.drawing import ON_DARK
from hylorada.comparison.picture import Picture
from hylorada.process.counts import number_of
from hylorada.report.cards import cards, hypotheses, main_table
from hylorada.report.html_parts import notes, text
from hylorada.report.runs import run_details
from hylorada.report.style import STYLE
from hylorada.report.table import Table


def build_page(
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    comparisons: Sequence[Comparison],
    problems: Sequence[Problem],
    chosen: str = "",
) -> str:
    """The whole document; the same arguments give the same bytes.

    Args:
        tables: of results.
        pictures: below them.
        comparisons: of all runs in them.
        problems: what was left out.
        chosen: the section on settings that were chosen (`report.selection`); often empty.
    """
    title = "HyLoRADA report"
    runs = [(run, arm, each) for each in comparisons for arm in each.arms for run in arm.runs]
    parts = [f"<h1>{title}</h1>", f'<p class="lead">{text(_lead([run for run, *_ in runs]))}</p>']
    for table in tables:
        parts += [f"<h2>{text(table.title)}</h2>", _verdicts(table), main_table(table)]
        parts += [cards(table), hypotheses(table)]
        parts += ["<h3>How to read these numbers</h3>", notes(table.notes)]
    if chosen:
        parts.append(chosen)
    if pictures:
        parts += ["<h2>Figures</h2>", '<div class="figures">', *map(_figure, pictures), "</div>"]
    if runs:
        parts += ["<h2>Runs</h2>", *(run_details(*each) for each in runs)]
    if problems:
        parts.append("<h2>Left out</h2>")
        parts.append(notes([f"{problem.path}: {problem.reason}" for problem in problems]))
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{title}</title>\n<style>{_colours()}{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _colours() -> str:
    """The colours of drawings by name, so that those on a page may change in the dark."""
    light = " ".join(f"--x{colour[1:]}: {colour};" for colour in ON_DARK)
    dark = " ".join(f"--x{colour[1:]}: {other};" for colour, other in ON_DARK.items())
    when = "@media screen and (prefers-color-scheme: dark)"
    return f"\n:root {{ {light} }}\n{when} {{ :root {{ {dark} }} }}"


def _lead(records: Sequence[Record]) -> str:
    ok = sum(record.ok for record in records)
    hardware = dict.fromkeys(
        str(name) for r in records if (name := r.part("provenance").get("hardware"))
    )
    days = sorted(t[:10] for r in records if (t := r.part("provenance").get("time")))
    when = f", {' to '.join(dict.fromkeys([days[0], days[-1]]))}" if days else ""
    where = f", on {'; '.join(hardware)}" if hardware else ""
    return (
        f"{number_of(len(records), 'run')}, {ok} finished{where}{when}. "
        f"Every number is read from a run's record; a cell without one says “{NOT_MEASURED}”."
    )


def _verdicts(table: Table) -> str:
    lines = "".join(
        f'<li class="{each.kind.replace(" ", "-")}">{text(each.text)}</li>'
        for each in table.verdicts
    )
    return f'<ul class="verdicts">{lines}</ul>' if lines else ""


def _figure(picture: Picture) -> str:
    svg = picture.svg[picture.svg.index("<svg") :]
    svg = re.sub("|".join(ON_DARK), lambda colour: f"var(--x{colour[0][1:]})", svg)
    # Several drawings share one document: their ids must differ, and so must what refers to them.
    for pattern in (r'(\bid=")', r'(href="#)', r"(url\(#)"):
        svg = re.sub(pattern, rf"\g<1>{picture.name}-", svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{text(picture.caption)}" ', 1)
    return (
        f'<figure><div class="sheet">{svg}</div>'
        f"<figcaption>{text(picture.caption)}</figcaption></figure>"
    )
