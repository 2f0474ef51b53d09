"""Perplexity by named conventions, of the run, of the extended base and of the base as it is.

Arms are compared in `blocks` and `sliding` alone. `word` and `paper` have other divisors than
tokens; they stand beside, with a column only where some record has them, and no change is computed
from them. How it is computed: `evaluation.perplexity`; which tokens count: `evaluation.windows`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hylorada.comparison.arms import Arm, Comparison
from hylorada.comparison.cells import Cell, Column, Verdict
from hylorada.comparison.picture import Picture
from hylorada.comparison.subjects import (
    Metric,
    Subject,
    all_metrics,
    asked_for_perplexity,
    some_extended,
)
from hylorada.config import EvalConfig, PerplexityConfig, RunConfig
from hylorada.errors import ConfigError
from hylorada.evaluation.attempt import Attempt
from hylorada.evaluation.measurement import (
    Lines,
    Measurement,
    Metrics,
    Shown,
    Sources,
    Text,
    held,
)
from hylorada.evaluation.portion import Cost, Portion
from hylorada.extensions import DATA_KINDS
from hylorada.process.counts import number_of
from hylorada.records.base_rows import base_label, own_window
from hylorada.records.metric_names import COMPARED, OTHERS, PERPLEXITIES
from hylorada.records.run_label import run_label
from hylorada.settings.checks import between

CONVENTIONS = {name: convention for convention, name in PERPLEXITIES.items()}
_HEADINGS = {"word": "PPL, per word", "paper": "PPL, paper's mean over paragraphs"}


@dataclass(frozen=True)
class Asked:
    """What is scored, and how.

    Attributes:
        settings: conventions, stride, how much of the split.
        window: tokens of context.
        text: the split.
        paragraphs: of the split, for the convention `paper`.
        cover: see `evaluate_perplexity`; 0 but for the base in its own window.
    """

    settings: PerplexityConfig
    window: int
    text: Text
    paragraphs: Text | None = None
    cover: int = 0


class Perplexity(Measurement):
    """exp(sum of NLL / scored tokens)."""

    name, order, title = "perplexity", 10, "perplexity"
    metrics = ("eval/",)
    switch = "eval.perplexity.conventions=[blocks]"
    of_the_text = True

    def enabled(self, asked: EvalConfig) -> bool:
        """Whether a convention is named."""
        return bool(asked.perplexity.conventions)

    def check(self, config: RunConfig) -> None:
        """The conventions, and what they need."""
        perplexity, window, kind = (
            config.eval.perplexity,
            config.length.max_length,
            config.dataset.kind,
        )
        asked = perplexity.conventions
        if "paper" in asked and "paragraphs" not in DATA_KINDS.part(kind, "KIND").units:
            raise ConfigError(
                "eval.perplexity.conventions: paper is the mean over WikiText's paragraphs, and "
                f"dataset.kind is {kind}; use dataset=wikitext2, or blocks"
            )
        whole = next((name for name in OTHERS if name in asked), None)
        if whole and perplexity.max_blocks:
            raise ConfigError(
                f"eval.perplexity.conventions: {whole} is a number of the whole split; set "
                f"eval.perplexity.max_blocks=0 or leave {whole} out"
            )
        between("eval.perplexity.stride", perplexity.stride, 0, window)
        if perplexity.stride and not {"sliding", "word"} & set(asked):
            raise ConfigError(
                f"eval.perplexity.stride={perplexity.stride} has no effect without the sliding "
                "convention; add sliding to eval.perplexity.conventions or set stride=0"
            )
        between("eval.perplexity.position_buckets", perplexity.position_buckets, 1, window)

    # --- measuring ---

    def prepare(self, sources: Sources) -> Asked:
        """The split, and its paragraphs; each convention finds something to score."""
        from hylorada.evaluation.perplexity import scored_text

        settings, text = sources.config.eval.perplexity, sources.text()
        paragraphs = sources.text("paragraphs") if "paper" in settings.conventions else None
        for convention in settings.conventions:
            scored_text(
                convention, text.documents, settings, sources.window,
                None if paragraphs is None else paragraphs.documents,
            )  # fmt: skip
        return Asked(settings, sources.window, text, paragraphs)

    def identity(self, asked: Asked) -> dict[str, Any]:
        """The text and the settings."""
        found = {"text": asked.text.sha256, "settings": dataclasses.asdict(asked.settings)}
        return found | ({"window": asked.window} if asked.cover else {})

    def in_own_window(self, asked: Asked, window: int) -> Asked:
        """The sliding convention on the text that the run's window covers."""
        by_words = [name for name in asked.settings.conventions if name == "word"]
        settings = dataclasses.replace(asked.settings, conventions=["sliding", *by_words])
        return Asked(settings, window, asked.text, cover=asked.window)

    def portion(self, asked: Asked, cost: Cost) -> Portion:
        """The longest window that there is, in the first convention."""
        from hylorada.evaluation.perplexity_portion import longest_window

        text, settings, window, share = longest_window(asked, cost)
        return Portion(Asked(settings, window, text, text), [window], share)

    def measure(self, model: Any, asked: Asked, attempt: Attempt) -> Metrics:
        """A metric for each convention."""
        from hylorada.evaluation.perplexity import Progress, evaluate_perplexity

        started = ""

        def progress(now: Progress) -> None:
            nonlocal started
            if now.convention != started:
                started = now.convention
                attempt.begin(now.convention, now.total)
            ppl = math.exp(min(now.sum_nll / now.done, 700))
            attempt.boundary(now.done, f"ppl {ppl:.3f}", now.state)

        results = evaluate_perplexity(
            model, asked.text.documents, asked.settings, asked.window,
            cover=asked.cover,
            paragraphs=None if asked.paragraphs is None else asked.paragraphs.documents,
            words=asked.text.official_words,
            chunk=attempt.chunk,
            autocast_dtype=attempt.autocast_dtype,
            ranks=attempt.ranks,
            progress=progress,
            state=attempt.done,
        )  # fmt: skip
        return {PERPLEXITIES[name]: result.to_dict() for name, result in results.items()}

    def all_anew(self, record: Mapping[str, Any], config: RunConfig, text: Text) -> bool:
        """Whether it is measured on other tokens than those of the record."""
        before = dict(record["config"]["eval"]["perplexity"])
        now = dataclasses.asdict(config.eval.perplexity)
        for settings in (before, now):
            settings.pop("conventions")
        sha256 = (record["provenance"].get("dataset_sha256") or {}).get(now["split"])
        return not (before == now and sha256 in (None, text.sha256))

    # --- the end of a run ---

    def summary(
        self, record: Mapping[str, Any], metrics: Metrics, arms: Sequence[tuple[str, Metrics]]
    ) -> list[Lines]:
        """The base twice and the run, with the change in the convention that is compared."""
        shown = [name for name in metrics if name in CONVENTIONS]
        if not shown:
            return []
        extended: Metrics = arms[0][1]
        own = own_window(record)
        first = metrics[shown[0]]
        if COMPARED["sliding"] in own and COMPARED["sliding"] not in shown:
            shown.append(COMPARED["sliding"])  # what the base's own window is measured in, always
        compared = _compared(metrics, extended)
        lines = Lines(
            f"perplexity on {record['dataset']}, {first['split']}: {first['tokens']} tokens",
            ["window", *(CONVENTIONS[n] for n in shown), *(["change"] if compared else [])],
        )

        def add(label: str, window: int, row: Metrics, change: str = "") -> None:
            cells = [_decimal(row[name]["value"]) if name in row else "-" for name in shown]
            lines.rows.append([label, str(window), *cells, *([change] if compared else [])])

        if own:
            add("base, as it is", next(iter(own.values()))["window"], own)
        add(base_label(record), record["length"], extended)
        if record["parameters"]["trainable"]:
            change = ""
            if compared:
                value, base = metrics[compared]["value"], extended[compared]["value"]
                change = f"{(value / base - 1) * 100:+.2f} %" if value and base else ""
            add(run_label(record), record["length"], metrics, change)
        return [lines]

    def tracked(self, name: str, metric: Metric) -> dict[str, float]:
        """The number, and that of each slice of the window."""
        values = {name: metric["value"]}
        for bucket in metric.get("by_position", []):
            if bucket["ppl"] is not None:
                values[f"{name}_by_position/{bucket['start']}-{bucket['end']}"] = bucket["ppl"]
        return values

    def tracked_costs(self, record: Mapping[str, Any]) -> dict[str, float]:
        """Trainable parameters per 1 % of perplexity gained on the extended base."""
        gained = params_per_percent(record)
        return {} if gained is None else {"efficiency/params_per_percent": gained}

    # --- the report ---

    def columns(
        self, report: Sequence[Comparison], table: Sequence[Comparison], reference: str
    ) -> list[Column]:
        """The compared conventions where any was asked for, the others where a record has them."""
        if not asked_for_perplexity(report):
            return []
        base = "extended base" if some_extended(table) else "base"
        return [
            *(
                Column(key, heading, interval=True, status=True, main=True)
                for key, heading in {
                    "ppl_blocks": "PPL, blocks",
                    "ppl_sliding": "PPL, sliding",
                    "change_reference": f"PPL vs {reference}, %",
                    "change_base": f"PPL vs {base}, %",
                }.items()
            ),
            *(
                Column(f"ppl_{convention}", _HEADINGS[convention])
                for convention, name in OTHERS.items()
                if any(held(comparison, name) for comparison in report)
            ),
            Column("params_per_percent", "parameters per 1 % gain", interval=True, cost=True),
        ]

    def cells(
        self, comparison: Comparison, subject: Subject, against: Arm | None
    ) -> dict[str, Cell]:
        """Pooled perplexities, and changes with intervals."""
        from hylorada.evaluation.perplexity_cells import arm_cells, base_cells

        arm = subject.arm
        return base_cells(subject) if arm is None else arm_cells(comparison, subject, arm, against)

    def notes(self, comparison: Comparison) -> list[str]:
        """One sentence for each convention measured, from the first run that has it."""
        texts = []
        for convention, name in PERPLEXITIES.items():
            metric = next(all_metrics(comparison, name), None)
            if metric is None:
                continue
            stride = f", stride {metric['stride']:,}" if metric.get("stride") else ""
            part = ""
            if metric.get("scorable_tokens", metric["tokens"]) != metric["tokens"]:
                part = f" of {metric['scorable_tokens']:,}"
            unit = "paragraph" if convention == "paper" else "document"
            texts.append(
                f"{convention}: window {metric['window']:,}{stride}; {metric['tokens']:,}{part} "
                f"tokens of {number_of(len(metric['by_document']), unit)}, {metric['split']} split"
                + _divisor(convention, metric)
                + "."
            )
        return texts

    def verdicts(self, comparison: Comparison, against: Arm | None) -> list[Verdict]:
        """Each arm against one, and the base in its own window where it is ahead of all."""
        from hylorada.evaluation.perplexity_contrasts import verdicts

        return verdicts(comparison, against)

    def explanations(self, comparisons: Sequence[Comparison], reference: str) -> list[str]:
        """What the columns mean."""
        from hylorada.evaluation.perplexity_contrasts import explanations

        return explanations(comparisons, reference)

    def figures(self, comparison: Comparison, name: str) -> list[Picture]:
        """By training time, by position, and what each component adds.

        One convention is enough: sliding holds the ends of windows only.
        """
        from hylorada.evaluation.component_picture import gain_by_component
        from hylorada.evaluation.perplexity_picture import loss_by_position, ppl_by_time

        convention = next((c for c, metric in COMPARED.items() if held(comparison, metric)), None)
        if convention is None:
            return []
        metric = COMPARED[convention]
        drawn = (
            gain_by_component(comparison, f"{name}-components"),
            loss_by_position(comparison, metric, f"{name}-loss-by-position-{convention}"),
            ppl_by_time(comparison, metric, f"{name}-ppl-by-time"),
        )
        return [each for each in drawn if each is not None]

    def figures_by_length(
        self, comparisons: Sequence[Comparison], reference: str, name: str
    ) -> list[Picture]:
        """Each arm's own perplexity, and how it differs from that of one arm."""
        from hylorada.evaluation.perplexity_by_length import change_by_length, ppl_by_length

        metric = next((m for m in COMPARED.values() if held(comparisons[0], m)), "")
        drawn = (
            ppl_by_length(comparisons, metric, f"{name}-ppl-by-length") if metric else None,
            change_by_length(comparisons, reference, f"{name}-difference-by-length"),
        )
        return [each for each in drawn if each is not None]

    def of_each_run(self) -> Sequence[Shown]:
        """Both compared conventions."""
        return [Shown(name, f"ppl_{c}", f"PPL, {c}") for c, name in COMPARED.items()]


def params_per_percent(record: Mapping[str, Any]) -> float | None:
    """Trainable parameters per 1 % of perplexity gained on the extended base.

    None without a gain, and where the interval of the gain reaches 0.
    """
    from hylorada.statistics import paired

    metrics, extended = record["metrics"], record["base"]["extended"]
    name = _compared(metrics, extended)
    if name is None:
        return None
    change = paired.paired_change({0: metrics[name]}, {0: extended[name]})
    price = paired.params_per_percent(record["parameters"]["trainable"], change)
    return price.value if isinstance(price, paired.Price) else None


def _compared(metrics: Metrics, extended: Metrics) -> str | None:
    """The perplexity that a run is compared with the extended base in."""
    return next((name for name in COMPARED.values() if name in metrics and name in extended), None)


def _decimal(value: float | None) -> str:
    return "overflow" if value is None else f"{value:.3f}"


def _divisor(convention: str, metric: Metric) -> str:
    if convention == "word":
        return f"; exp(sum of NLL / {metric['words']:,} words)"
    if convention == "paper":
        return (
            "; mean of the paragraphs' perplexities, each line of more than 100 characters scored "
            "alone: not comparable with any other column"
        )
    return ""


MEASUREMENT = Perplexity()
