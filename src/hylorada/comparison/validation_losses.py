"""What the records of a grid hold of the validation split, on which settings are chosen.

A run that was measured again keeps what stood in its record before, so that nothing is lost when
the test split is opened for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hylorada.comparison.collect import Record
from hylorada.errors import DataError
from hylorada.records.metric_names import COMPARED

SPLIT = "validation"
"""The split that is chosen on."""


def perplexities(run: Record) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Convention and metric of each perplexity that was ever measured, the latest first."""
    held = [run.data["metrics"]]
    held += [entry.get("replaced") or {} for entry in reversed(run.data.get("evaluations") or [])]
    for metrics in held:
        for convention, name in COMPARED.items():
            if name in metrics:
                yield convention, metrics[name]


def on_split(run: Record) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Those of the split that is chosen on."""
    return ((c, metric) for c, metric in perplexities(run) if metric["split"] == SPLIT)


def has(run: Record, convention: str) -> bool:
    """Whether it was measured on that split by a convention."""
    return any(c == convention for c, _ in on_split(run))


def shows_validation(run: Record) -> bool:
    """Whether the numbers that a record shows are those of the split that is chosen on."""
    settings = run.part("config").get("eval") or {}
    return (settings.get("perplexity") or {}).get("split") == SPLIT


def refuse_other_questions(arm: str, runs: Sequence[Record], name: str) -> None:
    """Losses on other tokens are no losses to choose by.

    Args:
        arm: its label.
        runs: of the arm.
        name: of the metric.

    Raises:
        DataError: naming two runs that were asked different things.
    """
    asked: dict[str, tuple[Record, Mapping[str, Any]]] = {}
    for run in runs:
        for convention, metric in on_split(run):
            if COMPARED[convention] == name:
                parts = [[d["name"], d["tokens"]] for d in metric["by_document"]]
                question = json.dumps([metric["window"], metric["stride"], parts])
                asked.setdefault(question, (run, metric))
    if len(asked) > 1:
        (one, first), (other, second) = list(asked.values())[:2]
        raise DataError(
            f"{arm}: {one.path.name} and {other.path.name} were measured on other tokens of the "
            f"{SPLIT} split ({first['tokens']:,} and {second['tokens']:,}, window "
            f"{first['window']:,} and {second['window']:,}); measure all alike with hylorada-eval "
            "run=DIRECTORY eval=validation"
        )
