"""Each arm at its best: its settings are chosen by the loss on the validation split.

A choice is a function of records. Of an arm it needs runs that differ in the named settings alone
and were measured on the validation split (`eval=validation`); whichever has the lowest loss, in the
mean over the seeds that all of them have, is chosen, and only that one need ever be measured on the
test split (`hylorada-eval chosen=`). What a run measured before it was measured again stands in its
record, so the choice comes out the same afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hylorada.comparison.arms import (
    flat_settings,
    grouped,
    method_order,
    method_settings,
    setting,
)
from hylorada.comparison.collect import Problem, Record
from hylorada.comparison.conditions import apart, parted
from hylorada.comparison.told_apart import differences, settings_in_short
from hylorada.comparison.validation_losses import (
    SPLIT,
    has,
    on_split,
    perplexities,
    refuse_other_questions,
    shows_validation,
)
from hylorada.errors import DataError
from hylorada.records.chosen_settings import in_words, is_number, value_in_words
from hylorada.records.metric_names import COMPARED

Values = tuple[Any, ...]
"""Of the settings that are chosen, in their order."""


@dataclass(frozen=True)
class Candidate:
    """An arm under one combination of values.

    Attributes:
        values: of the settings.
        losses: seed -> loss on the validation split, nats per token; infinite where training
            diverged.
        runs: in the order of seeds; those that were never measured on the split too.
        missing: what did not come to its end, as in "seed 1 interrupted".
    """

    values: Values
    losses: dict[int, float]
    runs: list[Record]
    missing: list[str]

    def loss(self, seeds: Iterable[int]) -> float:
        """The mean over some seeds, which it has."""
        found = [self.losses[seed] for seed in seeds]
        return sum(found) / len(found)


@dataclass(frozen=True)
class Choice:
    """What was chosen for an arm.

    Attributes:
        arm: its label.
        where: what it was chosen on, as in "tiny on stdlib, 4,096 tokens".
        keys: the settings.
        convention: of the perplexity.
        tokens: scored of the validation split.
        seeds: those that all candidates have.
        candidates: in the order of their values.
        chosen: the best of them; None where all diverged.
        notes: what must be known of the choice, in sentences.
    """

    arm: str
    where: str
    keys: tuple[str, ...]
    convention: str
    tokens: int
    seeds: list[int]
    candidates: list[Candidate]
    chosen: Candidate | None
    notes: list[str] = field(default_factory=list)

    @property
    def said(self) -> str:
        """The choice in words: "lora: train.lr=0.003"."""
        return f"{self.arm}: {in_words(self.keys, self.chosen.values) if self.chosen else 'none'}"


@dataclass(frozen=True)
class Selection:
    """All choices of a report.

    Attributes:
        keys: the settings that were chosen.
        choices: one for each arm.
        problems: runs that could not take part.
        records: what a table of the arms at their best is made of.
        waiting: chosen runs that were measured on no other split yet.
    """

    keys: tuple[str, ...]
    choices: list[Choice]
    problems: list[Problem]
    records: list[Record]
    waiting: list[Record]

    @property
    def opened(self) -> list[Record]:
        """Runs that were not chosen, and whose test split was measured all the same."""
        return [
            run
            for choice in self.choices
            for candidate in choice.candidates
            if candidate is not choice.chosen
            for run in candidate.runs
            if any(metric["split"] == "test" for _, metric in perplexities(run))
        ]


def select(
    records: Sequence[Record],
    keys: Sequence[str],
    *,
    running: Sequence[Path] = (),
    partial: bool = False,
) -> Selection:
    """Choose the values of some settings for each arm.

    Args:
        records: of a grid; runs that were measured on the test split alone join their arm's row.
        keys: see `settings.chosen.keys_of`.
        running: directories of runs that have no record yet.
        partial: whether to choose although runs of the grid did not come to their end.

    Raises:
        DataError: no run was measured on the validation split; the grid is not finished; runs were
            measured on other tokens of it.
    """
    keys = tuple(keys)
    free = (*keys, "eval")
    if running and not partial:
        raise DataError(
            f"the grid is not finished: {running[0]} has no record yet"
            f"{f', nor have {len(running) - 1} more' if len(running) > 1 else ''}; run its command "
            "again, or choose from what is there with --partial"
        )
    choices: list[Choice] = []
    problems: list[Problem] = []
    trained = [run for run in records if _trains(run)]
    groups = [
        part
        for alike in grouped(trained, lambda run: setting(run, free))
        for part in parted(alike, _conditions)
    ]
    for where, part in zip(_places(groups, free), groups, strict=True):
        arms = grouped(part, lambda run: method_settings(run, keys))
        labels = _labels(arms, keys)
        for label, runs in sorted(
            zip(labels, arms, strict=True), key=lambda arm: (method_order(arm[0]), arm[0])
        ):
            choice = _choose(label, where, runs, keys, partial)
            if choice is None:
                problems += [Problem(run.path / "result.json", _UNMEASURED) for run in runs]
            else:
                choices.append(choice)
    if not choices:
        raise DataError(
            f"no finished run was measured on the {SPLIT} split, so nothing can be chosen; train "
            "the grid with eval=validation, or measure its runs with hylorada-eval run=DIRECTORY "
            "eval=validation"
        )
    chosen = [run for c in choices for run in (c.chosen or c.candidates[0]).runs]
    waiting = [run for run in chosen if run.ok and shows_validation(run)]
    others = [run for run in records if not _trains(run)]
    usable = [run for run in (*others, *chosen) if not (run.ok and shows_validation(run))]
    _tell_other_grids(choices)
    return Selection(keys, choices, problems, usable, waiting)


_UNMEASURED = f"never measured on the {SPLIT} split, so nothing can be chosen for its arm"


def _places(groups: Sequence[Sequence[Record]], free: Sequence[str]) -> list[str]:
    """What each group was run on, and what tells it from another one on the same."""
    firsts = [runs[0] for runs in groups]
    names = [
        f"{run.data['model']} on {run.data['dataset']}, {run.data['length']:,} tokens"
        for run in firsts
    ]
    places = []
    for name, runs in zip(names, groups, strict=True):
        same = [each for other, each in zip(names, groups, strict=True) if other == name]
        texts = differences([setting(each[0], free) | _conditions(each[0]) for each in same])
        told = texts[same.index(runs)]
        places.append(f"{name} ({told})" if told else name)
    return places


def _choose(
    arm: str, where: str, runs: Sequence[Record], keys: tuple[str, ...], partial: bool
) -> Choice | None:
    """The choice of one arm; None if no run of it was measured on the split."""
    taking = [run for run in runs if next(on_split(run), None) is not None]
    diverged = [run for run in runs if run.status == "diverged" and shows_validation(run)]
    if not (taking or diverged):
        return None
    convention = next((c for c in COMPARED if all(has(run, c) for run in taking)), "")
    if not convention:
        raise DataError(
            f"{arm} ({where}): its runs were measured on the {SPLIT} split by different "
            "conventions; measure them alike with hylorada-eval run=DIRECTORY eval=validation"
        )
    refuse_other_questions(arm, runs, COMPARED[convention])
    candidates = [
        _candidate(values, [run for run in runs if _values(run, keys) == values], convention)
        for values in sorted(_distinct(runs, keys), key=_order)
    ]
    # A value that was run for the test split alone says nothing here.
    candidates = [each for each in candidates if each.losses or each.missing]
    unfinished = [
        f"{in_words(keys, each.values)} {what}" for each in candidates for what in each.missing
    ]
    if unfinished and not partial:
        raise DataError(
            f"{arm} ({where}): the grid is not finished ({'; '.join(unfinished[:3])}"
            f"{f' and {len(unfinished) - 3} more' if len(unfinished) > 3 else ''}); run its "
            "command again, or choose from what is there with --partial"
        )
    measured = [each for each in candidates if each.losses]
    shared = set.intersection(*(set(each.losses) for each in measured)) if measured else set()
    if not shared:
        raise DataError(
            f"{arm} ({where}): no seed was run under every value of {', '.join(keys)}; run the "
            "missing cells"
        )
    seeds = sorted(shared)
    best = min(measured, key=lambda each: each.loss(seeds))  # of equals the first
    chosen = best if math.isfinite(best.loss(seeds)) else None
    metrics = (m for run in taking for c, m in on_split(run) if c == convention)
    tokens = next((metric["tokens"] for metric in metrics), 0)
    choice = Choice(arm, where, keys, convention, tokens, seeds, candidates, chosen)
    if unfinished:
        choice.notes.append(f"chosen while the grid was not finished: {'; '.join(unfinished)}.")
    choice.notes.extend(_notes(choice, measured))
    return choice


def _candidate(values: Values, runs: Sequence[Record], convention: str) -> Candidate:
    losses: dict[int, float] = {}
    missing: list[str] = []
    for run in runs:
        metric = next((m for c, m in on_split(run) if c == convention), None)
        if metric is not None:
            sum_nll = metric["sum_nll"]
            losses[run.seed] = math.inf if sum_nll is None else sum_nll / metric["tokens"]
        elif run.status == "diverged":
            losses.setdefault(run.seed, math.inf)
        elif not run.ok and shows_validation(run):
            missing.append(f"seed {run.seed} {run.status}")
    return Candidate(values, losses, sorted(runs, key=lambda run: run.seed), missing)


def _notes(choice: Choice, measured: Sequence[Candidate]) -> Iterator[str]:
    """What must be known of a choice."""
    keys, seeds, chosen = choice.keys, choice.seeds, choice.chosen
    if chosen is None:
        yield "training diverged under every value that was tried; try smaller ones."
        return
    if len(measured) == 1:
        yield f"only {in_words(keys, chosen.values)} was tried, so nothing was chosen."
        return
    equal = [each for each in measured if each.loss(seeds) == chosen.loss(seeds)]
    if len(equal) > 1:
        others = ", ".join(in_words(keys, e.values) for e in equal if e is not chosen)
        yield f"{others} has the same loss; the first was taken."
    for i, key in enumerate(keys):
        tried = [each.values[i] for each in measured]
        if all(map(is_number, tried)) and min(tried) < max(tried):
            for end, name in ((min(tried), "smallest"), (max(tried), "largest")):
                if chosen.values[i] == end:
                    yield (
                        f"its best {key} ({value_in_words(end)}) is the {name} tried, so a better "
                        f"one may lie beyond: try {'smaller' if name == 'smallest' else 'larger'} "
                        "ones."
                    )
    for seed in sorted({s for each in measured for s in each.losses} - set(seeds)):
        had = [in_words(keys, each.values) for each in measured if seed in each.losses]
        yield f"seed {seed} took no part, since it was run under {', '.join(had)} alone."


def _tell_other_grids(choices: Sequence[Choice]) -> None:
    """A note for an arm that was not tried under a value that another one of its place was."""
    for choice in choices:
        own = [each.values for each in choice.candidates]
        here = [each for c in choices if c.where == choice.where for each in c.candidates]
        lacking = [values for each in here if (values := each.values) not in own]
        if lacking:
            texts = [in_words(choice.keys, v) for v in sorted(lacking, key=_order)]
            listed = ", ".join(dict.fromkeys(texts))
            choice.notes.append(f"not tried at {listed}, as another arm was.")


def _trains(run: Record) -> bool:
    config = run.part("config")
    method = config.get("method") or {}
    lora = method.get("lora") or {}
    return bool(config.get("train") and (method.get("peft") or lora.get("enabled", True)))


def _conditions(run: Record) -> dict[str, str]:
    """What must be equal to choose among runs; a later measurement may be of another text."""
    known = apart(run.data)
    return {k: v for k, v in known.items() if not k.endswith(" measured on") and "text of" not in k}


def _values(run: Record, keys: Sequence[str]) -> Values:
    flat = flat_settings(run)
    return tuple(flat.get(key) for key in keys)


def _distinct(runs: Sequence[Record], keys: Sequence[str]) -> list[Values]:
    return [_values(alike[0], keys) for alike in grouped(runs, lambda run: _values(run, keys))]


def _labels(arms: Sequence[Sequence[Record]], keys: Sequence[str]) -> list[str]:
    """The methods' names, with what tells two of the same name apart."""
    names = [runs[0].data["method"] for runs in arms]
    labels = []
    for name, runs in zip(names, arms, strict=True):
        same = [each for other, each in zip(names, arms, strict=True) if other == name]
        trees = [method_settings(each[0], keys) for each in same]
        labels.append(f"{name} {settings_in_short(trees)[same.index(runs)]}".rstrip())
    return labels


def _order(values: Values) -> list[tuple[float, str]]:
    """Sorts numbers by what they are and all else by its text."""
    return [(value, "") if is_number(value) else (math.inf, str(value)) for value in values]
