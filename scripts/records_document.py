"""Write docs/RECORDS.md from the schema of records: `python scripts/records_document.py`.

With `--print` it goes to standard output instead.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, is_typeddict

from hylorada.records import metric_schema, schema
from hylorada.records.described import fields
from hylorada.records.run_files import LEFT
from hylorada.records.training_schema import (
    RetrievalLine,
    SkippedLine,
    TimingLine,
    TrainingLine,
    ValidationLine,
)

DOCUMENT = Path(__file__).parents[1] / "docs/RECORDS.md"
WIDTH = 160

HEAD = (
    "Made from `src/hylorada/records/schema.py`, `training_schema.py` and `metric_schema.py` by "
    "`python scripts/records_document.py`; a test compares. Do not edit it here.",
    "A run is a directory `<output_root>/<group>/<method>-<length>-seed<N>-<fingerprint>`. Its "
    f"record is `result.json`, schema version {schema.VERSION} (field `schema`; a record that does "
    "not say is of version 1). A field may be added without a new version; one that goes, or comes "
    "to mean something else, makes one, and an older hylorada then refuses the record. All numbers "
    "are plain JSON: what is not finite is null. Secrets are `***`.",
    "A field that says nothing of *null* is never null, one that says nothing of *absent* is "
    "always there. Records of earlier versions of the package may lack fields; without one in "
    "**bold**, or with another type in its place, a file is refused as no record of a run.",
)
METRICS = (
    "A metric is an object with at least `value`. Any measurement may add fields, which say how "
    "the number was made; those that ship add these. The beginning of a name says which, the "
    "longest that fits.",
)
LINES = (
    "One object a line, in the order of steps. After the lines of training comes one with `step` "
    "and the `value` of every metric of the record by its name; one more for each time the run is "
    "measured again.",
)
GATE = (
    "An object like [Integrity](#integrity); there also where the gate refuses the model and "
    "nothing trains.",
)


def type_words(kind: Any) -> str:
    """A type as JSON has it."""
    if isinstance(kind, UnionType):
        return " or ".join(type_words(k) for k in get_args(kind) if k is not NoneType)
    if get_origin(kind) is Literal:
        return "text"
    if is_typeddict(kind):
        return linked(kind)
    if get_origin(kind) is dict:
        return f"object of {type_words(get_args(kind)[1])}"
    if get_origin(kind) is list:
        return f"list of {type_words(get_args(kind)[0])}"
    return {int: "whole number", float: "number", str: "text", bool: "true or false", Any: "any"}[
        kind
    ]


def linked(kind: Any) -> str:
    return f"[{kind.__name__}](#{kind.__name__.lower()})"


def described(kind: Any, without: Any = None) -> Iterator[str]:
    """A line for each field of a kind, less those that it has from another one."""
    inherited = fields(without) if without else {}
    for name in [name for name in fields(kind) if name not in inherited]:
        field = fields(kind)[name]
        about = field.about
        shown = f"**`{name}`**" if about.needed else f"`{name}`"
        unit = f", {about.unit}" if about.unit else ""
        line = f"- {shown} ({type_words(field.kind)}{unit}): {about.meaning}."
        line += f" *Null*: {about.null}." if about.null else ""
        line += f" *Absent*: {about.absent}." if about.absent else ""
        yield filled(line, "  ")


def first_words(kind: Any) -> str:
    return " ".join((kind.__doc__ or "").split()) if kind.__doc__ != dict.__doc__ else ""


def parts(kind: Any, seen: dict[str, Any]) -> None:
    """The typed dictionaries in a kind, each after the one that names it first."""
    for field in fields(kind).values():
        stack = [field.kind]
        while stack:
            inner = stack.pop()
            if is_typeddict(inner):
                if inner is not metric_schema.Metric and inner.__name__ not in seen:
                    seen[inner.__name__] = inner
                    parts(inner, seen)
            else:
                stack += [k for k in get_args(inner) if not isinstance(k, str)]


def section(kind: Any, heading: str, without: Any = None) -> Iterator[str]:
    yield f"{heading} {kind.__name__}"
    yield ""
    words = first_words(kind)
    if words:
        yield words
        yield ""
    lines = list(described(kind, without))
    yield from [*lines, ""] if lines else []


def chapter(title: str, *paragraphs: str) -> Iterator[str]:
    """A heading and what stands below it."""
    for text in (title, *(filled(paragraph) for paragraph in paragraphs)):
        yield text
        yield ""


def filled(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 158, subsequent_indent=indent, break_on_hyphens=False)


def document() -> str:
    """All of docs/RECORDS.md."""
    out = [*chapter("# Records", *HEAD), *chapter("## Files of a run")]
    out += ["| file | what it is |", "|---|---|"]
    out += [f"| `{name}` | {what} |" for name, what in LEFT.items()]
    out += ["", *section(schema.Record, "##")]
    seen: dict[str, Any] = {}
    parts(schema.Record, seen)
    for kind in seen.values():
        out += section(kind, "###")
    out += [*chapter("## Metrics", *METRICS), *section(metric_schema.Metric, "###")]
    inner: dict[str, Any] = {}
    for kind in dict.fromkeys(metric_schema.MEASURED.values()):
        out += section(kind, "###", metric_schema.Metric)
        parts(kind, inner)
    for kind in inner.values():
        out += section(kind, "###")
    out += chapter("## metrics.jsonl", *LINES)
    for kind in (
        TrainingLine,
        RetrievalLine,
        SkippedLine,
        ValidationLine,
    ):
        out += section(kind, "###")
    out += [*chapter("## timing.jsonl"), *section(TimingLine, "###")]
    out += chapter("## integrity.json", *GATE)
    text = "\n".join(out).rstrip() + "\n"
    long = [line for line in text.splitlines() if len(line) > WIDTH]
    assert not long, long
    return text


if __name__ == "__main__":
    if sys.argv[1:] == ["--print"]:
        sys.stdout.write(document())
    else:
        DOCUMENT.write_text(document(), encoding="utf-8")
