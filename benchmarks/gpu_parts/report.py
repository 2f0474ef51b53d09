"""Rows of one or more machines as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpu_parts.rows import brief, read

INTRO = """# On a GPU

Made by `benchmarks/gpu.py` ([how](../README.md#on-a-gpu)) from [gpu.jsonl](gpu.jsonl), which has
every number. `of the first`: device time beside that of the first arm in the same rounds; `of the
floor`: how much of the time the ceilings of this very machine account for (stage 0).
"""


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Steps beside their measure."""
    lines = ["| step | ms | wall ms | of the first | of the floor | peak MiB |", "|---" * 6 + "|"]
    for row in rows:
        if "/step/" in row["key"] and row["ok"]:
            of_floor = f"{row['of_floor']:.0%}" if "of_floor" in row else "-"
            lines.append(
                f"| {row['key']} | {row['ms']:.2f} | {row['wall_ms']:.2f} | {row['ratio']:.2f} | "
                f"{of_floor} | {row['peak_mib']:.0f} |"
            )
    return lines


def summary(rows: list[dict[str, Any]]) -> str:
    """What a person reads first: the steps, then whatever failed."""
    failed = [f"{row['key']}: {row['error']}" for row in rows if not row["ok"]]
    return "\n".join(
        ["", *table(rows), "", f"{len(rows)} rows, {len(failed)} with an error", *failed]
    )


def page(rows: list[dict[str, Any]]) -> str:
    """All of it in Markdown, a section for each device."""
    lines = [INTRO]
    for device in dict.fromkeys(row["device"] for row in rows):
        here = [row for row in rows if row["device"] == device]
        commits = ", ".join(sorted({row["git"] for row in here}))
        lines += [f"## {device}, torch {here[0]['torch']}, commit {commits}", "", *table(here), ""]
        for title, ok in (("Other rows", True), ("Rows with an error", False)):
            others = [r for r in here if r["ok"] is ok and not (ok and "/step/" in r["key"])]
            if others:
                lines += [f"### {title}", "", "| row | |", "|---|---|"]
                lines += [f"| {r['key']} | {_values(r)} |" for r in others]
                lines.append("")
    return "\n".join(lines)


def _values(row: dict[str, Any]) -> str:
    aside = ("key", "ok", "seconds", "t", "device", "torch", "cudnn", "git", "trace")
    text = brief({k: v for k, v in row.items() if k not in aside})
    return text.replace("|", "/")[:130]


def merge(files: list[Path], into: Path) -> int:
    """Add rows that are new to a file, and make the page beside it.

    Returns:
        How many were new.
    """
    lines = into.read_text().splitlines() if into.is_file() else []
    new = [
        line
        for path in files
        for line in path.read_text().splitlines()
        if line.startswith("{") and line.endswith("}") and line not in lines
    ]
    into.write_text("\n".join([*lines, *new]) + "\n")
    into.with_suffix(".md").write_text(page(read(into)))
    return len(new)
