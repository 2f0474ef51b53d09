"""Whose numbers a row holds, and what was asked for them.

A row is about an arm, with a run for each seed, or about an untouched base, which stands in the
record of every run that shares it. Answers to different questions are neither averaged nor set side
by side: of each metric, what most rows were asked is the reference, and only answers to it count.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hylorada.comparison.arms import Arm, Comparison
from hylorada.comparison.collect import Record
from hylorada.records.base_rows import base_label, is_extended, own_window
from hylorada.records.metric_names import COMPARED

Metric = dict[str, Any]
Metrics = dict[str, Metric]
BASES = ("own_window", "extended")
"""The untouched bases by their names in records, in the order of rows."""

OWN_WINDOW = "base, own window"

_ASKED = ("prompts_sha256", "text_sha256", "questions_sha256", "window", "targets", "places")


@dataclass(frozen=True)
class Subject:
    """What a row is about.

    Attributes:
        label: its name for people.
        runs: an arm's finished runs, one a seed; for a base every run whose record holds it.
        which: the base's name in records; empty for an arm.
        arm: the arm; None for a base.
    """

    label: str
    runs: list[Record]
    which: str = ""
    arm: Arm | None = None

    def held(self) -> list[Metrics]:
        """What the record of each run holds of it, by name of the metric."""
        if not self.which:
            return [run.data["metrics"] for run in self.runs]
        return [_held(run, self.which) for run in self.runs]

    def values(self, name: str) -> list[Metric]:
        """The metric of each seed; a base's, which is the same in every record, once."""
        found = [metrics[name] for metrics in self.held() if name in metrics]
        return found[:1] if self.which else found

    def alike(self, name: str, wanted: str | None) -> list[Metrics]:
        """What the runs hold that were asked `wanted` for a metric; a base's once.

        Args:
            name: of the metric.
            wanted: as `asked` writes it.
        """
        found = [m for m in self.held() if name in m and asked(m[name]) == wanted]
        return found[:1] if self.which else found

    def others(self, name: str, wanted: str | None) -> list[tuple[str, Metric]]:
        """Who was asked something else for a metric, and the answers.

        A base that answered `wanted` too is left out: its other answers stand beside those runs.
        """
        found: dict[str, Metric] = {}
        for run, metrics in zip(self.runs, self.held(), strict=True):
            if name in metrics and asked(metrics[name]) != wanted:
                label = self.label if self.which else f"{self.label}, seed {run.seed}"
                found.setdefault(label, metrics[name])
        return [] if self.which and self.alike(name, wanted) else list(found.items())


def bases(comparison: Comparison, which: str) -> list[Subject]:
    """The untouched bases that differ, each with all runs that hold it, in the order of runs.

    Methods may extend the base in different ways; of several each is named after the first
    arm whose records hold it.
    """
    groups: dict[str, Subject] = {}
    for arm in comparison.arms:
        for run in arm.runs:
            if _held(run, which):
                base = Subject(f"{_label(run, which)} (as in {arm.label})", [], which)
                groups.setdefault(_identity(run, which), base).runs.append(run)
    if len(groups) == 1:
        return [Subject(_label(base.runs[0], which), base.runs, which) for base in groups.values()]
    return list(groups.values())


def expected_base(comparison: Comparison, which: str) -> str | None:
    """The label of a base that no record holds; None where there is none to miss."""
    runs = [run for arm in comparison.arms for run in arm.runs]
    expected = some_extended([comparison]) and asked_for_perplexity([comparison])
    if which == "own_window" and not expected:
        return None
    return _label(runs[0], which)


def some_extended(comparisons: Sequence[Comparison]) -> bool:
    """Whether the base of a run was extended."""
    return any(is_extended(r.data) for c in comparisons for arm in c.arms for r in arm.runs)


def asked_for_perplexity(comparisons: Sequence[Comparison]) -> bool:
    """Whether a run was to measure any, the only number there is of the base's own window.

    A record that does not say was.
    """
    runs = (run for each in comparisons for arm in each.arms for run in arm.runs)
    settings = (run.data["config"]["eval"].get("perplexity") or {} for run in runs)
    return any(each.get("conventions", True) for each in settings)


def _label(run: Record, which: str) -> str:
    return OWN_WINDOW if which == "own_window" else base_label(run.data)


def _held(run: Record, which: str) -> Metrics:
    """A base's metrics in a record; its own window's only where that is shorter than the run's."""
    return own_window(run.data) if which == "own_window" else run.part("base").get(which) or {}


def of_arm(arm: Arm) -> Subject:
    """The row of an arm."""
    return Subject(arm.label, arm.ok, arm=arm)


def shown_arms(comparison: Comparison) -> list[Arm]:
    """The arms with a row: a baseline that did not fail is the extended base."""
    return [arm for arm in comparison.arms if arm.method != "baseline" or arm.failed]


def subjects(comparison: Comparison) -> list[Subject]:
    """The extended bases and the arms, in the order of rows."""
    return [*bases(comparison, "extended"), *map(of_arm, shown_arms(comparison))]


def asked(metric: Mapping[str, Any]) -> str:
    """What a metric answers: prompts, or questions, or places in a text and contexts before them.

    The same for metrics that may be compared.
    """
    contexts = [score["context"] for score in metric.get("by_context", [])]
    return json.dumps([*(metric.get(key) for key in _ASKED), contexts])


def agreed(comparison: Comparison, name: str) -> str | None:
    """What most rows were asked for a metric, of equals the first; None if nobody was."""
    votes: Counter[str] = Counter()
    for subject in subjects(comparison):
        votes.update({asked(m[name]): 1 for m in subject.held() if name in m})
    return max(votes, key=lambda each: votes[each], default=None)


def reference(comparison: Comparison, name: str) -> Metric | None:
    """A metric, if possible an arm's, that answers what is `agreed`; None if nobody was asked."""
    wanted = agreed(comparison, name)
    return next((m for m in all_metrics(comparison, name) if asked(m) == wanted), None)


def others(comparison: Comparison, name: str) -> list[tuple[str, Metric]]:
    """Who was asked something else for a metric than what is `agreed`, and the answers."""
    wanted = agreed(comparison, name)
    return [each for subject in subjects(comparison) for each in subject.others(name, wanted)]


def all_metrics(comparison: Comparison, name: str) -> Iterator[Metric]:
    """Those of every arm's finished runs, then those of the extended bases, in every record."""
    for arm in comparison.arms:
        yield from arm.metrics(name).values()
    for base in bases(comparison, "extended"):
        yield from (metrics[name] for metrics in base.held() if name in metrics)


def _identity(run: Record, which: str) -> str:
    """The same for the same base: its perplexities, or else how its range was extended."""
    measured = _held(run, which)
    perplexities = {
        # Values to six digits: what another thread count changes is no other base.
        name: (f"{m['sum_nll'] / m['tokens']:.6g}" if m.get("sum_nll") else None, m["tokens"])
        for name, m in measured.items()
        if name in COMPARED.values()
    }
    method = run.part("config").get("method") or {}
    extended = which == "extended" and is_extended(run.data)
    return json.dumps([extended, perplexities or method.get("position_range")], sort_keys=True)
