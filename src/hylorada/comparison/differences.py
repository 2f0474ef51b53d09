"""What differs between the runs of one comparison beyond their methods, in plain sentences."""

from __future__ import annotations

from collections.abc import Iterable

from hylorada.comparison.arms import Arm, Comparison
from hylorada.comparison.collect import Record
from hylorada.comparison.conditions import SKIPPED, beside, said
from hylorada.process.counts import number_of
from hylorada.records.chosen_settings import choice_in_words, chosen_in
from hylorada.records.component_names import component_words

_MEANING = {
    "hardware": "tokens/s and memory are not comparable",
    "code": "numbers may depend on the commit",
}
_OF_PACKAGES = "numbers may depend on the version"


def difference_notes(comparison: Comparison) -> list[str]:
    """Versions, code, hardware, skipped steps and trained tokens, where they are not the same."""
    arms = [arm for arm in comparison.arms if arm.method != "baseline" or arm.failed]
    notes = [comparison.apart] if comparison.apart else []
    names = dict.fromkeys(n for arm in arms for run in arm.ok for n in _told(run))
    for name in names:
        if name == SKIPPED:
            continue
        values = _by_value(arms, name)
        if len(values) > 1:
            listed = "; ".join(f"{value} ({', '.join(who)})" for value, who in values.items())
            notes.append(f"{name} differs: {listed}; {_MEANING.get(name, _OF_PACKAGES)}.")
    for arm in arms:
        inert = [n for run in arm.ok[:1] for n in run.part("parameters").get("placebo") or []]
        if inert:
            words = " and ".join(component_words(name) for name in inert)
            notes.append(
                f"{arm.label} is a control: {words} are attached, trained and counted, and their "
                "output is multiplied by 0."
            )
        for run in arm.ok:
            training = run.part("training")
            if training.get("skipped_steps"):
                notes.append(
                    f"{arm.label}, seed {run.seed}: {training['skipped_steps']} of "
                    f"{number_of(training['steps'], 'step')} were skipped, because their loss or "
                    "gradient was not finite."
                )
    return [*notes, *_tokens(arms), *_chosen(arms)]


def _chosen(arms: Iterable[Arm]) -> list[str]:
    """Which arms have settings that were chosen among several, as their records say."""
    words: dict[str, list[str]] = {}
    for arm in arms:
        for run in arm.ok:
            if (chosen := chosen_in(run.data)) is not None:
                words.setdefault(choice_in_words(chosen), []).append(arm.label)
    return [
        f"Chosen: {told} ({', '.join(dict.fromkeys(labels))})." for told, labels in words.items()
    ]


def _told(run: Record) -> dict[str, str]:
    return {**beside(run.data), **said(run.data)}


def _by_value(arms: Iterable[Arm], name: str) -> dict[str, list[str]]:
    """Value -> the arms whose runs all have it, or else their seeds."""
    found: dict[str, list[str]] = {}
    for arm in arms:
        values = {run.seed: v for run in arm.ok if (v := _told(run).get(name)) is not None}
        for each in dict.fromkeys(values.values()):
            seeds = [str(seed) for seed, v in values.items() if v == each]
            whole = len(seeds) == len(values)
            who = arm.label if whole else f"{arm.label} of seed {' and '.join(seeds)}"
            found.setdefault(each, []).append(who)
    return found


def _tokens(arms: list[Arm]) -> list[str]:
    """Arms of one seed see the same data, so other tokens are another budget."""
    by_seed: dict[int, dict[str, int]] = {}
    for arm in arms:
        for run in arm.ok:
            tokens = run.part("training").get("tokens")
            if tokens:
                by_seed.setdefault(run.seed, {})[arm.label] = tokens
    return [
        f"seed {seed}: methods were trained on different numbers of tokens: "
        + "; ".join(f"{label} {tokens:,}" for label, tokens in trained.items())
        + "."
        for seed, trained in sorted(by_seed.items())
        if len(set(trained.values())) > 1
    ]
