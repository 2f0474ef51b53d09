"""`hylorada-report DIR...`: read records, print the table, write everything else beside them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from hylorada import __version__
from hylorada.command_line.arguments import Parser
from hylorada.command_line.suggest import did_you_mean
from hylorada.comparison.arms import compare
from hylorada.comparison.collect import Record, collect, unfinished
from hylorada.comparison.selection import Choice, select
from hylorada.errors import ConfigError
from hylorada.evaluation.measurement import owner
from hylorada.report import figures, page, render
from hylorada.report import selection as selections
from hylorada.report.files import default_out, refuse_out, write_files
from hylorada.report.table import build_tables
from hylorada.settings.chosen import keys_of


def main(words: Sequence[str]) -> int:
    """The command; returns its exit code.

    Raises:
        ConfigError: wrong arguments.
        DataError: no record is below the folders.
        DiskError: the report cannot be written.
    """
    arguments = _parser().parse_args(words)
    out = arguments.out or default_out(arguments.folders[0])
    keys = keys_of(arguments.select) if arguments.select else ()
    if arguments.partial and not keys:
        raise ConfigError("--partial belongs to --select; see hylorada-report --help")
    collection = collect(arguments.folders)
    reference = _reference(arguments.reference, collection.records)
    refuse_out(out)
    records, problems = collection.records, collection.problems
    choices: list[Choice] = []
    grids: list[selections.Grid] = []
    standing: list[str] = []
    if keys:
        running = unfinished(arguments.folders)
        selection = select(records, keys, running=running, partial=arguments.partial)
        # First, so that the choice is kept whatever becomes of the rest.
        write_files(out, {selections.FILE: selections.as_json(selection)})
        choices, grids = selection.choices, selections.grids(selection)
        standing = selections.standing(selection, str(arguments.folders[0]))
        records, problems = selection.records, [*problems, *selection.problems]
    comparisons, left_out = compare(records, keys)
    problems = [*problems, *left_out]
    tables = build_tables(comparisons, reference)
    for table in tables:
        table.notes += selections.notes_below(table.title, choices)
    pictures = figures.draw_all(comparisons, reference)
    records = [run for c in comparisons for arm in c.arms for run in arm.runs]
    chosen = selections.as_html(grids, standing) if grids else ""
    held = dict.fromkeys(name for record in records for name in record.data["metrics"])
    foreign = [name for name in held if owner(name) is None]
    files: dict[str, str | bytes] = {
        "report.html": page.build_page(tables, pictures, comparisons, problems, chosen),
        "table.md": "\n".join(render.markdown(table) for table in tables),
        "table.csv": render.as_csv(tables),
        "table.json": render.as_json(tables),
        "table.tex": "\n".join(render.latex(table) for table in tables),
    }
    if grids:
        files["selection.md"] = selections.as_markdown(grids, standing)
    for picture in pictures:
        files[f"{picture.name}.png"] = picture.png
        files[f"{picture.name}.svg"] = picture.svg
    write_files(out, files)

    console = Console(highlight=False, soft_wrap=False)
    render.print_tables(tables, console)
    selections.print_grids(grids, standing, console)
    if foreign:
        sys.stderr.write(
            f"hylorada-report: {', '.join(foreign)}: no measurement here makes them, so they have "
            "no column; install the package that does (docs/EXTENDING.md)\n"
        )
    for problem in problems:
        sys.stderr.write(f"hylorada-report: left out {problem.path}: {problem.reason}\n")
    names = [*([selections.FILE] if grids else []), *files]
    sys.stdout.write("written:\n" + "".join(f"  {out / name}\n" for name in names))
    return 0


def _reference(asked: str | None, records: Sequence[Record]) -> str:
    """The method to compare with; one that was asked for must be among the runs."""
    methods = sorted({record.data["method"] for record in records})
    if asked is not None and asked not in methods:
        near = did_you_mean(asked, methods) or f"; there are {', '.join(methods)}"
        raise ConfigError(f"--reference {asked}: no run here is of that method{near}")
    return asked or "lora"


def _folder(word: str) -> Path:
    """A word as a path; an empty one, as of a variable that is not set, is not the folder here."""
    if not word:
        raise argparse.ArgumentTypeError("an empty name; use . for the folder that you are in")
    return Path(word)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="hylorada-report",
        description="Make tables, figures and one HTML page from the records of runs.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("folders", nargs="+", type=_folder, metavar="DIR", help="folders with runs")
    parser.add_argument(
        "--out", type=_folder, help="output folder (default: report in the first DIR)"
    )
    parser.add_argument(
        "--reference",
        metavar="METHOD",
        help="compare all methods with this one (default: lora)",
    )
    parser.add_argument(
        "--select", action="append", metavar="KEYS",
        help="for each method, choose these settings by validation loss, as in train.lr",
    )  # fmt: skip
    parser.add_argument(
        "--partial", action="store_true", help="with --select: allow an unfinished grid"
    )
    return parser
