"""The page: complete, harmless, and readable in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers.records import make_record, sweep, with_context, write

from hylorada.commands.report import main

VOID = {"meta", "link", "br", "img", "hr"}


class Balance(HTMLParser):
    """Every element that opens closes; ids are unique."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.ids, self.tags = [], [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    hostile = make_record("<script>alert(1)</script>")
    hostile["error"] = "</style><img src=x onerror=alert(1)>"
    hostile["provenance"]["hardware"] = "<b>fast</b> & furious"
    *finished, failed = sweep()
    write(folder, *map(with_context, finished), failed, hostile)
    (folder / "broken").mkdir()
    (folder / "broken" / "result.json").write_text("{")
    assert main([str(folder)]) == 0
    return folder / "report"


def test_is_well_formed_and_its_ids_are_unique(report):
    parser = Balance()
    parser.feed((report / "report.html").read_text())
    parser.close()
    assert not parser.open
    assert len(parser.ids) == len(set(parser.ids))
    assert parser.ids


def test_holds_the_pictures_and_columns_of_the_context(report):
    page = (report / "report.html").read_text()
    assert page.count("<figcaption>Right answers by depth") == 2
    assert page.count("<figcaption>What more context is worth") == 2
    assert "retrieval, ranked, % right" in page
    assert (report / "tiny-stdlib-4096-retrieval-ranked.png").exists()


def test_texts_of_records_are_escaped(report):
    text = (report / "report.html").read_text()
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "&lt;b&gt;fast&lt;/b&gt; &amp; furious" in text


def test_needs_nothing_from_anywhere(report):
    text = (report / "report.html").read_text()
    loaded = re.findall(r"""(?:src|href|action|data)\s*=\s*["']([^"']*)""", text)
    loaded += re.findall(r"url\(([^)]*)\)", text) + re.findall(r"@import[^;]*", text)
    assert loaded
    assert all(item.startswith("#") or item == "data:," for item in loaded)


def test_references_inside_the_drawings_resolve(report):
    text = (report / "report.html").read_text()
    ids = set(re.findall(r'\bid="([^"]*)"', text))
    used = set(re.findall(r'href="#([^"]*)"', text)) | set(re.findall(r"url\(#([^)]*)\)", text))
    assert used
    assert used <= ids


def test_shows_failed_and_damaged_runs_and_provenance(report):
    text = (report / "report.html").read_text()
    assert "diverged: training: 3 steps in a row" in text
    assert "broken/result.json: not JSON" in text
    assert "0123abc" in text
    assert "cd" * 32 in text
    assert "<dt>text</dt><dd>test stdlib test, 12 documents; train stdlib train, 90" in text
    assert (
        "<li>length 512: text: stdlib test, 12 documents; stdlib train, 90 documents.</li>" in text
    )
    assert "small model on a CPU" in text
    assert text.count("<figure>") == 8


CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def chromium(*arguments: str) -> str:
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [500, 1400])
def test_a_browser_lays_it_out_without_cutting_anything_off(report, tmp_path, width):
    """Wide tables scroll inside their frame, a line a row; the page never scrolls sideways."""
    probe = (
        "<script>addEventListener('load', () => { const d = document.documentElement;"
        "const small = [...document.querySelectorAll('td, th, li, figcaption')]"
        ".filter(e => parseFloat(getComputedStyle(e).fontSize) < 11).length;"
        "const svgs = [...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect());"
        "const rows = [...document.querySelector('tbody').rows].map(r => r.offsetHeight);"
        "const tall = rows.filter(h => h > 1.5 * Math.min(...rows)).length;"
        "document.title = [d.scrollWidth - d.clientWidth, small, tall,"
        "svgs.filter(r => r.width > 100 && r.height > 100).length].join('/'); });</script>"
    )
    page = tmp_path / "page.html"
    page.write_text((report / "report.html").read_text().replace("</body>", f"{probe}</body>"))
    dom = chromium("--dump-dom", f"--window-size={width},1200", page.as_uri())
    assert re.search(r"<title>([^<]*)</title>", dom).group(1) == "0/0/0/8"
    shot = tmp_path / "page.png"
    chromium(f"--screenshot={shot}", f"--window-size={width},1200", page.as_uri())
    assert shot.stat().st_size > 20_000
