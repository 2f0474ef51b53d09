"""Right answers in a table: intervals by example and seed, arms paired on the same prompts.

Records from before answers were kept by example have a mean and the deviation between seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hylorada.comparison.arms import Arm, Comparison
from hylorada.comparison.cells import Cell, Column, Verdict, with_interval
from hylorada.comparison.means import mean_cell
from hylorada.comparison.subjects import (
    Metric,
    Subject,
    agreed,
    all_metrics,
    asked,
    shown_arms,
)
from hylorada.comparison.verdict import ALPHA, p_words
from hylorada.evaluation.measurement import Shown
from hylorada.statistics.clustered import few_seeds
from hylorada.statistics.contrasts import holm
from hylorada.statistics.shares import (
    Mean,
    clustered_difference,
    clustered_share,
    difference_p,
    edges_less_middle,
    wilson_interval,
)


def credits(metrics: Sequence[Metric]) -> np.ndarray | None:
    """What each seed got for each example at each depth, [S, E, K]; None where it is not known."""
    rows = [metric.get("by_example") or [] for metric in metrics]
    if len({(len(row), len(row[0]) if row else 0) for row in rows}) != 1 or not rows[0]:
        return None
    return np.array(rows, dtype=np.float64)


def at_depth(metrics: Sequence[Metric], place: int) -> Mean:
    """The share of right answers at one depth, over seeds.

    Its interval is for the prompts at that depth, which are the same for every seed and so are
    counted once: Wilson's of one seed, that of examples and seeds of several.

    Args:
        metrics: of each seed.
        place: which of the depths.
    """
    credit_SEK = credits(metrics)
    if credit_SEK is not None and len(metrics) > 1:
        found = clustered_share(credit_SEK[:, :, place])
        if found.low is not None:
            return found
    scores = [metric["by_depth"][place] for metric in metrics]
    share, prompts = float(np.mean([s["accuracy"] for s in scores])), scores[0]["prompts"]
    return Mean(share, *wilson_interval(share * prompts, prompts))


def columns_beside(
    report: Sequence[Comparison], accuracy: Shown, scoring: str, reference: str
) -> list[Column]:
    """The difference from another arm and each depth, where answers are known by example.

    Args:
        report: what a report is of.
        accuracy: the column that they follow.
        scoring: its name.
        reference: the other arm's method.
    """
    metrics = [m for comparison in report for m in all_metrics(comparison, accuracy.metric)]
    depths = {s["depth"] for m in metrics if m.get("by_example") for s in m["by_depth"]}
    if not depths:
        return []
    versus = f"retrieval vs {reference}, {scoring}, points"
    return [
        Column(_versus(accuracy), versus, interval=True),
        *(
            Column(_at(accuracy, depth), f"at depth {depth:g}, {scoring}, %", interval=True)
            for depth in sorted(depths)
        ),
    ]


def cells(
    comparison: Comparison, subject: Subject, against: Arm | None, accuracy: Shown, gap: Shown
) -> dict[str, Cell]:
    """Those of an arm or a base: whole, against another arm, by depth, edges less middle."""
    found = _own_cells(comparison, subject, accuracy, gap)
    difference = difference_cell(comparison, subject, against, accuracy)
    if difference is not None and accuracy.key in found:
        found[_versus(accuracy)] = difference
    elif subject.arm is None:
        found[_versus(accuracy)] = Cell("-")
    return found


def _versus(accuracy: Shown) -> str:
    return accuracy.key.replace("retrieval", "retrieval_reference")


def _at(accuracy: Shown, depth: float) -> str:
    return f"{accuracy.key}_at_{depth:g}"


def _own_cells(
    comparison: Comparison, subject: Subject, accuracy: Shown, gap: Shown
) -> dict[str, Cell]:
    """The accuracy and the gap between edges and middle, of those prompts that most were asked."""
    alike = subject.alike(accuracy.metric, agreed(comparison, accuracy.metric))
    if not alike:
        other = Cell(accuracy.other)
        return {accuracy.key: other, gap.key: other} if subject.values(accuracy.metric) else {}
    trained = subject.arm is not None
    cells, credit_SEK = {}, credits([metrics[accuracy.metric] for metrics in alike])
    for shown in (accuracy, gap):
        found = [metrics[shown.metric] for metrics in alike if shown.metric in metrics]
        if not found:
            continue
        if credit_SEK is None or (shown is gap and credit_SEK.shape[2] < 3):
            cells[shown.key] = mean_cell(
                found, shown.scale, shown.digits, shown.sign, trained=trained
            )
            continue
        if shown is accuracy:
            mean = clustered_share(credit_SEK.mean(axis=-1))
        else:
            mean = clustered_difference(edges_less_middle(credit_SEK))
        remark = few_seeds(len(alike)) if trained else ""
        cells[shown.key] = _cell(mean, shown, remark)
        if shown is accuracy:
            cells |= {
                _at(accuracy, score["depth"]): _cell(at_depth(found, place), accuracy, remark)
                for place, score in enumerate(found[0]["by_depth"])
            }
    return cells


def difference_cell(
    comparison: Comparison, subject: Subject, against: Arm | None, accuracy: Shown
) -> Cell | None:
    """The accuracy less that of another arm on the same prompts under the same seeds."""
    if against is None or subject.arm is None:
        return None
    if subject.arm is against:
        return Cell("reference", 0.0)
    difference_SEK = _differences(comparison, subject.arm, against, accuracy.metric)
    if difference_SEK is None:
        return None
    mean = clustered_difference(difference_SEK.mean(axis=-1))
    shown = Shown(accuracy.metric, "", "", accuracy.scale, accuracy.digits, "+")
    return _cell(mean, shown, few_seeds(len(difference_SEK)))


def contrasts(comparison: Comparison, against: Arm, metric: str) -> list[tuple[str, float, int]]:
    """Label, p-value and number of seeds of each arm against another one."""
    found = []
    for arm in shown_arms(comparison):
        difference_SEK = None if arm is against else _differences(comparison, arm, against, metric)
        if difference_SEK is not None:
            p = difference_p(difference_SEK.mean(axis=-1))
            found.append((arm.label, p, len(difference_SEK)))
    return found


def verdicts(comparison: Comparison, against: Arm, accuracy: Shown, task: str) -> list[Verdict]:
    """A sentence for each arm against another one, asked the same; p-values by Holm over them.

    Args:
        comparison: whose arms they are.
        against: the arm that the others are compared with.
        accuracy: what is compared.
        task: its name in the sentence.
    """
    found = contrasts(comparison, against, accuracy.metric)
    adjusted = holm([p for _, p, _ in found])
    arms = {arm.label: arm for arm in shown_arms(comparison)}
    said = []
    for (label, _, seeds), p in zip(found, adjusted, strict=True):
        differences_SEK = _differences(comparison, arms[label], against, accuracy.metric)
        assert differences_SEK is not None  # there is a p-value
        mean = clustered_difference(differences_SEK.mean(axis=-1))
        points = f"{accuracy.scale * mean.value:+.{accuracy.digits}f} points"
        if mean.low is not None and mean.high is not None:
            ends = [f"{accuracy.scale * end:+.{accuracy.digits}f}" for end in (mean.low, mean.high)]
            points += f" [{', '.join(ends)}]"
        if few := few_seeds(seeds):
            kind, end = "no result", f"{few}: no result yet"
        else:
            stands = p < ALPHA and mean.value != 0
            kind = ("better" if mean.value > 0 else "worse") if stands else "none shown"
            end = f"{seeds} seeds, {p_words(p, len(found))}" + (
                "" if stands else "; no significant difference"
            )
        text = f"{comparison.words}, {task}: {label} vs {against.label} {points}, {end}."
        said.append(Verdict(text, kind))
    return said


def _differences(comparison: Comparison, arm: Arm, against: Arm, metric: str) -> np.ndarray | None:
    """Credits less those of the other arm, [S, E, K], over the seeds that both have."""
    wanted = agreed(comparison, metric)
    ours, theirs = (
        {seed: m for seed, m in each.metrics(metric).items() if asked(m) == wanted}
        for each in (arm, against)
    )
    seeds = sorted(set(ours) & set(theirs))
    together = credits([*(ours[s] for s in seeds), *(theirs[s] for s in seeds)])
    return None if together is None else together[: len(seeds)] - together[len(seeds) :]


def _cell(mean: Mean, shown: Shown, remark: str) -> Cell:
    text = shown.text(mean.value)
    if mean.low is None or mean.high is None:
        return Cell(text, shown.scale * mean.value)
    text = with_interval(text, shown.text(mean.low), shown.text(mean.high), remark)
    return Cell(text, *(shown.scale * each for each in (mean.value, mean.low, mean.high)))
