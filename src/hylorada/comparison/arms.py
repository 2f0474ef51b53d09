"""Which runs belong together: seeds of one arm, arms of one comparison.

Two runs are compared only if everything but the method and the seed is equal: the same base, text,
length, training budget, learning rate and evaluation, and the same arithmetic, weights and text
behind these settings (see `conditions`). Which groups of parameters learn faster or slower belongs
to the method, which alone has these groups. What cannot change a result to speak of, as `config`
says (where files lie, how often is logged), is left out; so is what each metric says of itself:
`subjects` compares only answers to the same question.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hylorada.comparison.collect import Problem, Record
from hylorada.comparison.conditions import (
    SKIPPED,
    Known,
    apart,
    beside,
    differing,
    parted,
    together,
)
from hylorada.comparison.told_apart import (
    LR_SCALE,
    differences,
    differing_keys,
    settings_in_short,
)
from hylorada.config.fields import within
from hylorada.config.rules import NOT_COMPARED
from hylorada.process.counts import number_of
from hylorada.records.metric_names import COMPARED
from hylorada.settings.fingerprint import IMPLIED

METHOD_ORDER = ("baseline", "lora", "dora", "rslora", "longlora", "hylorada")


@dataclass
class Arm:
    """One method in one comparison: its runs, one a seed.

    Attributes:
        method: the method's name.
        label: the name, and the settings that tell it from another arm of that name.
        runs: in the order of seeds.
    """

    method: str
    label: str
    runs: list[Record]

    @property
    def ok(self) -> list[Record]:
        """The runs that came to their end."""
        return [run for run in self.runs if run.ok]

    @property
    def failed(self) -> list[Record]:
        """The others."""
        return [run for run in self.runs if not run.ok]

    def metrics(self, name: str) -> dict[int, dict[str, Any]]:
        """Seed -> metric, of the finished runs that have it."""
        found = ((run.seed, run.metric(name)) for run in self.ok)
        return {seed: metric for seed, metric in found if metric is not None}

    @property
    def trainable_parameters(self) -> int | None:
        """Of its runs, which all have the same; None if none says so."""
        counts = [run.part("parameters").get("trainable") for run in self.ok]
        return next((count for count in counts if count is not None), None)

    def base_metrics(self, which: str, name: str) -> dict[int, dict[str, Any]]:
        """Seed -> the base's metric in the record of that seed."""
        found = ((run.seed, run.base(which, name)) for run in self.ok)
        return {seed: metric for seed, metric in found if metric is not None}


@dataclass
class Comparison:
    """The arms that may be compared with one another.

    Attributes:
        model: name of the base.
        dataset: name of the data set.
        length: tokens of the window.
        label: settings that tell it from another comparison of that length; often empty.
        arms: the baseline first, then LoRA, then the others.
        apart: why runs of the same settings are not in it, in a sentence; often empty.
    """

    model: str
    dataset: str
    length: int
    label: str
    arms: list[Arm] = field(default_factory=list)
    apart: str = ""

    @property
    def heading(self) -> str:
        """Length, and the settings that tell it from another of that length."""
        return f"length {self.length:,}" + (f" ({self.label})" if self.label else "")

    @property
    def words(self) -> str:
        """How a sentence about it begins."""
        return f"At {self.length:,} tokens" + (f" ({self.label})" if self.label else "")

    @property
    def known(self) -> Known:
        """What is known of its runs and must be equal in all."""
        return together([apart(run.data) for arm in self.arms for run in arm.runs])

    def reference(self, method: str) -> Arm | None:
        """The arm to compare with; of several of that name the one with the lowest perplexity."""
        candidates = [arm for arm in self.arms if arm.method == method and arm.ok]
        return min(candidates, key=_mean_loss, default=None)


