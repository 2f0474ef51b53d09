"""Retrieval: right answers by the depth at which what is asked for lies (the U-curve).

Every arm is asked the same prompts, made or read once. How answers are scored:
`evaluation.lost_in_middle`; what is asked: `evaluation.retrieval_prompts`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hylorada.comparison.arms import Arm, Comparison
from hylorada.comparison.cells import Cell, Column, Verdict
from hylorada.comparison.picture import Picture
from hylorada.comparison.subjects import Metric, Subject, others, reference
from hylorada.config import LostInMiddleConfig, RunConfig
from hylorada.errors import ConfigError, DataError
from hylorada.evaluation.attempt import Attempt
from hylorada.evaluation.measurement import (
    Lines,
    Measurement,
    Metrics,
    Shown,
    Sources,
    held,
)
from hylorada.evaluation.portion import Cost, Portion
from hylorada.process.counts import number_of
from hylorada.records.metric_names import SCORINGS, SUFFIXES

_SCORES = ("depth", "prompts", "accuracy", "low", "high")
SCORING_METRICS = tuple(f"lim/accuracy{suffix}" for suffix in SCORINGS)
COLUMNS = ["model", "scoring", *_SCORES, "chance"]


@dataclass(frozen=True)
class Asked:
    """The prompts, and how they are asked.

    Attributes:
        settings: how answers are scored.
        prompts: a `prompt_set.Prompts`, the same for every model with this tokenizer.
        tokenizer: of the base.
        window: tokens of a prompt and its answer.
    """

    settings: LostInMiddleConfig
    prompts: Any
    tokenizer: Any
    window: int


class LostInMiddle(Measurement):
    """Accuracy by depth."""

    name, order, title = "lost_in_middle", 20, "retrieval"
    metrics = ("lim/",)
    shown = tuple(
        shown
        for suffix, scoring in SCORINGS.items()
        for shown in (
            Shown(
                f"lim/accuracy{suffix}", f"retrieval{suffix}", f"retrieval accuracy, {scoring}, %",
                100, 1, other="other prompts",
            ),
            Shown(
                f"lim/middle_gap{suffix}", f"middle_gap{suffix}",
                f"edges minus middle, {scoring}, points", 100, 1, "+",
            ),
        )
    )  # fmt: skip

    def check(self, config: RunConfig) -> None:
        """Prompts that can be made or read, and asked."""
        check(config.eval.lost_in_middle)

    def check_with_tokenizer(self, config: RunConfig, tokenizer: Any) -> None:
        """The prompts; of these, since tokens take time, the longest texts."""
        from hylorada.evaluation.lost_in_middle import encode_prompts
        from hylorada.evaluation.prompt_set import make_prompts

        settings, window = config.eval.lost_in_middle, config.length.max_length
        made = make_prompts(settings, tokenizer, window)
        longest = sorted(made.prompts, key=lambda prompt: len(prompt.text))[-2:]
        encode_prompts(tokenizer, longest, window, settings.scorings, made.max_new_tokens)

    # --- measuring ---

    def prepare(self, sources: Sources) -> Asked:
        """The prompts, each of which fits the window."""
        from hylorada.evaluation.lost_in_middle import encode_prompts
        from hylorada.evaluation.prompt_set import make_prompts

        settings = sources.config.eval.lost_in_middle
        prompts = make_prompts(settings, sources.tokenizer, sources.window)
        encode_prompts(
            sources.tokenizer, prompts.prompts, sources.window, settings.scorings,
            prompts.max_new_tokens,
        )  # fmt: skip
        return Asked(settings, prompts, sources.tokenizer, sources.window)

    def identity(self, asked: Asked) -> dict[str, Any]:
        """The prompts and the scorings."""
        prompts = asked.prompts
        return {"prompts": [prompts.sha256, asked.settings.scorings, prompts.max_new_tokens]}

    def portion(self, asked: Asked, cost: Cost) -> Portion:
        """One prompt: all have about as many tokens."""
        from hylorada.evaluation.lost_in_middle import encode_prompts

        prompts, settings = asked.prompts, asked.settings
        one = dataclasses.replace(prompts, prompts=prompts.prompts[:1])
        (encoded,) = encode_prompts(
            asked.tokenizer, one.prompts, asked.window, settings.scorings, prompts.max_new_tokens
        )
        tokens = len(encoded.ids) + sum(map(len, encoded.candidates))
        part = dataclasses.replace(asked, prompts=one)
        return Portion(part, [tokens], 1 / len(prompts.prompts))

    def measure(self, model: Any, asked: Asked, attempt: Attempt) -> Metrics:
        """``lim/accuracy`` with all there is to know, ``lim/accuracy@<depth>``, ``lim/middle_gap``.

        Names of the generated scoring end in ``_generated``, before the ``@``.
        """
        from hylorada.evaluation.lost_in_middle import Answer, evaluate_retrieval

        prompts, settings = asked.prompts, asked.settings
        done = [Answer(**answer) for answer in attempt.done or ()]
        attempt.begin("retrieval", len(prompts.prompts), len(done))

        def progress(answers: list[Answer], total: int) -> None:
            values = [a.generated if a.ranked is None else a.ranked for a in answers]
            right = sum(value for value in values if value is not None) / len(values)
            attempt.boundary(
                len(answers), f"right {right:.1%}", lambda: [asdict(answer) for answer in answers]
            )

        results = evaluate_retrieval(
            model,
            asked.tokenizer,
            prompts.prompts,
            asked.window,
            scorings=settings.scorings,
            max_new_tokens=prompts.max_new_tokens,
            autocast_dtype=attempt.autocast_dtype,
            ranks=attempt.ranks,
            progress=progress,
            done=done,
        )
        metrics: Metrics = {}
        for scoring, result in results.items():
            suffix = SUFFIXES[scoring]
            metrics[f"lim/accuracy{suffix}"] = {
                **result.to_dict(),
                "prompts": len(prompts.prompts),
                "form": settings.form,
                "source": prompts.source,
                "items": prompts.items,
                "key_style": settings.key_style if prompts.source == "generated" else None,
                "prompts_sha256": prompts.sha256,
                "note": prompts.note,
            }
            for score in result.by_depth:
                metrics[f"lim/accuracy{suffix}@{score.depth:g}"] = {
                    "value": score.accuracy,
                    "low": score.low,
                    "high": score.high,
                    "prompts": score.prompts,
                    "depth": score.depth,
                    "chance": result.chance,
                }
            if result.middle_gap is not None:
                metrics[f"lim/middle_gap{suffix}"] = {
                    "value": result.middle_gap,
                    "low": result.middle_gap_low,
                    "high": result.middle_gap_high,
                }
        return metrics

    # --- the end of a run ---

    def summary(
        self, record: Mapping[str, Any], metrics: Metrics, arms: Sequence[tuple[str, Metrics]]
    ) -> list[Lines]:
        """Right answers by depth, a table for each scoring."""
        tables = []
        for suffix in SCORINGS:
            name = f"lim/accuracy{suffix}"
            if name not in metrics:
                continue
            whole = metrics[name]
            low, high = whole["prompt_tokens"]
            lines = Lines(
                f"right answers by depth, {whole['scoring']} ({whole['form']}): "
                f"{number_of(whole['prompts'], 'prompt')} of {low} to {high} tokens, chance "
                f"{whole['chance']:.1%}",
                [*(f"{s['depth']:g}" for s in whole["by_depth"]), "all", "edges -\nmiddle"],
            )
            for label, arm in arms:
                found = arm.get(name)
                if found is None or found["prompts_sha256"] != whole["prompts_sha256"]:
                    continue
                gap = arm.get(f"lim/middle_gap{suffix}")
                cells = [f"{score['accuracy']:.1%}" for score in found["by_depth"]]
                edges = f"{gap['value']:+.1%}" if gap else ""
                lines.rows.append([label, *cells, f"{found['value']:.1%}", edges])
            tables.append(lines)
        return tables

    def tracked_tables(
        self, arms: Sequence[tuple[str, Metrics]]
    ) -> dict[str, tuple[list[str], list[list[Any]]]]:
        """A row of `COLUMNS` for each model, scoring and depth."""
        rows = []
        for label, metrics in arms:
            for suffix in SCORINGS:
                whole = metrics.get(f"lim/accuracy{suffix}", {})
                for score in whole.get("by_depth", []):
                    values = [score[key] for key in _SCORES]
                    rows.append([label, whole["scoring"], *values, whole["chance"]])
        return {"lim/by_depth": (COLUMNS, rows)} if rows else {}

    def tracked_pictures(self, comparison: Comparison) -> dict[str, Picture]:
        """The U-curve of each scoring."""
        return {f"lim/curve{suffix}": drawn for suffix, drawn in self._curves(comparison, "lim")}

    # --- the report ---

    def columns(
        self, report: Sequence[Comparison], table: Sequence[Comparison], reference: str
    ) -> list[Column]:
        """As by default; with answers by example also each depth, and what is against an arm."""
        from hylorada.evaluation.retrieval_cells import columns_beside

        columns = super().columns(report, table, reference)
        for accuracy, scoring in zip(self.shown[::2], SCORINGS.values(), strict=True):
            found = columns_beside(report, accuracy, scoring, reference)
            place = next((i for i, c in enumerate(columns, 1) if c.key == accuracy.key), 0)
            columns[place:place] = found
        return columns

    def cells(
        self, comparison: Comparison, subject: Subject, against: Arm | None
    ) -> dict[str, Cell]:
        """Accuracy, also by depth, its difference from another arm, the edges less the middle."""
        from hylorada.evaluation.retrieval_cells import cells

        found: dict[str, Cell] = {}
        for accuracy, gap in zip(self.shown[::2], self.shown[1::2], strict=True):
            found |= cells(comparison, subject, against, accuracy, gap)
        return found

    def verdicts(self, comparison: Comparison, against: Arm | None) -> list[Verdict]:
        """More or fewer right answers than another arm, by each scoring."""
        from hylorada.evaluation.retrieval_cells import verdicts

        return [
            each
            for accuracy, scoring in zip(self.shown[::2], SCORINGS.values(), strict=True)
            if against is not None
            for each in verdicts(comparison, against, accuracy, f"retrieval ({scoring})")
        ]

    def explanations(self, comparisons: Sequence[Comparison], reference: str) -> list[str]:
        """What the intervals are of, and the family of arms against one."""
        from hylorada.comparison.p_values import p_values_by_holm
        from hylorada.evaluation.retrieval_cells import contrasts

        if not any(held(comparison, *SCORING_METRICS) for comparison in comparisons):
            return []
        notes = [
            "Retrieval: [brackets] are 95 % confidence intervals, clustered by example (each is "
            "asked at every depth) and by seed; methods are compared on the same prompts, paired "
            "by example. p-values with one seed: sign-flip permutation test over examples "
            "(McNemar's exact test where each is asked once)."
        ]
        for comparison in comparisons:
            against = comparison.reference(reference)
            for suffix, scoring in SCORINGS.items():
                known = (
                    contrasts(comparison, against, f"lim/accuracy{suffix}")
                    if against is not None
                    else []
                )
                if known:
                    notes.append(
                        f"{comparison.heading}: retrieval, {scoring}, vs {reference}, "
                        f"Holm-adjusted p-values ({number_of(len(known), 'comparison')}): "
                        f"{p_values_by_holm(known)}."
                    )
        return notes

    def notes(self, comparison: Comparison) -> list[str]:
        """What was asked, and who was asked otherwise."""
        notes = []
        for suffix, scoring in SCORINGS.items():
            name = f"lim/accuracy{suffix}"
            m = reference(comparison, name)
            if m is None:
                continue
            notes.append(
                f"retrieval, {scoring}: {_described(m)}, at {len(m['by_depth'])} depths; chance "
                f"{m['chance']:.1%}. Edges minus middle is positive when accuracy is lower in the "
                "middle." + (f" Note: {m['note']}." if m.get("note") else "")
            )
            asked = [
                f"{label}: {100 * other['value']:.1f} ({_described(other)})"
                for label, other in others(comparison, name)
            ]
            if asked:
                notes.append(
                    f"retrieval, {scoring}, on other prompts and therefore not compared: "
                    f"{'; '.join(asked)}."
                )
        return notes

    def figures(self, comparison: Comparison, name: str) -> list[Picture]:
        """The U-curve of each scoring."""
        return [drawn for _, drawn in self._curves(comparison, f"{name}-retrieval")]

    def _curves(self, comparison: Comparison, name: str) -> list[tuple[str, Picture]]:
        from hylorada.evaluation.retrieval_picture import accuracy_by_depth

        drawn = [
            (suffix, accuracy_by_depth(comparison, suffix, f"{name}-{scoring}"))
            for suffix, scoring in SCORINGS.items()
        ]
        return [(suffix, each) for suffix, each in drawn if each is not None]


def check(lim: LostInMiddleConfig) -> None:
    """Refuse prompts that cannot be made or read, or not be asked that way."""
    key = "eval.lost_in_middle"
    if not lim.enabled:
        return
    if not lim.scorings:
        raise ConfigError(f"{key}.scorings is empty; name ranked, generated or both")
    if not lim.depths or len(set(lim.depths)) < len(lim.depths):
        raise ConfigError(f"{key}.depths is {lim.depths}; name at least one, each once")
    if lim.max_new_tokens and "generated" not in lim.scorings:
        raise ConfigError(
            f"{key}.max_new_tokens={lim.max_new_tokens} has no effect without the generated "
            "scoring; add generated to scorings or set it to 0"
        )
    if lim.key_style != "uuid" and (lim.form != "kv" or lim.path):
        raise ConfigError(
            f"{key}.key_style={lim.key_style} has an effect on generated pairs alone (form=kv "
            "without a path); leave it at uuid"
        )
    if lim.path and not Path(lim.path).expanduser().is_file():
        raise DataError(f"{key}.path: there is no file {lim.path}; give one in the published form")
    if lim.form == "passkey" and lim.path:
        raise ConfigError(f"{key}.path has no effect with form=passkey, which is generated")
    if lim.form == "kv" and lim.path and (lim.items or lim.seed):
        name = "items" if lim.items else "seed"
        raise ConfigError(
            f"{key}.{name} has no effect with a path: the file says which pairs; set it to 0"
        )
    if lim.form == "kv" and lim.items == 1:
        raise ConfigError(f"{key}.items is 1; it must be 2 or more, or 0 for as many as fit")
    if lim.form == "nq":
        if not lim.path:
            raise ConfigError(f"{key}.path is empty; form=nq needs the published oracle file")
        if lim.items < 2:
            raise ConfigError(
                f"{key}.items is {lim.items}; form=nq needs the documents of a prompt, as in 10"
            )
        if "ranked" in lim.scorings:
            raise ConfigError(
                f"{key}.scorings: answers of form=nq have no candidates to rank; set [generated]"
            )


def _described(metric: Metric) -> str:
    low, high = metric["prompt_tokens"]
    style = f", {metric['key_style']} keys" if metric.get("key_style") else ""
    return (
        f"{metric['form']} ({metric['source']}{style}), {number_of(metric['prompts'], 'prompt')} "
        f"of {low:,} to {high:,} tokens with {number_of(metric['items'], 'item')}"
    )


MEASUREMENT = LostInMiddle()
