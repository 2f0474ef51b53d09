"""What more context is worth: the loss of the same targets with more and more before them.

How it is computed: `evaluation.context_gain`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hylorada.comparison.arms import Arm, Comparison
from hylorada.comparison.cells import Cell
from hylorada.comparison.picture import Picture
from hylorada.comparison.subjects import Metric, Subject, agreed, others, reference
from hylorada.config import ContextGainConfig, RunConfig
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
from hylorada.records.metric_names import GAIN
from hylorada.settings.context_lengths import fitting_contexts


@dataclass(frozen=True)
class Asked:
    """What is scored.

    Attributes:
        settings: contexts, targets and places.
        text: the split.
        split: its name.
        window: the most tokens that a model sees.
    """

    settings: ContextGainConfig
    text: Text
    split: str
    window: int


class ContextGain(Measurement):
    """The loss with the shortest context less that with the longest, nats per token."""

    name, order, title = "context_gain", 30, "context gain"
    metrics = ("context_gain/",)
    shown = (
        Shown(GAIN, "context_gain", "context gain, nats/token", sign="+", other="other targets"),
    )

    def check(self, config: RunConfig) -> None:
        """Two contexts at least that fit the window."""
        gain, window = config.eval.context_gain, config.length.max_length
        if not gain.enabled:
            return
        fitting = fitting_contexts(gain, window)
        if len(fitting) < 2:
            raise ConfigError(
                f"eval.context_gain.contexts: of {gain.contexts} with {gain.targets} targets, "
                f"{len(fitting)} fit the window of {window} tokens, and it takes two to compare; "
                "use shorter contexts or fewer targets"
            )

    def longest_text(self, config: RunConfig) -> int:
        """The two shortest contexts must fit a document."""
        gain = config.eval.context_gain
        return sorted(fitting_contexts(gain, config.length.max_length))[1] + gain.targets

    # --- measuring ---

    def prepare(self, sources: Sources) -> Asked:
        """The split, in which two contexts fit."""
        from hylorada.evaluation.context_gain import contexts_that_fit

        asked, text = sources.config.eval, sources.text()
        contexts_that_fit(text.documents, sources.window, asked.context_gain)
        return Asked(asked.context_gain, text, asked.perplexity.split, sources.window)

    def identity(self, asked: Asked) -> dict[str, Any]:
        """The text and the settings."""
        return {"text": asked.text.sha256, "context_gain": asdict(asked.settings)}

    def portion(self, asked: Asked, cost: Cost) -> Portion:
        """One place, with every context."""
        from hylorada.evaluation.context_gain import contexts_that_fit, places

        settings, documents = asked.settings, asked.text.documents
        contexts = contexts_that_fit(documents, asked.window, settings)
        count = len(places(documents, contexts[-1] + settings.targets, settings.places))
        part = dataclasses.replace(asked, settings=dataclasses.replace(settings, places=1))
        return Portion(part, [n + settings.targets for n in contexts], 1 / count)

    def measure(self, model: Any, asked: Asked, attempt: Attempt) -> Metrics:
        """``context_gain/gain``, of the longest context, and ``context_gain/nll@<context>``."""
        from hylorada.evaluation.context_gain import evaluate_context_gain

        done: list[list[float]] = attempt.done or []
        started = False

        def progress(sums: list[list[float]], total: int) -> None:
            nonlocal started
            if not started:
                attempt.begin("context gain", total, len(done))
                started = True
            attempt.boundary(len(sums), "places", lambda: sums)

        scores = evaluate_context_gain(
            model,
            asked.text.documents,
            asked.window,
            asked.settings,
            autocast_dtype=attempt.autocast_dtype,
            ranks=attempt.ranks,
            progress=progress,
            done=done,
        )
        last, targets = scores[-1], asked.settings.targets
        metrics: Metrics = {
            GAIN: {
                "value": last.gain,
                "low": last.gain_low,
                "high": last.gain_high,
                "context": last.context,
                "shortest_context": scores[0].context,
                "window": asked.window,
                "targets": targets,
                "places": last.tokens // targets,
                "split": asked.split,
                "text_sha256": asked.text.sha256,
                "by_context": [score.to_dict() for score in scores],
                "by_document": last.by_document,
            }
        }
        for score in scores:
            metrics[f"context_gain/nll@{score.context}"] = {
                "value": score.sum_nll / score.tokens,
                "sum_nll": score.sum_nll,
                "tokens": score.tokens,
                "context": score.context,
            }
        return metrics

    # --- the end of a run ---

    def summary(
        self, record: Mapping[str, Any], metrics: Metrics, arms: Sequence[tuple[str, Metrics]]
    ) -> list[Lines]:
        """The loss by context."""
        if GAIN not in metrics:
            return []
        whole = metrics[GAIN]
        contexts = [score["context"] for score in whole["by_context"]]
        lines = Lines(
            f"loss of the same {whole['by_context'][0]['tokens']} tokens by context before them, "
            "nats per token",
            [*map(str, contexts), "gain"],
        )
        for label, arm in arms:
            found = arm.get(GAIN)
            if found and [score["context"] for score in found["by_context"]] == contexts:
                cells = [f"{s['sum_nll'] / s['tokens']:.3f}" for s in found["by_context"]]
                lines.rows.append([label, *cells, f"{found['value']:+.3f}"])
        return [lines]

    # --- the report ---

    def cells(
        self, comparison: Comparison, subject: Subject, against: Arm | None
    ) -> dict[str, Cell]:
        """The mean gain, clustered by document and by seed where the records know documents."""
        from hylorada.comparison.means import clustered_cell

        (gain,) = self.shown
        cells = super().cells(comparison, subject, against)
        alike = subject.alike(GAIN, agreed(comparison, GAIN))
        documents = [metrics[GAIN].get("by_document") or [] for metrics in alike]
        weights = [[(d["name"], d["places"]) for d in each] for each in documents]
        if weights and weights[0] and all(each == weights[0] for each in weights):
            cells[gain.key] = clustered_cell(
                [[d["places"] * d["gain"] for d in each] for each in documents],
                [places for _, places in weights[0]],
                gain.digits, gain.sign, trained=subject.arm is not None,
            )  # fmt: skip
        return cells

    def explanations(self, comparisons: Sequence[Comparison], reference: str) -> list[str]:
        """What the interval is of."""
        if not any(held(comparison, GAIN) for comparison in comparisons):
            return []
        return [
            "Context gain: [brackets] are 95 % confidence intervals, clustered by document and by "
            "seed, given for at least three documents or three seeds."
        ]

    def notes(self, comparison: Comparison) -> list[str]:
        """What was scored, and who was asked otherwise."""
        metric = reference(comparison, GAIN)
        if metric is None:
            return []
        notes = [f"context gain: {_targets(metric)}."]
        asked = [
            f"{label}: {other['value']:+.3f} ({_targets(other)})"
            for label, other in others(comparison, GAIN)
        ]
        if asked:
            notes.append(
                "context gain, on other targets or text and therefore not compared: "
                f"{'; '.join(asked)}."
            )
        return notes

    def figures(self, comparison: Comparison, name: str) -> list[Picture]:
        """The loss by context."""
        from hylorada.evaluation.context_gain_picture import loss_by_context

        drawn = loss_by_context(comparison, f"{name}-context-gain")
        return [] if drawn is None else [drawn]


def _targets(metric: Metric) -> str:
    return (
        f"loss with {metric['shortest_context']:,} tokens of context minus loss with "
        f"{metric['context']:,}, on the same {metric['places']} x {metric['targets']} tokens, "
        f"{metric['split']} split"
    )


MEASUREMENT = ContextGain()