def compare(
    records: Sequence[Record], free: Sequence[str] = ()
) -> tuple[list[Comparison], list[Problem]]:
    """Group records into comparisons and arms.

    Args:
        records: of runs.
        free: settings that need not be equal, since each arm has its own (see `selection`).

    Returns:
        Comparisons by model, data set and length; the runs left out because another run of the same
        arm has the same seed.
    """
    comparisons: list[Comparison] = []
    problems: list[Problem] = []
    for same_setting in grouped(records, lambda run: setting(run, free)):
        parts = parted(same_setting, lambda run: apart(run.data))
        found = [_comparison(part, free, problems) for part in parts]
        names = differing([comparison.known for comparison in found])
        for comparison in found if names else []:
            values = [
                f"{name} ({', '.join(dict.fromkeys(c.known.get(name, 'unknown') for c in found))})"
                for name in names
            ]
            comparison.apart = (
                "runs of the same settings stand apart and are not compared, because they differ "
                f"in {'; '.join(values)}."
            )
        comparisons += found
    comparisons.sort(
        key=lambda c: (
            c.model, c.dataset, c.length,
            json.dumps(setting(c.arms[0].runs[0], free), sort_keys=True), sorted(c.known.items()),
        )
    )  # fmt: skip
    comparisons = _without_lonely_baselines(comparisons)
    _label_arms(comparisons)
    _label_comparisons(comparisons, free)
    return comparisons, problems


def _comparison(runs: Sequence[Record], free: Sequence[str], problems: list[Problem]) -> Comparison:
    """The arms of runs that may be compared; what is left out is added to the problems."""
    first = runs[0].data
    comparison = Comparison(first["model"], first["dataset"], first["length"], "")
    for same_method in grouped(runs, lambda run: method_settings(run, free)):
        for alike in parted(same_method, lambda run: beside(run.data)):
            by_seed: dict[int, Record] = {}
            for run in sorted(alike, key=lambda r: (not r.ok, str(r.path))):
                if run.seed in by_seed:
                    reason = f"the same method and seed as {by_seed[run.seed].path}, which is used"
                    problems.append(Problem(run.path / "result.json", reason))
                else:
                    by_seed[run.seed] = run
            name = alike[0].data["method"]
            comparison.arms.append(Arm(name, name, [by_seed[seed] for seed in sorted(by_seed)]))
    comparison.arms.sort(key=_arm_order)
    return comparison


def grouped(records: Iterable[Record], key: Callable[[Record], Any]) -> list[list[Record]]:
    """Records that a key, of plain values, is equal for; each group in the order given."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(json.dumps(key(record), sort_keys=True), []).append(record)
    return list(groups.values())


def differing_settings(arm: Arm, other: Arm) -> list[str]:
    """The settings of the method in which two arms differ, their names aside."""
    trees = [method_settings(each.runs[0]) for each in (arm, other)]
    return [key for key in differing_keys(trees) if key != "name"]


def other_draw(arm: Arm, other: Arm) -> bool:
    """Whether an arm is another one but for `method.adapter_seed`, which the other leaves at 0."""
    seed = method_settings(other.runs[0])["adapter_seed"]
    return differing_settings(arm, other) == ["adapter_seed"] and not seed


def method_settings(record: Record, free: Sequence[str] = ()) -> dict[str, Any]:
    """The settings that make an arm, flat: `lora.r` -> 8. The name alone decides nothing.

    Args:
        record: of a run.
        free: settings to leave out, by their whole names.
    """
    config = record.data["config"]
    flat = _flat(config.get("method") or {}, "method.")
    rates = _flat(config.get("train") or {}, "train.")
    flat |= {key: value for key, value in rates.items() if within(key, [LR_SCALE])}
    own = {k.removeprefix("method."): v for k, v in flat.items() if not within(k, free)}
    return {"name": record.data["method"], **own}


def setting(record: Record, free: Sequence[str] = ()) -> dict[str, Any]:
    """The settings that must be equal in a comparison, flat: `train.lr` -> 0.0002.

    Args:
        record: of a run.
        free: settings, or groups of them, that need not be equal.
    """
    config = record.data["config"]
    train = config.get("train") or {}
    left_out = (*NOT_COMPARED, *free)
    if train.get("task") != "retrieval" and not train.get("mix"):
        left_out += ("train.retrieval",)  # without effect; otherwise it is the training data
    settings = _flat(config)
    if train.get("keep_best") or train.get("patience"):  # the steps between evaluations count then
        left_out = tuple(key for key in left_out if key != "train.eval_every")
    flat = {key: value for key, value in settings.items() if not within(key, left_out)}
    micro, steps = train.get("micro_batch_size"), train.get("gradient_accumulation_steps")
    if isinstance(micro, int) and isinstance(steps, int):
        flat["sequences in a step"] = micro * steps
    # Names stand for records without a full config.
    for name in ("model", "dataset", "length"):
        flat[name] = record.data[name]
    return flat


def flat_settings(record: Record) -> dict[str, Any]:
    """Every setting of a run, flat, with what a record from before a key existed did."""
    return _flat(record.data["config"])


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value; what a record from before a key existed did is said for it."""
    flat = dict(_leaves(tree, prefix))
    parts = {key.partition(".")[0] for key in flat} if not prefix else {prefix.rstrip(".")}
    whole = {key for key in parts if key not in flat}
    implied = {k: v for k, v in IMPLIED.items() if k.partition(".")[0] in whole and "." in k}
    return implied | flat


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _plain(value)


