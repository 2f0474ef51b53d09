"""The repository's Markdown: its files, their links, anchors and code."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
FILES = sorted(
    [*ROOT.glob("*.md")]
    + [
        path
        for folder in (".github", "benchmarks", "docs", "src")
        for path in (ROOT / folder).rglob("*.md")
    ]
)


@dataclass
class Code:
    """A block of code (``language`` from its fence) or a span of a text (``language`` empty)."""

    path: Path
    line: int
    language: str
    text: str


def named(path: Path) -> str:
    """Where a file lies in the repository."""
    return path.relative_to(ROOT).as_posix()


def _tokens(path: Path) -> Iterator[tuple[int, Token]]:
    """Every token, within texts too, with the line of its block."""
    for token in MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8")):
        line = token.map[0] + 1 if token.map else 0
        yield line, token
        for inner in token.children or ():
            yield line, inner


def links(path: Path) -> list[tuple[int, str]]:
    """Targets of links and pictures, with their lines."""
    return [
        (line, str(token.attrs[name]))
        for line, token in _tokens(path)
        for name in ("href", "src")
        if name in token.attrs
    ]


def anchors(path: Path) -> set[str]:
    """What `#...` may name: GitHub's names of the headings."""
    found: set[str] = set()
    tokens = [token for _, token in _tokens(path)]
    for opening, inline in itertools.pairwise(tokens):
        if opening.type != "heading_open":
            continue
        words = "".join(part.content for part in inline.children or ())
        name = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        number = 0
        while (unique := f"{name}-{number}" if number else name) in found:
            number += 1
        found.add(unique)
    return found


def code(path: Path) -> list[Code]:
    """Blocks and spans of code."""
    kinds = {"fence", "code_block", "code_inline"}
    return [
        Code(path, line, token.info.strip(), token.content)
        for line, token in _tokens(path)
        if token.type in kinds
    ]
