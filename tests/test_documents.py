"""The documents: every one is found from the index, every link leads somewhere, lines are short."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from helpers.markdown_files import FILES, ROOT, anchors, code, links, named


@pytest.mark.parametrize("path", FILES, ids=named)
def test_every_link_leads_somewhere(path: Path) -> None:
    for line, target in links(path):
        if "://" in target or target.startswith("mailto:"):
            continue
        place, _, anchor = unquote(target).partition("#")
        file = (path.parent / place).resolve() if place else path
        assert file.is_relative_to(ROOT), f"line {line}: {target} is outside the repository"
        assert file.exists(), f"line {line}: {target}"
        if anchor:
            assert anchor in anchors(file), f"line {line}: {target}; there are {anchors(file)}"


def test_the_index_names_every_document() -> None:
    index = ROOT / "docs/README.md"
    linked = {(index.parent / target.partition("#")[0]).resolve() for _, target in links(index)}
    assert {*(ROOT / "docs").glob("*.md")} - {index} <= linked
    assert index in {
        (ROOT / target.partition("#")[0]).resolve() for _, target in links(ROOT / "README.md")
    }


@pytest.mark.parametrize("path", FILES, ids=named)
def test_no_line_is_longer_than_160_characters(path: Path) -> None:
    long = {
        number: len(line)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 160
    }
    assert not long


@pytest.mark.parametrize("name", ["METHODOLOGY", "REFUSALS", "RELIABILITY", "SCALING", "SWEEPS"])
def test_every_file_of_ours_that_a_document_names_is_there(name: str) -> None:
    files = {c.text for c in code(ROOT / f"docs/{name}.md") if re.fullmatch(r"[\w/]+\.py", c.text)}
    folders = ("src", "tests", "scripts", "benchmarks")
    there = [path.as_posix() for folder in folders for path in (ROOT / folder).rglob("*.py")]
    lost = {file for file in files if not any(path.endswith(f"/{file}") for path in there)}
    assert lost - {"pred.py", "eval.py"} == set()  # LongBench's


def test_anchors_are_those_that_github_makes(tmp_path: Path) -> None:
    file = tmp_path / "a.md"
    file.write_text(
        "# The *method*, as-is\n\n## 9. Perplexity · `evaluation/perplexity.py`\n\n"
        "## Same\n\n## Same\n\n```bash\n# no heading\n```\n\nUnder\n-----\n"
    )
    assert anchors(file) == {
        "the-method-as-is", "9-perplexity--evaluationperplexitypy", "same", "same-1", "under",
    }  # fmt: skip
    file.write_text(
        "[a](b.md#c) ![d](e.png)\n\n```\n[no](f.md)\n```\n\n| [g](h.md) |\n|---|\n| `[i](j.md)` |\n"
    )
    assert [target for _, target in links(file)] == ["b.md#c", "e.png", "h.md"]
