"""Which runs belong together: seeds of one arm, arms of one comparison.

Two runs are compared only if everything but the method and the seed is equal: the same base, text,
length, training budget, learning rate and evaluation. What cannot change a result to speak of
(where files lie, how the batch is split into micro-batches, how often is logged) is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hylorada.report.collect import Problem, Record
from hylorada.report.names import METRICS

METHOD_ORDER = ("baseline", "lora", "dora", "rslora", "longlora", "hylorada")
_NOT_COMPARED = (
    "method", "seed", "output_root", "experiment", "group", "resume", "track", "threads",
    "integrity", "length.name", "length.micro_batch_size", "length.gradient_accumulation_steps",
    "train.name", "train.micro_batch_size", "train.gradient_accumulation_steps",
    "train.save_every", "train.keep_checkpoints", "train.log_every", "train.eval_every",
    "train.loss_chunk", "train.gradient_checkpointing", "train.max_nonfinite_steps",
    "eval.name", "eval.perplexity.batch_size", "eval.perplexity.position_buckets",
    # Each of these metrics says by itself what was asked, and `subjects` compares only answers to
    # the same; perplexity does not depend on them.
    "eval.lost_in_middle", "eval.context_gain", "eval.harness",
    "dataset.cache_dir", "integrity.enabled",
)  # fmt: skip


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
    """

    model: str
    dataset: str
    length: int
    label: str
    arms: list[Arm] = field(default_factory=list)

    def reference(self, method: str) -> Arm | None:
        """The arm to compare with; of several of that name the one with the lowest perplexity."""
        candidates = [arm for arm in self.arms if arm.method == method and arm.ok]
        return min(candidates, key=_mean_loss, default=None)


def compare(records: Sequence[Record]) -> tuple[list[Comparison], list[Problem]]:
    """Group records into comparisons and arms.

    Returns:
        Comparisons by model, data set and length; the runs left out because another run of the same
        arm has the same seed.
    """
    comparisons, problems = [], []
    for same_setting in _grouped(records, _setting_key):
        first = same_setting[0].data
        comparison = Comparison(first["model"], first["dataset"], first["length"], "")
        for same_method in _grouped(same_setting, _method_key):
            by_seed: dict[int, Record] = {}
            for run in sorted(same_method, key=lambda r: (not r.ok, str(r.path))):
                if run.seed in by_seed:
                    reason = f"the same method and seed as {by_seed[run.seed].path}, which is used"
                    problems.append(Problem(run.path / "result.json", reason))
                else:
                    by_seed[run.seed] = run
            name = same_method[0].data["method"]
            comparison.arms.append(Arm(name, name, [by_seed[seed] for seed in sorted(by_seed)]))
        comparison.arms.sort(key=_arm_order)
        _label_arms(comparison.arms)
        comparisons.append(comparison)
    comparisons.sort(key=lambda c: (c.model, c.dataset, c.length, _setting_key(c.arms[0].runs[0])))
    comparisons = _without_lonely_baselines(comparisons)
    _label_comparisons(comparisons)
    return comparisons, problems


def _grouped(records: Iterable[Record], key: Any) -> list[list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return list(groups.values())


def _setting_key(record: Record) -> str:
    return json.dumps(setting(record), sort_keys=True)


def _method_key(record: Record) -> str:
    # The name alone decides nothing: a method is its settings.
    return json.dumps([record.data["method"], record.data["config"].get("method")], sort_keys=True)


def setting(record: Record) -> dict[str, Any]:
    """The settings that must be equal in a comparison, flat: `train.lr` -> 0.0002."""
    config = record.data["config"]
    train = config.get("train") or {}
    left_out: tuple[str, ...] = _NOT_COMPARED
    if train.get("task") != "retrieval":
        left_out += ("train.retrieval",)  # without effect; otherwise it is the training data
    flat = {
        key: value
        for key, value in _flat(config).items()
        if not any(key == name or key.startswith(f"{name}.") for name in left_out)
    }
    micro, steps = train.get("micro_batch_size"), train.get("gradient_accumulation_steps")
    if isinstance(micro, int) and isinstance(steps, int):
        flat["sequences in a step"] = micro * steps
    # Names stand for records without a full config.
    for name in ("model", "dataset", "length"):
        flat[name] = record.data[name]
    return flat


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _differences(trees: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each tree the values of the keys that are not equal in all, as text."""
    keys = sorted({key for tree in trees for key in tree})
    differing = [key for key in keys if len({json.dumps(tree.get(key)) for tree in trees}) > 1]
    return [", ".join(f"{key}={tree.get(key)}" for key in differing) for tree in trees]


def _label_arms(arms: Sequence[Arm]) -> None:
    for name in {arm.method for arm in arms}:
        same = [arm for arm in arms if arm.method == name]
        if len(same) > 1:
            trees = [_flat(arm.runs[0].data["config"].get("method") or {}) for arm in same]
            for arm, text in zip(same, _differences(trees), strict=True):
                arm.label = f"{name} ({text})"


def _label_comparisons(comparisons: Sequence[Comparison]) -> None:
    groups: dict[tuple[str, str, int], list[Comparison]] = {}
    for comparison in comparisons:
        key = (comparison.model, comparison.dataset, comparison.length)
        groups.setdefault(key, []).append(comparison)
    for same in groups.values():
        if len(same) > 1:
            trees = [setting(comparison.arms[0].runs[0]) for comparison in same]
            for comparison, text in zip(same, _differences(trees), strict=True):
                comparison.label = text


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
            name: metric for name, metric in (metrics or {}).items() if name in METRICS.values()
        }
        for which, metrics in run.part("base").items()
    }


def _arm_order(arm: Arm) -> tuple[int, str, str]:
    """LoRA before what builds on it; variants behind the method they are named after."""
    for place, name in reversed(list(enumerate(METHOD_ORDER))):
        if arm.method == name or arm.method.startswith(f"{name}_"):
            return place, arm.method, _method_key(arm.runs[0])
    return len(METHOD_ORDER), arm.method, _method_key(arm.runs[0])


def _mean_loss(arm: Arm) -> float:
    first, second = (list(arm.metrics(name).values()) for name in METRICS.values())
    metrics = first or second
    sums = [m["sum_nll"] / m["tokens"] for m in metrics if m.get("sum_nll") is not None]
    return sum(sums) / len(sums) if sums else float("inf")
