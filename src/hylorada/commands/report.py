"""`hylorada-report DIR...`: read records, print the table, write everything else beside them."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from hylorada import __version__
from hylorada.command_line.arguments import Parser
from hylorada.comparison.arms import Comparison, compare
from hylorada.comparison.collect import collect
from hylorada.process.disk import disk_errors
from hylorada.report import figures, page, render
from hylorada.report.table import build_tables


def main(words: Sequence[str]) -> int:
    """The command; returns its exit code.

    Raises:
        ConfigError: wrong arguments.
        DataError: no record is below the folders.
        DiskError: the report cannot be written.
    """
    arguments = _parser().parse_args(words)
    out = arguments.out or _default_out(arguments.folders[0])
    collection = collect(arguments.folders)
    comparisons, left_out = compare(collection.records)
    problems = [*collection.problems, *left_out]
    tables = build_tables(comparisons, arguments.reference)
    pictures = [
        picture
        for comparison, name in zip(comparisons, _names(comparisons), strict=True)
        for picture in figures.draw_all(comparison, name)
    ]
    records = [run for c in comparisons for arm in c.arms for run in arm.runs]
    files: dict[str, str | bytes] = {
        "report.html": page.build_page(tables, pictures, records, problems),
        "table.md": "\n".join(render.markdown(table) for table in tables),
        "table.csv": render.as_csv(tables),
        "table.json": render.as_json(tables),
        "table.tex": "\n".join(render.latex(table) for table in tables),
    }
    for picture in pictures:
        files[f"{picture.name}.png"] = picture.png
        files[f"{picture.name}.svg"] = picture.svg
    _write(out, files)

    render.print_tables(tables, Console(highlight=False, soft_wrap=False))
    for problem in problems:
        sys.stderr.write(f"hylorada-report: left out {problem.path}: {problem.reason}\n")
    sys.stdout.write("written:\n" + "".join(f"  {out / name}\n" for name in files))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="hylorada-report",
        description="Tables, figures and one HTML page, made from the records of runs alone.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="where to look")
    parser.add_argument("--out", type=Path, help="default: DIR/report of the first DIR")
    parser.add_argument(
        "--reference", default="lora", metavar="METHOD", help="compare with it (default: lora)"
    )
    return parser


def _default_out(folder: Path) -> Path:
    return (folder if folder.is_dir() else folder.parent) / "report"


def _names(comparisons: Sequence[Comparison]) -> list[str]:
    """A file name for each comparison; numbered where two would be the same."""
    names: list[str] = []
    for comparison in comparisons:
        text = f"{comparison.model}-{comparison.dataset}-{comparison.length}"
        name = re.sub(r"[^A-Za-z0-9.-]+", "-", text).strip("-.")
        same = sum(other == name or other.startswith(f"{name}.") for other in names)
        names.append(f"{name}.{same + 1}" if same else name)
    return names


def _write(out: Path, files: dict[str, str | bytes]) -> None:
    with disk_errors(out, remedy="choose another folder with --out"):
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            partial = out / f".{name}.partial"
            partial.write_bytes(data)
            partial.replace(out / name)
