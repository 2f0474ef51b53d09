"""Write docs/RESULTS.md from the records in docs/results/records.

    python scripts/results_document.py

`--take outputs/tables` first copies the records below a folder there, in the place of what is there
of that name. With `--print` the document goes to standard output instead. Which runs a table has is
what its overlay says; a table without any says that it was not measured, and why.
"""

from __future__ import annotations

import argparse
import functools
import math
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hylorada import compose
from hylorada.command_line.overrides import rewrite
from hylorada.comparison.arms import compare
from hylorada.comparison.cells import Column, Verdict
from hylorada.comparison.collect import Collection, Record, collect
from hylorada.process.counts import number_of
from hylorada.report.table import Table, build_tables, cell

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs/RESULTS.md"
RECORDS = ROOT / "docs/results/records"
# A path of the machine that measured, which no record that is published holds.
MACHINE_PATH = re.compile(r'"(?:/|~|[A-Za-z]:\\)[^"\s]*"|/(?:home|root|tmp|work|Users)/')
WIDTH = 160
_COSTS = ("trainable", "params_per_percent")  # times are of machines that did other things too


@dataclass(frozen=True)
class Scale:
    """A base on which the tables are made.

    Attributes:
        prefix: of its overlays.
        title: the base and its text.
        folder: of its records, which is the group of its runs.
        words: what must be known of all its tables.
        missing: why tables without records have none.
    """

    prefix: str
    title: str
    folder: str
    words: str
    missing: str


@dataclass(frozen=True)
class Part:
    """A table.

    Attributes:
        title: its number and what it is.
        overlays: by the names of the embedded scale.
        reference: the method that the others are compared with.
        words: what it asks.
        also: methods of another table's runs at the same length, for comparison.
    """

    title: str
    overlays: tuple[str, ...]
    reference: str
    words: str
    also: tuple[str, ...] = ()


SCALES = (
    Scale(
        prefix="",
        title="The embedded base, Python's standard library",
        folder="tables",
        words="`tiny`: 7M parameters, GPT-2 architecture, 1,024 trained positions; two shared CPU "
        "cores, fp32. Every method trained on 49,152 tokens, too little to say anything about "
        "large models. One learning rate for all methods, 3e-3, the better of two on the "
        "validation split for LoRA and HyLoRADA at 4,096 tokens and 40 steps ([LOG](LOG.md)); it "
        "was not tuned for each method.",
        missing="there was not enough time on two shared CPU cores",
    ),
    Scale(
        prefix="smollm2_",
        title="SmolLM2-135M-Instruct, PG-19",
        folder="tables_smollm2",
        words="An instruct model, dequantised from 4-bit weights, 8,192 trained positions; "
        "a subset of PG-19's books.",
        missing="there was not enough time on two shared CPU cores",
    ),
    Scale(
        prefix="gpt2_",
        title="The paper's setting: GPT-2 124M, WikiText and PG-19",
        folder="tables_gpt2",
        words="As the paper describes it ([usage](USAGE.md#the-papers-setting)).",
        missing="it needs a GPU for days and access to the hub, and neither was available",
    ),
)
PARTS = (
    Part(
        "Table 1: each component at 512 tokens",
        ("t1_ablation_512",),
        "rslora",
        "At this length the adaptive rule leaves every component off, so HyLoRADA is rsLoRA. What "
        "does each component do if it is switched on?",
    ),
    Part(
        "Tables 2, 4, 6 and 7: the methods by length",
        ("t2_main_2k", "t2_main_4k", "t2_main_8k", "t2_pg19_8k"),
        "lora",
        "Perplexity, context gain, parameters per 1 % gain, and perplexity in the base's own "
        "window after training, where measured.",
    ),
    Part(
        "Table 2, second part: the components at 4,096 tokens",
        ("t2_factorial_4k",),
        "rslora",
        "rsLoRA plus each component, and HyLoRADA without each: which components help, and which "
        "hurt?",
    ),
    Part(
        "Table 3: retrieval by depth",
        ("t3_retrieval_2k", "t3_longbench_4k"),
        "lora",
        "Likelihood-ranked key-value retrieval by depth of the target pair, on the same prompts "
        "for every method.",
    ),
    Part(
        "Table 8: controls",
        ("t8_controls_2k",),
        "hylorada_no_landmark",
        "Landmarks as published see future tokens at every position; any advantage over the causal "
        "ones of hylorada is leakage, not a gain of the method. Shifted attention with a rolled "
        "sequence is not measured: it leaks too, and there is no switch for it.",
        also=("hylorada",),
    ),
    Part(
        "Table 9: thresholds of the adaptive rule",
        ("t9_thresholds",),
        "rslora",
        "Each component below, at and above the length at which the rule switches it on.",
    ),
)
ABOUT = (
    "Generated by `python scripts/results_document.py` from the records in "
    "[results/records](results/records) only; a test checks that it is current. "
    "`hylorada-report docs/results/records` turns them into figures and an HTML page. The command "
    "for each table stands above it; `make reproduce` runs all of them. Earlier runs, written up "
    "by hand: [results/earlier-runs.md](results/earlier-runs.md)."
)
OTHERWISE = {
    "worse": "significantly worse at",
    "matches": "equivalent to it at",
    "none shown": "not significantly different at",
    "no result": "without a result yet at",
}
TIMES = (
    "Time and memory per training step, compared with PEFT's LoRA with SDPA and with eager "
    "attention, were measured separately on an otherwise idle machine: results and commands are "
    "in [benchmarks/README.md](../benchmarks/README.md) (`make table-t5`). The runs below shared "
    "their two cores with other work, so their times are not reported."
)


