"""What long context costs in a short one: the perplexity of every model in a short window.

The window is the length that the base was trained on, where the run's is longer; otherwise half of
the run's window, at most 1,024 tokens. The text is that of the perplexity, by the convention
`blocks`, and every model is compared with the base as it was loaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hylorada.comparison.arms import Arm, Comparison
from hylorada.comparison.cells import Cell, Column
from hylorada.comparison.collect import Record
from hylorada.comparison.subjects import Metric, Subject, all_metrics
from hylorada.config import EvalConfig, PerplexityConfig
from hylorada.evaluation.attempt import Attempt
from hylorada.evaluation.measurement import Lines, Measurement, Metrics, Sources, Text, held
from hylorada.evaluation.portion import Cost, Portion
from hylorada.process.counts import number_of
from hylorada.records.base_rows import EXTENDED, base_label, own_window
from hylorada.records.run_label import run_label

METRIC = "short_context/ppl"
_MOST = 1024  # tokens, where the run's window is within the trained length
_KEY = "short_context"


@dataclass(frozen=True)
class Asked:
    """What is scored.

    Attributes:
        settings: of a perplexity: the convention `blocks`, and so many of them.
        window: tokens of context.
        text: the split.
    """

    settings: PerplexityConfig
    window: int
    text: Text


class ShortContext(Measurement):
    """exp(sum of NLL / scored tokens) in a window in which the base needs no extension."""

    name, order, title = "short_context", 15, "perplexity in a short window"
    metrics = ("short_context/",)
    switch = "eval.perplexity.conventions=[blocks]"

    def enabled(self, asked: EvalConfig) -> bool:
        """Whether windows are asked for, and perplexity is measured in blocks at all."""
        return asked.short_context.max_blocks > 0 and "blocks" in asked.perplexity.conventions

    # --- measuring ---

    def prepare(self, sources: Sources) -> Asked:
        """The split of the perplexity, in short windows."""
        from hylorada.evaluation.perplexity import scored_text

        asked, text = sources.config.eval, sources.text()
        settings = dataclasses.replace(
            asked.perplexity,
            conventions=["blocks"], stride=0, max_tokens=0,
            max_blocks=asked.short_context.max_blocks,
        )  # fmt: skip
        trained, run = sources.trained_length, sources.window
        window = trained if trained < run else max(1, min(_MOST, run // 2))
        settings.position_buckets = min(settings.position_buckets, window)
        scored_text("blocks", text.documents, settings, window)
        return Asked(settings, window, text)

    def identity(self, asked: Asked) -> dict[str, Any]:
        """The text, the window and the settings."""
        settings = dataclasses.asdict(asked.settings)
        return {"short": asked.window, "text": asked.text.sha256, "settings": settings}

    def in_own_window(self, asked: Asked, window: int) -> Asked:
        """The same: it is the base's own window."""
        return asked

    def portion(self, asked: Asked, cost: Cost) -> Portion:
        """A window, as of the perplexity."""
        from hylorada.evaluation.measurements import perplexity

        alike = perplexity.Asked(asked.settings, asked.window, asked.text)
        found = perplexity.MEASUREMENT.portion(alike, cost)
        part = found.asked
        return Portion(Asked(part.settings, part.window, part.text), found.passes, found.share)

    def measure(self, model: Any, asked: Asked, attempt: Attempt) -> Metrics:
        """``short_context/ppl``."""
        from hylorada.evaluation.perplexity import Progress, evaluate_perplexity

        started = False

        def progress(now: Progress) -> None:
            nonlocal started
            if not started:
                attempt.begin(f"windows of {asked.window}", now.total)
                started = True
            attempt.boundary(now.done, "", now.state)

        found = evaluate_perplexity(
            model,
            asked.text.documents,
            asked.settings,
            asked.window,
            chunk=attempt.chunk,
            autocast_dtype=attempt.autocast_dtype,
            ranks=attempt.ranks,
            progress=progress,
            state=attempt.done,
        )
        return {METRIC: {**found["blocks"].to_dict(), "text_sha256": asked.text.sha256}}

    # --- the end of a run ---

    def summary(
        self, record: Mapping[str, Any], metrics: Metrics, arms: Sequence[tuple[str, Metrics]]
    ) -> list[Lines]:
        """The base as it is, the base extended and the run, with the change from the first."""
        from hylorada.evaluation.perplexity_cells import change_cell
        from hylorada.statistics.paired import paired_change

        if METRIC not in metrics:
            return []
        first = metrics[METRIC]
        own, rows = own_window(record).get(METRIC), [(n, m.get(METRIC)) for n, m in arms]
        lines = Lines(
            f"perplexity in windows of {first['window']} tokens, {first['split']}: "
            f"{first['tokens']} tokens",
            ["ppl", "change, %"],
        )
        plain = own or (arms[0][1].get(METRIC) if base_label(record) != EXTENDED else None)
        if own:
            rows.insert(0, ("base, as it is", own))
        for label, found in rows:
            if found is None:
                continue
            change = (
                ""
                if plain is None or found is plain
                else change_cell(
                    paired_change({0: found}, {0: plain}), trained=label == run_label(record)
                ).text
            )
            value = found["value"]
            lines.rows.append([label, "overflow" if value is None else f"{value:.3f}", change])
        return [lines]

    # --- the report ---

    def columns(
        self, report: Sequence[Comparison], table: Sequence[Comparison], reference: str
    ) -> list[Column]:
        """The change in the short window, where a record holds it."""
        if not any(held(comparison, METRIC) for comparison in report):
            return []
        windows = {m["window"] for comparison in table for m in all_metrics(comparison, METRIC)}
        where = f"at {windows.pop():,} tokens" if len(windows) == 1 else "in a short window"
        return [Column(_KEY, f"PPL {where} vs unmodified base, %", interval=True)]

    def cells(
        self, comparison: Comparison, subject: Subject, against: Arm | None
    ) -> dict[str, Cell]:
        """The change from the base as it was loaded, paired by document and seed."""
        from hylorada.evaluation.perplexity_cells import change_cell
        from hylorada.statistics.paired import paired_change

        runs = subject.runs if subject.arm is not None else subject.runs[:1]
        found = {run.seed: (_of(run, subject.which), _plain(run)) for run in runs}
        pairs = {seed: (m, b) for seed, (m, b) in found.items() if m is not None and b is not None}
        if not pairs:
            return {}
        if all(m is b for m, b in pairs.values()):
            return {_KEY: Cell("0", 0.0)}
        change = paired_change(
            {seed: metric for seed, (metric, _) in pairs.items()},
            {seed: base for seed, (_, base) in pairs.items()},
        )
        return {_KEY: change_cell(change, trained=subject.arm is not None)}

    def notes(self, comparison: Comparison) -> list[str]:
        """What was scored, and what the base as it is reaches."""
        runs = (run for arm in comparison.arms for run in arm.runs)
        base = next((found for run in runs if (found := _plain(run)) is not None), None)
        if base is None:
            return []
        documents = number_of(len(base["by_document"]), "document")
        return [
            f"short window: {base['window']:,} tokens, blocks; {base['tokens']:,} of "
            f"{base['scorable_tokens']:,} tokens of {documents}, "
            f"{base['split']} split; PPL of the unmodified base "
            + ("overflow." if base["value"] is None else f"{base['value']:.2f}.")
        ]

    def explanations(self, comparisons: Sequence[Comparison], reference: str) -> list[str]:
        """What the column is."""
        if not any(held(comparison, METRIC) for comparison in comparisons):
            return []
        return [
            "PPL in a short window, for which the base needs no extension: change relative to "
            "the unmodified base; positive is worse. Intervals as for the other changes."
        ]


def _of(run: Record, which: str) -> Metric | None:
    """The metric of a run, or of a base in its record."""
    return run.base(which, METRIC) if which else run.metric(METRIC)


def _plain(run: Record) -> Metric | None:
    """That of the base as it was loaded."""
    own = own_window(run.data).get(METRIC)
    if own is not None or base_label(run.data) == EXTENDED:
        return own
    return run.base("extended", METRIC)


MEASUREMENT = ShortContext()
