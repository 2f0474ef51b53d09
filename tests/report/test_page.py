"""The page: complete, harmless, and readable in a real browser."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers.browser import A4, LOOK, MISSING, PATH, Browser
from helpers.records import make_record, sweep, with_context, write

from hylorada.commands.report import main
from hylorada.comparison.arms import compare
from hylorada.comparison.cells import Cell
from hylorada.comparison.collect import Record
from hylorada.report.html_parts import shown_cell
from hylorada.report.runs import run_details

FIGURES = 14
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
    assert page.count("<figcaption>Accuracy by depth") == 2
    assert page.count("<figcaption>Loss by context") == 2
    assert "retrieval accuracy, ranked, %" in page
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
    assert "broken/result.json: damaged, it is not JSON" in text
    assert "0123abc" in text
    assert "cd" * 32 in text
    assert "<dt>text</dt><dd>test stdlib test, 12 documents; train stdlib train, 90" in text
    assert (
        "<li>length 512: text: stdlib test, 12 documents; stdlib train, 90 documents.</li>" in text
    )
    assert "small model on a CPU" in text
    assert text.count("<figure>") == FIGURES


def test_each_run_has_its_settings_its_gate_and_where_it_came_from_behind_a_click(tmp_path):
    record = make_record("lora")
    record["integrity"] = {
        "ok": False,
        "checks": {
            "causality": {"ok": False, "detail": "logits before t moved", "skipped": ""},
            "no_op": {"ok": True, "detail": "", "skipped": "nothing to <switch>"},
        },
        "warnings": ["few <buckets>"],
    }
    write(tmp_path, record)
    assert main([str(tmp_path)]) == 0
    text = (tmp_path / "report" / "report.html").read_text()
    (run,) = re.findall(r'<details class="run ok">(.*?)</details>', text, re.DOTALL)
    assert run.startswith("<summary><b>lora</b> <span>4,096 tokens, seed 0; PPL, blocks ")
    assert "gate failed</span></summary>" in run
    assert '<dt class="check-failed">causality: failed</dt><dd>logits before t moved' in run
    assert "<dt>no_op: skipped</dt><dd>nothing to &lt;switch&gt;</dd>" in run
    assert "<dt>warning</dt><dd>few &lt;buckets&gt;</dd>" in run
    assert "<dt>hardware</dt><dd>A processor, 2 cores</dd>" in run
    assert "&quot;max_length&quot;: 4096" in run


def test_the_line_of_a_run_tells_it_from_every_other():
    start = "method__position_range__learned_init"
    records = [
        make_record("lora", **{start: init}, train__lr=lr)
        for init in ("by_parts", "interpolate") for lr in (1e-4, 3e-4)
    ]  # fmt: skip
    comparisons, _ = compare([Record(Path(r["name"]), r) for r in records])
    lines = [
        run_details(run, arm, each).partition("; PPL")[0]
        for each in comparisons for arm in each.arms for run in arm.runs
    ]  # fmt: skip
    assert len(set(lines)) == 4
    name = "<b>lora learned_init=by_parts</b> <span>4,096 tokens (train.lr=0.0001), seed 0"
    assert any(line.endswith(name) for line in lines)


def test_one_seed_stands_in_one_piece_beside_its_interval():
    shown = shown_cell(Cell("-4.9 [-6.1, -3.7], one seed", -4.9, -6.1, -3.7))
    assert "<b>[-6.1, -3.7],</b> <b>one seed</b>" in shown


def test_verdicts_stand_above_the_table_and_the_rest_in_cards_below(report):
    text = (report / "report.html").read_text()
    verdict = text.index("At 4,096 tokens, hylorada is 8.9 % better than lora")
    table, card = text.index('<table class="main rows">'), text.index('<div class="cards">')
    assert verdict < table < card
    main_table = text[table : text.index("</table>", table)]
    headings = re.findall(r"<th scope=\"col\"[^>]*>([^<]*)", main_table)
    assert headings == [
        "method", "window, tokens", "seeds", "PPL, blocks", "PPL, sliding", "PPL vs lora, %",
        "PPL vs extended base, %",
    ]  # fmt: skip
    assert "1,878,850" not in main_table
    cards = text[card : text.index("<h2>Figures", card)]
    for told in ("1,878,850", "tokens/s", "peak memory, MiB", "of these: position bias"):
        assert told in cards, told


def test_no_colour_of_a_drawing_is_fixed_on_the_page(report):
    """In the dark each has another; black on black could not be read."""
    text = (report / "report.html").read_text()
    drawings = re.findall(r"<svg .*?</svg>", text, re.DOTALL)
    assert drawings
    for drawing in drawings:
        assert not re.findall(r"(?:fill|stroke): #[0-9a-f]{6}", drawing)
        for name in {*re.findall(r"var\(--(x[0-9a-f]{6})\)", drawing), "x000000"}:
            assert text.count(f"--{name}: #") == 2
    assert "fill: var(--x000000)" in text  # what is filled with black names no colour


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.skipif(PATH is None, reason=MISSING)
@pytest.mark.parametrize(
    ("width", "dark", "paper"),
    [
        (1280, False, False),
        (1280, True, False),
        (700, False, False),
        (390, False, False),
        (A4, False, True),
    ],
    ids=["1280", "1280 dark", "700", "390", "A4"],
)
def test_a_browser_shows_all_of_it(report, browser, width, dark, paper):
    """Nothing is cut, off the page, wider than what holds it, broken or too small to read."""
    browser.open(report / "report.html", width, dark=dark, paper=paper)
    for opened in (False, True):
        if opened:
            browser.run("document.querySelector('details.run summary').click()")
            shown = browser.run("document.querySelector('details.run pre').offsetHeight")
            assert shown > 100
        look = browser.run(LOOK)
        assert look["faults"] == []
        assert look["width"] <= look["inner"] == width
        assert look["figures"] == FIGURES
    ink, ground = (
        browser.run(f"getComputedStyle(document.body).{which}")
        for which in ("color", "backgroundColor")
    )
    assert (luminance(ink) > luminance(ground)) == dark
    assert contrast(ink, ground) > 7
    curve = "getComputedStyle(document.querySelector('figure svg path[style*=\"stroke:\"]'))"
    assert contrast(browser.run(f"{curve}.stroke"), ground) > 1.2  # of the grid, the faintest
    text = "getComputedStyle(document.querySelector('figure svg g[id*=text_] > g')).fill"
    assert contrast(browser.run(text), ground) > 4.5
    assert not [e for e in browser.events if e.get("method") == "Log.entryAdded"]
    asked = [
        e["params"]["request"]["url"]
        for e in browser.events
        if e.get("method") == "Network.requestWillBeSent"
    ]
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}


@pytest.mark.slow
@pytest.mark.skipif(PATH is None, reason=MISSING)
def test_it_prints(report, browser):
    browser.open(report / "report.html", 1280)
    assert browser.pdf().startswith(b"%PDF")


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(r, g, b)" by WCAG 2.2."""
    parts = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
