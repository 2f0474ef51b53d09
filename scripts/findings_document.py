"""Write the tables of docs/FINDINGS.md and README.md, and the pictures of the former, from records.

    python scripts/results_document.py --take outputs/search_4k   # first, to publish the records
    python scripts/findings_document.py

A table stands between `<!-- FOLDER -->` and `<!-- end -->`, and is of the records in that folder of
docs/results/records; `<!-- lengths -->` and `<!-- components -->` are of the tables: each method
against LoRA by length, and the factorial; `<!-- rates_4k -->` and `<!-- rates_8k -->` are of the
grids of learning rates. The rest of the pages is written by hand.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from results_document import DOCUMENT, RECORDS, bullets, lines, measured

from hylorada.comparison.arms import Comparison, compare
from hylorada.comparison.changes import component_change, signed
from hylorada.comparison.collect import Record, collect
from hylorada.comparison.components import component_pairs
from hylorada.comparison.drawing import BASE, INK
from hylorada.comparison.selection import select
from hylorada.evaluation.component_picture import gain_by_component
from hylorada.evaluation.retrieval_picture import accuracy_by_depth
from hylorada.report.selection import grids
from hylorada.report.table import build_tables, cell

FINDINGS = DOCUMENT.with_name("FINDINGS.md")
PICTURE = DOCUMENT.parent / "images/start-of-positions.png"
COMPONENTS = DOCUMENT.parent / "images/gain-by-component.png"
RETRIEVAL = DOCUMENT.parent / "images/retrieval-by-depth.png"
FACTORIAL = 4096  # tokens
METHODS = ("rslora", "lora_embeddings_norms", "longlora", "hylorada")
PERPLEXITY = ("method", "seeds", "ppl_blocks", "ppl_sliding", "change_reference")
COLUMNS = (*PERPLEXITY, "short_context")
COSTS = ("trainable", "tokens_per_second", "peak_memory_mib")
# The pages, and the columns of their tables where they are others than those above.
PAGES = {
    FINDINGS: dict.fromkeys(
        ("equal_seconds_8k", "equal_seconds_8k_best"), (*PERPLEXITY, "tokens", "seconds")
    ),
    DOCUMENT.parents[1] / "README.md": {
        "demo_4k": ("length", *PERPLEXITY, "change_base", *COSTS),
        "smollm2_4k": (*COLUMNS, "change_base", "trainable"),
    },
}
LORA, OTHERS = "#0072b2", "#d55e00"
WORDS = {
    "interpolate": "interpolated (the paper's)", "tile": "repeated", "by_parts": "by parts",
    "keep": "trained rows kept",
}  # fmt: skip


def of_records(records: Sequence[Record], columns: Sequence[str]) -> list[str]:
    """The table of records, each method at a learning rate of its own, and what is said of them."""
    found: list[str] = []
    for each in build_tables(compare(records, ["train.lr"])[0]):
        found += lines(each, [c for c in each.columns if c.key in columns and measured(each, c)])
        told = [n for n in each.notes if re.match(r"length .*(Holm-adjusted|tokens of \d)", n)]
        found += ["", *bullets(told), ""]
    return found


def page(text: str, records: Path, columns: Mapping[str, Sequence[str]]) -> str:
    """The page with the tables that the records give."""

    def made(match: re.Match[str]) -> str:
        name = match[2]
        if name in SUMMARIES:
            rows = SUMMARIES[name](records)
        else:
            found = collect([records / name]).records
            rows = of_records(found, columns.get(name, COLUMNS))
        return "\n".join([match[1], *rows, "<!-- end -->"])

    return re.sub(r"(<!-- (\w+) -->)\n.*?<!-- end -->", made, text, flags=re.DOTALL)


def tables(records: Path) -> dict[int, Comparison]:
    """What the tables of perplexity compare, by length in tokens."""
    of_text = [
        record
        for record in collect([records / "tables"]).records
        if record.data["config"]["train"]["task"] == "text"
    ]
    return {each.length: each for each in compare(of_text)[0]}


def by_length(found: Mapping[int, Comparison]) -> list[str]:
    """LoRA's perplexity, and each method's change against it in percent, by length."""
    columns = []
    for length, comparison in sorted(found.items()):
        (made,) = build_tables([comparison])
        rows = {cell(row, "method").text: row for each in made.sections for row in each.rows}
        if "lora" in rows:
            texts = [cell(rows["lora"], "ppl_blocks").text]
            for method in METHODS:
                row = rows.get(method)
                texts.append("" if row is None else cell(row, "change_reference").text)
            columns.append([f"{length:,} tokens", *texts])
    heads = ["", "lora, PPL", *(f"{method}, %" for method in METHODS)]
    whole = [f"| {' | '.join(line)} |" for line in zip(heads, *columns, strict=True)]
    return [whole[0], "| --- |" + " ---: |" * len(columns), *whole[1:], ""]


def components(found: Mapping[int, Comparison]) -> list[str]:
    """What each component changes, alone and beside all others, in Markdown."""
    rows = [
        "| component | added to rsLoRA | added to HyLoRADA without it |",
        "| --- | ---: | ---: |",
    ]
    for pairs in component_pairs(found[FACTORIAL]).values():
        changes = {pair.without.method == "rslora": component_change([pair]) for pair in pairs}
        alone, beside = (signed(changes[where]) for where in (True, False))
        rows.append(f"| {pairs[0].words} | {alone} | {beside} |")
    return [*rows, ""]


def rates(folder: Path) -> list[str]:
    """Perplexity on the validation split by learning rate, each method's best in bold; then these.

    A method that was tried at one rate alone stands in the second table only.
    """
    selection = select(collect([folder]).records, ["train.lr"])
    tried = [choice for choice in selection.choices if len(choice.candidates) > 1]
    found: list[str] = []
    for grid in grids(dataclasses.replace(selection, choices=tried)):
        found += [f"| method | {' | '.join(grid.columns)} |"]
        found += ["| --- |" + " ---: |" * len(grid.columns)]
        for label, cells in grid.rows:
            texts = [f"**{text}**" if chosen else text for text, chosen in cells]
            found.append(f"| {label} | {' | '.join(texts)} |")
        found += ["", *bullets(note for note in grid.notes if "may lie beyond" in note), ""]
    best = [run for each in selection.choices if each.chosen for run in each.chosen.runs]
    return [*found, *of_records(best, COLUMNS)]


SUMMARIES: dict[str, Callable[[Path], list[str]]] = {
    "lengths": lambda records: by_length(tables(records)),
    "components": lambda records: components(tables(records)),
    "rates_4k": lambda records: rates(records / "search_4k_rates"),
    "rates_8k": lambda records: rates(records / "search_8k_seconds"),
}


def rows(records: Sequence[Record]) -> list[tuple[str, float, str]]:
    """Label, perplexity (sliding) and colour; the worst first. Bases are in all records."""
    found = set()
    for record in records:
        method, config = record.data["method"], record.data["config"]
        start = WORDS[config["method"]["position_range"]["learned_init"]]
        rate = config["train"]["lr_scale"]["embeddings"]
        base = record.data["base"]["extended"]["eval/ppl_sliding"]["value"]
        found.add((f"base, untrained: {start}", base, BASE))
        if method != "baseline":
            ppl = record.data["metrics"]["eval/ppl_sliding"]["value"]
            slow = f", embeddings at {rate:g} of the rate" if rate != 1 else ""
            found.add((f"{method}{slow}: {start}", ppl, LORA if method == "lora" else OTHERS))
    return sorted(found, key=lambda row: -row[1])


def draw(records: Sequence[Record]) -> Figure:
    """Perplexity of every form, the untouched base in its own window as a line."""
    shown = rows(records)
    own = records[0].data["base"]["own_window"]["eval/ppl_sliding"]["value"]
    style = {"font.family": "DejaVu Sans", "font.size": 10, "text.color": INK}
    with mpl.rc_context(style):
        figure = Figure(figsize=(7.2, 1.5 + 0.27 * len(shown)), layout="constrained")
        axes = figure.add_subplot()
        for place, (_, ppl, colour) in enumerate(reversed(shown)):
            axes.plot([own, ppl], [place, place], color=colour, linewidth=1.2, alpha=0.5)
            axes.plot(ppl, place, "o", color=colour, markersize=6)
            axes.annotate(
                f"{ppl:.1f}", (ppl, place), (7, 0), textcoords="offset points", va="center"
            )
        axes.set_yticks(range(len(shown)), [label for label, _, _ in reversed(shown)])
        axes.axvline(own, color=INK, linewidth=1.2)
        axes.set_xscale("log")
        axes.set_xticks([20, 30, 50, 100], ["20", "30", "50", "100"])
        axes.minorticks_off()
        axes.set_xlim(own * 0.97, shown[0][1] * 1.3)
        axes.set_xlabel("perplexity, windows of 4,096", loc="left")
        axes.annotate(
            f"the base in its own 1,024 tokens: {own:.1f}", (own, 1), (0, 3), va="bottom",
            xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=8.5,
        )  # fmt: skip
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(axis="y", length=0)
        figure.suptitle(
            "How new positions start decides more than any component\n", x=0.01, ha="left",
            fontsize=12, fontweight="bold",
        )  # fmt: skip
        figure.text(
            0.01, 1 - 22 / (72 * figure.get_figheight()), va="top", fontsize=8.5, color=BASE,
            s="tiny (7M, learned positions) on a CPU, 40 steps, one seed, validation split",
        )  # fmt: skip
    return figure


def main() -> None:
    """Write them all."""
    for path, columns in PAGES.items():
        path.write_text(page(path.read_text(encoding="utf-8"), RECORDS, columns), encoding="utf-8")
    draw(collect([RECORDS / "search_4k"]).records).savefig(
        PICTURE, dpi=160, metadata={"Software": None}
    )
    COMPONENTS.write_bytes(gain_by_component(tables(RECORDS)[FACTORIAL], "components").png)
    (retrieval,) = compare(collect([RECORDS / "tables_smollm2"]).records)[0]
    drawn = accuracy_by_depth(retrieval, "", "retrieval")
    assert drawn is not None
    RETRIEVAL.write_bytes(drawn.png)
    print(*PAGES, PICTURE, COMPONENTS, RETRIEVAL, sep="\n")


if __name__ == "__main__":
    main()