def chosen(records: Sequence[Record], overlay: str) -> tuple[list[Record], int, list[Record]]:
    """The records of an overlay's runs, how many it has in all, and other ones at its lengths."""
    axes, evaluation = asked(overlay)
    alike = [
        record
        for record in records
        if record.data["config"]["length"]["name"] in axes["length"]
        and record.data["config"]["eval"]["name"] == evaluation
    ]
    found = [
        record
        for record in alike
        if record.data["method"] in axes["method"] and str(record.seed) in axes["seed"]
    ]
    others = [record for record in alike if record not in found]
    return found, math.prod(map(len, axes.values())), others


@functools.cache
def asked(overlay: str) -> tuple[dict[str, list[str]], str]:
    """The methods, lengths and seeds of an overlay's runs, and the name of what is measured."""
    with compose.opened_hydra() as hydra:
        master = compose.compose(hydra, rewrite([f"experiment={overlay}"]), multirun=True)
    axes = {k: re.split(r",\s*", str(v).strip()) for k, v in master.hydra.sweeper.params.items()}
    assert set(axes) <= {"method", "length", "seed"}, overlay
    return {"length": [master.length.name], **axes}, master.eval.name


def document(folder: Path) -> str:
    """The whole page, from the records below a folder."""
    body: list[str] = []
    verdicts: list[Verdict] = []
    notes: dict[str, None] = {}
    for scale in SCALES:
        below = folder / scale.folder
        collection = collect([below]) if below.is_dir() else Collection([], [])
        records, problems = (
            collection.records,
            [*collection.problems, *compare(collection.records)[1]],
        )
        body += [f"## {scale.title}", "", *prose(scale.words), ""]
        missing = []
        for part in PARTS:
            overlays = [name for name in map(scale.prefix.__add__, part.overlays) if known(name)]
            lines = [
                text
                for name in (overlays if records else [])
                for text in section(scale, part, name, records, verdicts, notes)
            ]
            if lines:
                body += [f"### {part.title}", "", *prose(part.words), "", *lines]
            elif overlays:
                missing.append(f"{part.title} ({', '.join(f'`{name}`' for name in overlays)})")
        if missing:
            body += [*prose(f"Not measured, because {scale.missing}:"), ""]
            body += [*bullets(missing), ""]
        if problems:
            body += ["Records not used:", ""]
            body += bullets(f"`{p.path.relative_to(folder)}`: {p.reason}" for p in problems)
            body += [""]
    head = ["# Results", "", *prose(lead(verdicts)), "", *prose(ABOUT), "", "## How to read it", ""]
    times = ["## Table 5: time and memory per training step", "", *prose(TIMES), ""]
    return "\n".join([*head, *bullets(notes), "", *times, *body]).rstrip() + "\n"


def prose(text: str, mark: str = "") -> list[str]:
    """A paragraph, or with a mark an item of a list, in lines that break no code."""
    whole = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", "\0"), f"{mark}{text}")
    indent = " " * len(mark)
    found = textwrap.wrap(
        whole, WIDTH, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )
    return [line.replace("\0", " ") for line in found]


def bullets(texts: Iterable[str]) -> list[str]:
    """A list in lines."""
    return [line for text in texts for line in prose(text, "* ")]


def known(overlay: str) -> bool:
    """Whether there is an overlay of that name."""
    return (compose.conf_dir() / "experiment" / f"{overlay}.yaml").is_file()