def _plain(value: Any) -> Any:
    """A number in one spelling: 16 for 16.0."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _label_arms(comparisons: Sequence[Comparison]) -> None:
    """Name arms by what tells them apart: settings of the method, versions, skipped steps."""
    tables: dict[tuple[str, str, str], list[Arm]] = {}
    for comparison in comparisons:
        for arm in comparison.arms:
            key = (comparison.model, comparison.dataset, arm.method)
            tables.setdefault(key, []).append(arm)
    for (_, _, name), arms in tables.items():
        trees = [method_settings(arm.runs[0]) for arm in arms]
        for arm, text in zip(arms, settings_in_short(trees), strict=True):
            arm.label = f"{name} {text}".rstrip()
    for comparison in comparisons:
        for label in dict.fromkeys(arm.label for arm in comparison.arms):
            same = [arm for arm in comparison.arms if arm.label == label]
            known = [together([beside(run.data) for run in arm.runs]) for arm in same]
            names = [name for name in differing(known) if name != SKIPPED]
            for arm, facts in zip(same, known, strict=True):
                told = [f"{name} {facts[name]}" for name in names if name in facts]
                skipped = int(facts.get(SKIPPED, 0))
                if skipped:
                    told.append(f"{number_of(skipped, 'step')} skipped")
                if told:
                    arm.label = f"{label} ({', '.join(told)})"


def _label_comparisons(comparisons: Sequence[Comparison], free: Sequence[str]) -> None:
    groups: dict[tuple[str, str, int], list[Comparison]] = {}
    for comparison in comparisons:
        key = (comparison.model, comparison.dataset, comparison.length)
        groups.setdefault(key, []).append(comparison)
    for same in groups.values():
        if len(same) > 1:
            trees = [setting(comparison.arms[0].runs[0], free) for comparison in same]
            known = [comparison.known for comparison in same]
            names = differing(known)
            for comparison, text, facts in zip(same, differences(trees), known, strict=True):
                told = [f"{name}={facts[name]}" for name in names if name in facts]
                comparison.label = ", ".join(filter(None, [text, *told]))


def _without_lonely_baselines(comparisons: list[Comparison]) -> list[Comparison]:
    """Drop a comparison that holds the baseline alone if another shows the same base.

    The training settings, which the baseline carries and does not use, may differ.
    """

    def bases(comparison: Comparison) -> set[str]:
        return {
            json.dumps(
                [run.data["model"], run.data["dataset"], run.data["length"], _perplexities(run)]
            )
            for arm in comparison.arms
            for run in arm.ok
        }

    kept = []
    for comparison in comparisons:
        lonely = all(arm.method == "baseline" and not arm.failed for arm in comparison.arms)
        others = [c for c in comparisons if any(arm.method != "baseline" for arm in c.arms)]
        if lonely and any(bases(comparison) & bases(other) for other in others):
            continue
        kept.append(comparison)
    return kept


def _perplexities(run: Record) -> dict[str, Any]:
    return {
        which: {
            name: metric for name, metric in (metrics or {}).items() if name in COMPARED.values()
        }
        for which, metrics in run.part("base").items()
    }


def _arm_order(arm: Arm) -> tuple[int, str, str]:
    settings = json.dumps(method_settings(arm.runs[0]), sort_keys=True)
    return method_order(arm.method), arm.method, settings


def method_order(name: str) -> int:
    """LoRA before what builds on it; variants behind the method they are named after."""
    for place, first in reversed(list(enumerate(METHOD_ORDER))):
        if name == first or name.startswith((f"{first}_", f"{first} ")):
            return place
    return len(METHOD_ORDER)


def _mean_loss(arm: Arm) -> float:
    first, second = (list(arm.metrics(name).values()) for name in COMPARED.values())
    metrics = first or second
    sums = [m["sum_nll"] / m["tokens"] for m in metrics if m.get("sum_nll") is not None]
    return sum(sums) / len(sums) if sums else float("inf")
