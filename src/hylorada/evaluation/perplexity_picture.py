"""Loss by position and perplexity by training time, drawn from the records of one comparison."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from hylorada.comparison.arms import Comparison
from hylorada.comparison.collect import Record
from hylorada.comparison.drawing import (
    BASE,
    base_style,
    figure_and_axes,
    finish,
    mean_and_range,
    method_style,
    picture,
    where,
)
from hylorada.comparison.picture import Picture
from hylorada.comparison.subjects import bases, shown_arms
from hylorada.records.metric_names import COMPARED


def loss_by_position(comparison: Comparison, metric: str, name: str) -> Picture | None:
    """NLL per token against the tokens of context, one line for each arm and the base.

    The band is the range between seeds. The base in its own window, whose context is always short,
    is a level line, the mean over its window.
    """
    lines = [
        _Line(base.label, base_style(i), values)
        for i, base in enumerate(bases(comparison, "extended"))
        if (values := base.values(metric))
    ]
    for arm in comparison.arms:
        measured = arm.metrics(metric)
        if measured and arm.method != "baseline":
            lines.append(_Line(arm.label, method_style(arm, comparison), list(measured.values())))
    lines = [line for line in lines if line.rows_SK.size]
    if not lines:
        return None
    some = lines[-1].metrics[0]
    with figure_and_axes() as (figure, axes):
        for line in lines:
            mean_and_range(axes, line.x_K, line.rows_SK, label=line.label, **line.style)
        own = next(
            (
                m
                for base in bases(comparison, "own_window")
                for m in base.values(COMPARED["sliding"])
            ),
            None,
        )
        if own and own.get("sum_nll") is not None:
            axes.axhline(
                own["sum_nll"] / own["tokens"], color=BASE, linestyle=(0, (1, 1.5)), linewidth=1.2,
                label=f"base, own window {own['window']:,} (sliding)", zorder=1,
            )  # fmt: skip
        axes.set_xlim(0, some["window"])
        edges = [0, *(bucket["end"] for bucket in some["by_position"])]
        axes.set_xticks(edges[:: max(1, len(edges) // 4)])
        axes.set_xlabel("context before the token, tokens")
        axes.set_ylabel("loss, nats per token")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        seeds = max(len(line.metrics) for line in lines)
        over = "mean over seeds; bands: range between seeds" if seeds > 1 else "one seed"
        caption = (
            f"Loss by position, {where(comparison)}: {some['convention']} convention, window "
            f"{some['window']:,}, {some['split']} split; a point at the centre of each slice of "
            f"the window, {over}. Lower is better."
        )
        finish(figure, axes, "Loss by position in the window", comparison)
        return picture(figure, name, caption)


@dataclass
class _Line:
    """One line of `loss_by_position`: runs x slices of the window that were scored in all."""

    label: str
    style: dict[str, Any]
    metrics: list[dict[str, Any]]

    def __post_init__(self) -> None:
        rows = [m.get("by_position") or [] for m in self.metrics]
        same = len({tuple((b["start"], b["end"]) for b in row) for row in rows}) == 1
        # A slice without tokens, or with a loss that overflowed, is not a point.
        keep = [
            i
            for i in range(len(rows[0]) if same else 0)
            if all(row[i]["tokens"] and row[i]["sum_nll"] is not None for row in rows)
        ]
        self.x_K = np.array([(rows[0][i]["start"] + rows[0][i]["end"]) / 2 for i in keep])
        self.rows_SK = np.array([[r[i]["sum_nll"] / r[i]["tokens"] for i in keep] for r in rows])


def ppl_by_time(comparison: Comparison, metric: str, name: str) -> Picture | None:
    """Perplexity against seconds of training.

    Of the validation split while it trained, where that was measured and timed; otherwise of the
    evaluated split at the end, a point for each arm with the ranges of its seeds.
    """
    curves = {arm.label: [_validation(run) for run in arm.ok] for arm in shown_arms(comparison)}
    if any(len(curve[0]) > 1 for found in curves.values() for curve in found):
        return _curves(comparison, curves, name)
    with figure_and_axes() as (figure, axes):
        drawn = 0
        for arm in shown_arms(comparison):
            timed = [(run, s) for run in arm.ok if (s := run.part("training").get("seconds"))]
            points = [(s, m["value"]) for run, s in timed if (m := run.metric(metric))]
            points = [(s, ppl) for s, ppl in points if ppl is not None]
            if not points:
                continue
            x_S, y_S = np.array(points).T
            x, y = np.median(x_S), y_S.mean()
            style = {**method_style(arm, comparison), "linestyle": ""}
            x_ends, y_ends = (
                [[v - v_S.min()], [v_S.max() - v]] if len(v_S) > 1 else None
                for v, v_S in ((x, x_S), (y, y_S))
            )
            axes.errorbar(
                [x], [y], xerr=x_ends, yerr=y_ends, capsize=2.5, elinewidth=1, label=arm.label,
                **style,
            )  # fmt: skip
            drawn += 1
        if drawn < 2:
            return None
        axes.margins(0.2)
        axes.set_xlim(left=0)
        convention = next(key for key, value in COMPARED.items() if value == metric)
        axes.set_xlabel("training time, seconds")
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.set_ylabel(f"PPL, {convention}")
        seeds = max(len(arm.ok) for arm in comparison.arms)
        caption = (
            f"Perplexity by training time, {where(comparison)}: {convention} convention, at the "
            "end of training; further left is faster, lower is better"
            + (
                "; median time and mean PPL of the seeds, bars: their range."
                if seeds > 1
                else "; one seed."
            )
        )
        finish(figure, axes, "Perplexity by training time", comparison)
        return picture(figure, name, caption)


def _curves(
    comparison: Comparison, curves: dict[str, list[tuple[list[float], list[float]]]], name: str
) -> Picture:
    with figure_and_axes() as (figure, axes):
        for arm in shown_arms(comparison):
            found = [curve for curve in curves[arm.label] if len(curve[0]) > 1]
            alike = [curve for curve in found if len(curve[0]) == len(found[0][0])]
            if alike:
                seconds_N = np.mean([seconds for seconds, _ in alike], axis=0)
                ppl_SN = np.array([ppl for _, ppl in alike])
                style = method_style(arm, comparison)
                mean_and_range(axes, seconds_N, ppl_SN, label=arm.label, **style)
        axes.set_xlim(left=0)
        axes.set_xlabel("training time, seconds")
        axes.set_ylabel("PPL, validation, blocks")
        several = any(len(arm.ok) > 1 for arm in comparison.arms)
        caption = (
            f"Perplexity of the validation split by training time, {where(comparison)}; lower is "
            "better"
            + ("; means of the seeds, bands: range between them." if several else "; one seed.")
        )
        finish(figure, axes, "Perplexity by training time", comparison)
        return picture(figure, name, caption)


def _validation(run: Record) -> tuple[list[float], list[float]]:
    """Seconds of training and perplexity of the validation split at each time it was measured."""
    # A continued run has some steps twice: the later line is of the attempt that counted.
    by_step = {line["step"]: line["seconds"] for line in run.timing if "seconds" in line}
    steps = sorted(by_step)
    passed = dict(zip(steps, accumulate(by_step[step] for step in steps), strict=True))
    points = [
        (passed[line["step"]], line["validation/ppl"])
        for line in run.history
        if line.get("validation/ppl") is not None and line.get("step") in passed
    ]
    return [x for x, _ in points], [y for _, y in points]