def section(
    scale: Scale,
    part: Part,
    overlay: str,
    records: Sequence[Record],
    verdicts: list[Verdict],
    notes: dict[str, None],
) -> Iterator[str]:
    """The lines of an overlay, none if no record is of it; adds what is said of it."""
    found, count, others = chosen(records, overlay)
    if not found:
        return
    yield from ["```bash", f"hylorada-train -m experiment={overlay}", "```", ""]
    done = sum(record.ok for record in found)
    if done < count:
        yield from prose(
            f"{done} of {number_of(count, 'run')}; the others were not measured, because "
            f"{scale.missing}."
        )
        yield ""
    found += [record for record in others if record.data["method"] in part.also]
    for table in build_tables(compare(found)[0], part.reference):
        general = [note for note in table.notes if not note.startswith("length ")]
        notes.update(dict.fromkeys(note for note in general if "tokens/s" not in note))
        for columns in packed(table):
            yield from lines(table, columns)
            yield ""
        own = [note for note in table.notes if note not in general]
        yield from bullets([*(each.text for each in table.verdicts), *own])
        yield ""
        if part.reference == "lora":
            verdicts += table.verdicts


def packed(table: Table) -> list[list[Column]]:
    """What was measured of each arm, without times, in tables that fit the page."""
    wanted = [
        column
        for column in table.columns
        if (not column.cost or column.key in _COSTS) and (column.main or measured(table, column))
    ]
    first = [column for column in wanted if column.key in ("method", "length", "seeds")]
    found = [first]
    for column in wanted:
        if column in first:
            continue
        if max(map(len, lines(table, [*found[-1], column]))) > WIDTH:
            found.append(first)
        found[-1] = [*found[-1], column]
    return found


def lines(table: Table, columns: Sequence[Column]) -> list[str]:
    """A Markdown table."""
    rows = [
        [column.heading for column in columns],
        ["---:" if column.numeric else "---" for column in columns],
        *([cell(row, c.key).text for c in columns] for each in table.sections for row in each.rows),
    ]
    return [f"| {' | '.join(' '.join(text.split()) for text in row)} |" for row in rows]


def measured(table: Table, column: Column) -> bool:
    """Whether a column holds more than "not measured"."""
    return not column.numeric or any(
        cell(row, column.key).value is not None for each in table.sections for row in each.rows
    )


def lead(verdicts: Sequence[Verdict]) -> str:
    """The first sentence: where the method does not help."""
    where: dict[str, dict[str, None]] = {}
    ahead: dict[str, None] = {}
    for each in verdicts:
        own = re.match(r"At ([\d,]+) tokens(?: \(.*?\))?, hylorada ", each.text)
        if own:
            where.setdefault(each.kind, {})[own[1]] = None
        elif each.kind != "no result" and (
            base := re.match(r"At ([\d,]+) tokens.* is ahead of every method", each.text)
        ):
            ahead[base[1]] = None
    if not where:
        said = ["HyLoRADA has not been compared with plain LoRA yet"]
    elif "better" in where:
        said = [
            f"HyLoRADA is significantly better than plain LoRA at {_and(where['better'])} tokens"
        ]
    else:
        said = ["HyLoRADA is not significantly better than plain LoRA at any length measured"]
    said += [f"{OTHERWISE[kind]} {_and(where[kind])} tokens" for kind in OTHERWISE if kind in where]
    if ahead:
        said.append(
            f"at {_and(ahead)} tokens the unmodified base in its own window is ahead of every "
            "method"
        )
    return f"**{'; '.join(said)}.**"


def _and(texts: Iterable[str]) -> str:
    *others, last = texts
    return " and ".join(filter(None, [", ".join(others), last]))


def take(folder: Path) -> int:
    """Copy the records of the runs in a folder; how many.

    Raises:
        SystemExit: one holds a path of this machine.
    """
    found = sorted(folder.glob("*/result.json"))
    for path in found:
        here = MACHINE_PATH.search(path.read_text(encoding="utf-8"))
        if here:
            sys.exit(
                f"{path} holds {here[0]}, a path of this machine; give it relative to where it runs"
            )
    shutil.rmtree(RECORDS / folder.name, ignore_errors=True)
    for path in found:
        copy = RECORDS / folder.name / path.parent.name / path.name
        copy.parent.mkdir(parents=True)
        shutil.copyfile(path, copy)
    return len(found)


def main() -> None:
    """Take records, write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--take", type=Path, nargs="*", default=[], help="folders with runs")
    parser.add_argument("--print", action="store_true", help="to standard output")
    args = parser.parse_args()
    for folder in args.take:
        print(f"{number_of(take(folder), 'record')} of {folder}", file=sys.stderr)
    text = document(RECORDS)
    if args.print:
        sys.stdout.write(text)
    else:
        DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
