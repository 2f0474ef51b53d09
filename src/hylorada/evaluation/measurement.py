"""The interface of a measurement: whoever adds one implements this class, in one file.

Everything that a run does with a measurement is a loop over `measurements()`: checking settings,
preparing, measuring the base and the run, continuing after an interruption, the summary, trackers,
tables, figures. What is needed for a number is `measure`; all else has a default.

Settings are checked and reports made without torch: a measurement's module imports torch, numpy and
the like inside of its methods.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

from hylorada.comparison.arms import Arm, Comparison
from hylorada.comparison.cells import Cell, Column, Verdict
from hylorada.comparison.picture import Picture
from hylorada.comparison.subjects import Metric, Subject, agreed, all_metrics, others
from hylorada.config import EvalConfig, RunConfig
from hylorada.evaluation.attempt import Attempt
from hylorada.evaluation.portion import Cost, Portion
from hylorada.evaluation.shown import Lines as Lines
from hylorada.evaluation.shown import Shown as Shown
from hylorada.process.signals import Stop
from hylorada.settings.measurements import SLOT, declared, typed

Metrics = dict[str, Metric]
"""Name in records -> ``{"value": ..., ...}``."""


class Text(Protocol):
    """A split in tokens."""

    @property
    def documents(self) -> Sequence[Any]:
        """Each with `name`, `tokens` (ids, shape [T]), `words` and `bytes`."""

    @property
    def official_words(self) -> int | None:
        """Words of the whole split, where its authors give their number."""

    sha256: str
    label: str


class Sources(Protocol):
    """What a measurement may read; `runner.preparation` hands it in.

    Attributes:
        config: the run's settings.
        tokenizer: of the base.
        window: the most tokens that a model sees.
        trained_length: tokens that the base was trained on.
        stop: a signal ends reading.
    """

    config: RunConfig
    tokenizer: Any
    window: int
    trained_length: int
    stop: Stop

    def text(self, unit: str = "documents") -> Text:
        """The split ``eval.perplexity.split`` in tokens, by "documents" or "paragraphs".

        Raises:
            DataError: it is not available or too short.
        """

    def longbench(self, tasks: Sequence[str]) -> list[dict[str, Any]]:
        """LongBench's rows of these tasks, by its own names (``trec_e``).

        Raises:
            DataError: they are not available.
        """


class Measurement:
    """One kind of number.

    Attributes:
        name: that of its module; what users type.
        order: its place in records, summaries and tables, lower ones first.
        title: what it is called in sentences.
        metrics: how the names of its metrics begin.
        shown: the numbers with columns of their own.
        settings_type: the dataclass of ``eval.measurements.<name>``; None for those four whose
            settings are a part of `EvalConfig` itself.
        of_the_text: whether its numbers are of the text that the record's provenance names, so that
            measuring it again puts down the text again.
    """

    name: str
    order: float = 100
    title: str
    metrics: tuple[str, ...]
    shown: Sequence[Shown] = ()
    settings_type: type[Any] | None = None
    of_the_text = False

    # --- settings: nothing here loads torch ---

    @property
    def place(self) -> tuple[str, ...]:
        """Where its settings lie in ``eval``."""
        return (self.name,) if self.settings_type is None else ("measurements", self.name)

    @property
    def switch(self) -> str:
        """What switches it on, as it is typed."""
        return (
            f"eval.{self.name}.enabled=true" if len(self.place) == 1 else f"{SLOT}.{self.name}={{}}"
        )

    def settings(self, asked: EvalConfig) -> Any:
        """Its own settings among those of an evaluation.

        Raises:
            ConfigError: an unknown key or a wrong type in ``eval.measurements.<name>``.
        """
        if self.settings_type is None:
            return getattr(asked, self.name)
        return typed(self.name, self.settings_type, asked.measurements.get(self.name, {}))

    def enabled(self, asked: EvalConfig) -> bool:
        """Whether these settings ask for it."""
        if self.settings_type is None:
            return bool(self.settings(asked).enabled)
        return self.name in asked.measurements

    def check(self, config: RunConfig) -> None:
        """Refuse settings that are wrong, before torch loads.

        Raises:
            ConfigError: says which setting, what is wrong with it and what to do.
            DataError: a local path that does not exist.
        """
        self.settings(config.eval)

    def check_with_tokenizer(self, config: RunConfig, tokenizer: Any) -> None:
        """Refuse what can be refused before text or weights are read; called if it is enabled."""

    def longest_text(self, config: RunConfig) -> int:
        """Tokens of the longest document that it needs; called if it is enabled."""
        return 1

    # --- measuring ---

    def prepare(self, sources: Sources) -> Any:
        """What is asked: read, made and checked once, before anything is measured or trained.

        Returns:
            Handed to the methods below as ``asked``.

        Raises:
            DataError: what is asked for is not available, or does not fit.
        """
        return sources

    def identity(self, asked: Any) -> dict[str, Any]:
        """What its numbers depend on beside model, window, machine and its settings in the slot.

        Plain values: hashes of texts and prompts. The base is measured again, and an interrupted
        measurement begun anew, where this differs.
        """
        return {}

    def in_own_window(self, asked: Any, window: int) -> Any | None:
        """What is asked of the base as it is, in the shorter window of its training.

        Returns:
            As of `prepare`; None if nothing is, as by default.
        """
        return None

    def portion(self, asked: Any, cost: Cost) -> Portion | None:
        """A small part that stands for the whole, by which `dry_run=true` tells how long it takes.

        Args:
            asked: see `prepare`.
            cost: of a forward pass.

        Returns:
            None, as by default, if there is none; a plan then leaves the measurement out.
        """
        return None

    def measure(self, model: Any, asked: Any, attempt: Attempt) -> Metrics:
        """The numbers of a model.

        Args:
            model: a causal language model, or a PeftModel around one; its training flags are put
                back (`evaluation.scoring.evaluation_mode`).
            asked: see `prepare`.
            attempt: progress, and what an interrupted attempt found.

        Returns:
            Name -> ``{"value": number, ...}``, with a hash or a window of what was asked
            (``text_sha256``, ``prompts_sha256``, ``window``): only answers to the same are
            compared.

        Raises:
            Interrupted: a signal came, see `Attempt.boundary`.
        """
        raise NotImplementedError

    # --- measuring a finished run again ---

    def replaced_with(self, metric: str) -> str:
        """A metric's family: a new number of a family replaces all old ones of it in a record."""
        return metric.partition("@")[0]

    def all_anew(self, record: Mapping[str, Any], config: RunConfig, text: Text) -> bool:
        """Whether new numbers replace all old ones: those are of another text or settings."""
        return False

    # --- the end of a run: terminal and trackers ---

    def summary(
        self, record: Mapping[str, Any], metrics: Metrics, arms: Sequence[tuple[str, Metrics]]
    ) -> list[Lines]:
        """Tables for the terminal; by default one with a column for each of `shown`.

        Args:
            record: a result.json.
            metrics: those of its metrics that are to be shown.
            arms: label and metrics of the base and, where something was trained, of the run.
        """
        there = [each for each in self.shown if each.metric in metrics]
        if not there:
            return []
        lines = Lines(self.title, [each.heading for each in there])
        for label, arm in arms:
            cells = (each.text((arm.get(each.metric) or {}).get("value")) for each in there)
            lines.rows.append([label, *cells])
        return [lines]

    def tracked(self, name: str, metric: Metric) -> dict[str, float]:
        """A metric by the names that trackers show."""
        return {name: metric["value"]}

    def tracked_costs(self, record: Mapping[str, Any]) -> dict[str, float]:
        """More final numbers for trackers: what was gained for what."""
        return {}

    def tracked_tables(
        self, arms: Sequence[tuple[str, Metrics]]
    ) -> dict[str, tuple[list[str], list[list[Any]]]]:
        """Name -> columns and rows for trackers; arms are labels and metrics."""
        return {}

    def tracked_pictures(self, comparison: Comparison) -> dict[str, Picture]:
        """Name -> picture for trackers, of a comparison that holds the run alone."""
        return {}

    # --- the report: reads records only ---

    def columns(
        self, report: Sequence[Comparison], table: Sequence[Comparison], reference: str
    ) -> list[Column]:
        """The columns of the table; by default one for each of `shown` that a record holds.

        Few fit the main table, which must be readable on a telephone: those with `main`. The others
        stand in the card of each method below it.

        Args:
            report: every comparison; all tables of a report have the same columns.
            table: those of this table, for headings.
            reference: name of the method that the others are compared with.
        """
        return [
            Column(each.key, each.heading, interval=True)
            for each in self.shown
            if any(held(comparison, each.metric) for comparison in report)
        ]

    def cells(
        self, comparison: Comparison, subject: Subject, against: Arm | None
    ) -> dict[str, Cell]:
        """A row's cells by the keys of `columns`; what is missing reads "not measured".

        By default the mean over seeds of each of `shown`. Seeds of one arm are asked the same, so
        with several a cell holds the deviation between them, with one the number's own interval.

        Args:
            comparison: where the row stands.
            subject: an arm, or a base.
            against: the arm that the others are compared with.
        """
        from hylorada.comparison.means import mean_cell

        cells = {}
        for each in self.shown:
            alike = subject.alike(each.metric, agreed(comparison, each.metric))
            if alike:
                found = [metrics[each.metric] for metrics in alike]
                cells[each.key] = mean_cell(
                    found, each.scale, each.digits, each.sign, trained=subject.arm is not None
                )
            elif subject.values(each.metric):
                cells[each.key] = Cell(each.other)
        return cells

    def notes(self, comparison: Comparison) -> list[str]:
        """Sentences below the table; by default who was asked something else."""
        notes = []
        for each in self.shown:
            asked = [
                f"{label}: {each.text(metric['value'])}"
                for label, metric in others(comparison, each.metric)
            ]
            if asked:
                listed = "; ".join(asked)
                notes.append(
                    f"{each.heading}, measured differently and therefore not compared: {listed}."
                )
        return notes

    def verdicts(self, comparison: Comparison, against: Arm | None) -> list[Verdict]:
        """Sentences above the table, one for each arm against another; see `comparison.verdict`."""
        return []

    def explanations(self, comparisons: Sequence[Comparison], reference: str) -> list[str]:
        """Sentences that stand first below the table of these comparisons, whatever they hold."""
        return []

    def figures(self, comparison: Comparison, name: str) -> list[Picture]:
        """Pictures of a comparison; the names of their files begin with ``name``."""
        return []

    def figures_by_length(
        self, comparisons: Sequence[Comparison], reference: str, name: str
    ) -> list[Picture]:
        """Pictures of two comparisons or more that differ by their length alone, in its order."""
        return []

    def of_each_run(self) -> Sequence[Shown]:
        """The numbers in the page's list of single runs."""
        return ()


def measurements() -> Sequence[Measurement]:
    """Every measurement, in the order of records, summaries and tables."""
    return cast("Sequence[Measurement]", declared())


def asked_for(settings: EvalConfig) -> list[Measurement]:
    """Those that an evaluation asks for."""
    return [each for each in measurements() if each.enabled(settings)]


def owner(metric: str) -> Measurement | None:
    """The measurement that a metric is of; None if it is not there, as in another's record."""
    return next((each for each in measurements() if metric.startswith(each.metrics)), None)


def slot(measurement: Measurement, settings: EvalConfig) -> dict[str, Any]:
    """The settings of an added measurement; of those with a place of their own nothing."""
    if measurement.settings_type is None:
        return {}
    return {SLOT: {measurement.name: dataclasses.asdict(measurement.settings(settings))}}


def held(comparison: Comparison, *metrics: str) -> bool:
    """Whether some record of a comparison holds one of the metrics."""
    return any(True for name in metrics for _ in all_metrics(comparison, name))


def families(names: Iterable[str]) -> dict[str, str]:
    """Metric -> its family, see `Measurement.replaced_with`."""
    found = ((name, owner(name)) for name in names)
    return {
        name: each.replaced_with(name) if each else name.partition("@")[0] for name, each in found
    }
