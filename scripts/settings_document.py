"""Write docs/SETTINGS.md from the fields of `config`: `python scripts/settings_document.py`.

With `--print` it goes to standard output instead.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hylorada.config import RunConfig
from hylorada.config.fields import CHANGES, Facts
from hylorada.config.rules import FACTS

DOCUMENT = Path(__file__).parents[1] / "docs/SETTINGS.md"
WIDTH = 158

HEAD = (
    "Made from `src/hylorada/config/` by `python scripts/settings_document.py`; a test compares. "
    "Do not edit it here.",
    "Each is set on the command line by its name, as in `train.lr=1e-4`; a group by the name of a "
    "file in `conf/GROUP/`, as in `train=paper`, over whose values a single setting wins. In "
    "brackets stands the default where no file says otherwise; `hylorada-train --cfg job` prints "
    "what a command makes of all of them.",
    "Another value is another run with other results, unless *Changes* names something else:",
)
TYPES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "`true` or `false`",
    "list[str]": "a list of texts",
    "list[int]": "a list of whole numbers",
    "list[float]": "a list of numbers",
    "dict[str, Any]": "settings in braces",
}


def comments(kind: type) -> dict[str, str]:
    """What the source says in comments at the fields of a dataclass: above them and beside them."""
    source = textwrap.dedent(inspect.getsource(kind))
    lines, found = source.splitlines(), {}
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first = node.lineno - 1
            while lines[first - 1].strip().startswith("#"):
                first -= 1
            told = [
                line.strip().removeprefix("#").strip() for line in lines[first : node.lineno - 1]
            ]
            last = lines[(node.end_lineno or 0) - 1][node.end_col_offset :]
            _, hash_sign, beside = last.partition("#")
            if hash_sign and not beside.strip().startswith(("fmt:", "noqa")):
                told.append(beside.strip())
            found[node.target.id] = " ".join(told).rstrip(":,")
    return found


def shown(value: Any) -> str:
    return f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`" * bool(value)


def limits(facts: Facts) -> str:
    """The range in words; what 0 stands for."""
    found = []
    if facts.most is not None:
        found.append(f"from {facts.least:.10g} to {facts.most:.10g}")
    elif facts.below is not None:
        found.append(f"from {facts.least:g} to below {facts.below:g}")
    elif facts.above is not None:
        found.append(f"above {facts.above:g}")
    elif facts.least is not None:
        found.append(f"{facts.least:g} or more")
    if facts.zero:
        found.append(f"0: {facts.zero}")
    return "; ".join(found)


def entry(key: str, field: dataclasses.Field[Any], value: Any, note: str) -> str:
    """One line for a setting."""
    facts = FACTS[key]
    kind = TYPES[str(field.type)]
    if facts.choices:
        kind = ("each of " if isinstance(value, list) else "") + ", ".join(
            f"`{choice}`" for choice in facts.choices
        )
    default = shown(value) or "empty"
    words = [f"- `{key}` ({default}): {kind}"]
    words += [text for text in (facts.unit, facts.means, limits(facts)) if text]
    line = "; ".join(words) + "."
    if note:
        first = note if re.match(r"\w+:", note) else f"{note[0].upper()}{note[1:]}"
        line += f" {first}{'' if note.endswith('.') else '.'}"
    if facts.changes != "numbers":
        line += f" *Changes*: {facts.changes}."
    return textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def sections(part: Any, prefix: str) -> Iterator[str]:
    """The settings of a part, then those of the parts in it."""
    title = f"`{prefix.rstrip('.')}`" if prefix else "Of the run"
    words = " ".join((type(part).__doc__ or "").split())
    yield from ["", f"## {title}", "", *textwrap.wrap(words, WIDTH), ""]
    noted, inner = comments(type(part)), []
    for field in dataclasses.fields(part):
        value, key = getattr(part, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            inner.append((value, f"{key}."))
        else:
            yield entry(key, field, value, noted[field.name])
    for value, below in inner:
        yield from sections(value, below)


def document() -> str:
    """All of docs/SETTINGS.md."""
    lines = ["# Settings"]
    for paragraph in HEAD:
        lines += ["", textwrap.fill(paragraph, WIDTH, break_on_hyphens=False)]
    lines += ["", *(f"* *{name}*: {what}" for name, what in CHANGES.items() if name != "numbers")]
    return "\n".join([*lines, *sections(RunConfig(), "")]) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--print"]:
        sys.stdout.write(document())
    else:
        DOCUMENT.write_text(document(), encoding="utf-8")
