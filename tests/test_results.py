"""docs/RESULTS.md says what the records beside it say, and these are fit to be published."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers.records import make_record

from hylorada.comparison.cells import Verdict

ROOT = Path(__file__).parents[1]
RECORDS = sorted((ROOT / "docs/results/records").rglob("result.json"))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """`python scripts/results_document.py` writes the page again."""
    return load("results_document")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses, and the other script, look for it there
    spec.loader.exec_module(module)
    return module


def write(folder: Path, record: dict[str, Any]) -> Path:
    run = folder / "tables" / record["name"]
    run.mkdir(parents=True)
    (run / "result.json").write_text(json.dumps(record))
    return run / "result.json"


def table_record(method: str, seed: int, **overrides: Any) -> dict[str, Any]:
    return make_record(method, seed, length__name="4k", eval__name="table", **overrides)


@pytest.fixture
def three_seeds(tmp_path: Path) -> Path:
    for method in ("lora", "hylorada"):
        for seed in range(3):
            write(tmp_path, table_record(method, seed))
    return tmp_path


def test_the_page_is_what_the_records_give(script: ModuleType) -> None:
    assert script.DOCUMENT.read_text(encoding="utf-8") == script.document(script.RECORDS)


def test_the_tables_of_the_findings_and_the_readme_are_what_the_records_give(
    script: ModuleType,
) -> None:
    findings = load("findings_document")
    for path, columns in findings.PAGES.items():
        text = path.read_text(encoding="utf-8")
        assert findings.page(text, script.RECORDS, columns) == text
    figure = findings.draw(findings.collect([script.RECORDS / "search_4k"]).records)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[-1].startswith("base, untrained: interpolated")  # the worst, on top


def test_published_records_are_small_and_say_nothing_of_where_they_were_made(
    script: ModuleType,
) -> None:
    assert RECORDS
    for path in RECORDS:
        text = path.read_text(encoding="utf-8")
        assert len(text) < 60_000
        assert not script.MACHINE_PATH.search(text)


def test_each_run_stands_in_the_tables_of_its_overlays_and_no_other(
    script: ModuleType, three_seeds: Path
) -> None:
    page = script.document(three_seeds)
    assert "\n6 of 15 runs; the others were not measured" in page
    assert "\n6 of 45 runs;" in page  # the factorial has these arms, too
    assert "* Table 1: each component at 512 tokens (`t1_ablation_512`)" in page
    assert "| hylorada | 4,096 | 3 |" in page
    assert "At 4,096 tokens, hylorada is" in page
    head = page.split("\n\n")[1]
    assert head.startswith(
        "**HyLoRADA is significantly better than plain LoRA at 4,096 tokens; at "
    )
    assert "tokens/s" not in page
    assert all(len(line) <= 160 for line in page.splitlines())


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        (("training", "device"), "cuda", "differ in device ("),
        (("provenance", "base_model_sha256"), "ef" * 32, "differ in base weights ("),
        (
            ("config", "eval", "perplexity", "conventions"),
            ["sliding"],
            "eval.perplexity.conventions=",
        ),
    ],
    ids=["device", "base", "convention"],
)
def test_a_record_of_another_device_base_or_convention_is_named_and_not_compared(
    script: ModuleType, three_seeds: Path, place: tuple[str, ...], value: Any, named: str
) -> None:
    for path in three_seeds.rglob("hylorada-*/result.json"):
        record = json.loads(path.read_text())
        *parents, last = place
        node = record
        for name in parents:
            node = node[name]
        node[last] = value
        path.write_text(json.dumps(record))
    page = script.document(three_seeds)
    assert named in page.replace("\n ", "")
    assert page.split("\n\n")[1].startswith("**HyLoRADA has not been compared with plain LoRA yet")


def test_a_record_that_was_edited_is_not_used_and_named(
    script: ModuleType, three_seeds: Path
) -> None:
    path = next(three_seeds.rglob("lora-4096-seed0-*/result.json"))
    record = json.loads(path.read_text()) | {"sha256": "0" * 64}
    path.write_text(json.dumps(record))
    page = script.document(three_seeds)
    assert f"* `{path.relative_to(three_seeds)}`: damaged or changed by hand" in page
    assert "\n5 of 15 runs;" in page


def test_records_are_taken_unless_they_hold_a_path_of_the_machine(
    script: ModuleType, three_seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    monkeypatch.setattr(script, "RECORDS", kept)
    assert script.take(three_seeds / "tables") == 6
    assert script.document(kept) == script.document(three_seeds)
    write(three_seeds, table_record("rslora", 0, dataset__path="/home/me/books"))
    with pytest.raises(SystemExit, match="/home/me/books"):
        script.take(three_seeds / "tables")
    assert len(list(kept.rglob("result.json"))) == 6  # as it was


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        ([], "has not been compared"),
        ([("worse", "At 4,096 tokens, hylorada is 5.0 % worse than lora.")],
         "not significantly better than plain LoRA at any length measured; significantly worse at "
         "4,096 tokens"),
        ([("better", "At 2,048 tokens, hylorada is 5.0 % better than lora."),
          ("no result", "At 8,192 tokens, hylorada is 5.0 % better than lora, one seed.")],
         "better than plain LoRA at 2,048 tokens; without a result yet at 8,192 tokens"),
        ([("better", "At 2,048 tokens, hylorada_no_s2 is 5.0 % better than lora.")],
         "has not been compared"),
        ([("worse", "At 4,096 tokens, the unmodified base is ahead of every method: 1.")],
         "yet; at 4,096 tokens the unmodified base in its own window is ahead of every method"),
    ],
    ids=["nothing", "worse", "mixed", "another arm", "base"],
)  # fmt: skip
def test_the_first_sentence_says_where_the_method_does_not_help(
    script: ModuleType, verdicts: list[tuple[str, str]], said: str
) -> None:
    assert said in script.lead([Verdict(text, kind) for kind, text in verdicts])
