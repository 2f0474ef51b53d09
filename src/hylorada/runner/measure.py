"""Measuring a model for the record: perplexity, retrieval by depth, worth of context, benchmarks.

Every measurement says its progress, ends at a signal between two batches or prompts, and continues
from there when it is started again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hylorada.config import PerplexityConfig
from hylorada.data.packing import TokenCorpus
from hylorada.disk import replace_file
from hylorada.errors import Interrupted
from hylorada.evaluation.benchmark_questions import questions_sha256
from hylorada.evaluation.context_gain import ContextScore, evaluate_context_gain
from hylorada.evaluation.harness import Reply, ask
from hylorada.evaluation.lost_in_middle import Answer, RetrievalResult, evaluate_retrieval
from hylorada.evaluation.perplexity import Progress, evaluate_perplexity
from hylorada.runner.benchmarks import benchmark_metrics
from hylorada.runner.exam import Exam
from hylorada.runner.progress import Reporter
from hylorada.runner.signals import Stop

Metrics = dict[str, dict[str, Any]]

NAMES = {
    "blocks": "eval/ppl",
    "sliding": "eval/ppl_sliding",
    "word": "eval/ppl_word",
    "paper": "eval/ppl_paper",
}
"""Convention -> name of its metric in records and trackers."""

SUFFIXES = {"ranked": "", "generated": "_generated"}
"""Scoring -> what follows the names of retrieval metrics."""


@dataclass
class Meter:
    """What every measurement of a run shares.

    Attributes:
        device: of the models.
        bf16: whether to run under bf16 autocast.
        chunk: tokens whose logits exist at one time.
        stop: a signal ends a measurement at the next batch or prompt.
        reporter: shows progress.
    """

    device: torch.device
    bf16: bool
    chunk: int
    stop: Stop
    reporter: Reporter

    def measure(
        self,
        model: nn.Module,
        corpus: TokenCorpus,
        settings: PerplexityConfig,
        window: int,
        title: str,
        *,
        cover: int = 0,
        paragraphs: TokenCorpus | None = None,
        partial: Path | None = None,
    ) -> Metrics:
        """Perplexity under each convention of the settings, as it stands in a record.

        Args:
            model: the model; its training flags are put back.
            corpus: the split, in tokens.
            settings: conventions, stride, how much of the split.
            window: tokens of context.
            title: what is measured, for the progress bar.
            cover: see `evaluate_perplexity`.
            paragraphs: of the split, for the convention `paper`.
            partial: where an interrupted measurement is kept, to be continued by the next call.

        Raises:
            Interrupted: a signal came; what was measured is in ``partial``.
        """
        started = ""
        state: Mapping[str, Any] | None = None
        if partial is not None and partial.exists():
            state = json.loads(partial.read_text())

        def progress(now: Progress) -> None:
            nonlocal started
            if now.convention != started:
                started = now.convention
                self.reporter.begin(f"{title}, {now.convention}", now.total)
            self.reporter.update(now.done, f"ppl {math.exp(min(now.sum_nll / now.done, 700)):.3f}")
            self._stop_here(partial, now.state)

        with self.stop.deferred():
            results = evaluate_perplexity(
                model,
                corpus.documents,
                settings,
                window,
                cover=cover,
                paragraphs=None if paragraphs is None else paragraphs.documents,
                chunk=self.chunk,
                autocast_dtype=self._autocast(),
                progress=progress,
                state=state,
            )
        if partial is not None:
            partial.unlink(missing_ok=True)
        return {NAMES[convention]: result.to_dict() for convention, result in results.items()}

    def retrieval(
        self, model: nn.Module, exam: Exam, title: str, *, partial: Path | None = None
    ) -> Metrics:
        """Accuracy by depth under each scoring of the exam, as it stands in a record.

        Args:
            model: the model.
            exam: with prompts.
            title: what is measured, for the progress bar.
            partial: where an interrupted measurement is kept.

        Raises:
            Interrupted: a signal came; the answers so far are in ``partial``.
        """
        prompts, settings = exam.prompts, exam.settings.lost_in_middle
        assert prompts is not None
        identity = [prompts.sha256, exam.window, settings.scorings, prompts.max_new_tokens]
        kept = [Answer(**answer) for answer in _kept(partial, identity)]
        self.reporter.begin(f"{title}, retrieval", len(prompts.prompts), len(kept))

        def progress(answers: list[Answer], total: int) -> None:
            values = [a.generated if a.ranked is None else a.ranked for a in answers]
            right = sum(value for value in values if value is not None) / len(values)
            self.reporter.update(len(answers), f"right {right:.1%}")
            self._stop_here(
                partial, lambda: {"identity": identity, "done": [asdict(a) for a in answers]}
            )

        with self.stop.deferred():
            results = evaluate_retrieval(
                model,
                exam.tokenizer,
                prompts.prompts,
                exam.window,
                scorings=settings.scorings,
                max_new_tokens=prompts.max_new_tokens,
                autocast_dtype=self._autocast(),
                progress=progress,
                done=kept,
            )
        if partial is not None:
            partial.unlink(missing_ok=True)
        return retrieval_metrics(results, exam)

    def context_gain(
        self, model: nn.Module, exam: Exam, title: str, *, partial: Path | None = None
    ) -> Metrics:
        """The loss of the same targets with more and more context, as it stands in a record.

        Args:
            model: the model.
            exam: its split and settings.
            title: what is measured, for the progress bar.
            partial: where an interrupted measurement is kept.

        Raises:
            Interrupted: a signal came; the sums so far are in ``partial``.
        """
        settings = exam.settings.context_gain
        identity = [exam.corpus.sha256, exam.window, asdict(settings)]
        kept: list[list[float]] = _kept(partial, identity)
        started = False

        def progress(done: list[list[float]], total: int) -> None:
            nonlocal started
            if not started:
                self.reporter.begin(f"{title}, context gain", total, len(kept))
                started = True
            self.reporter.update(len(done), "places")
            self._stop_here(partial, lambda: {"identity": identity, "done": done})

        with self.stop.deferred():
            scores = evaluate_context_gain(
                model,
                exam.corpus.documents,
                exam.window,
                settings,
                autocast_dtype=self._autocast(),
                progress=progress,
                done=kept,
            )
        if partial is not None:
            partial.unlink(missing_ok=True)
        return context_metrics(scores, exam)

    def harness(
        self, model: nn.Module, exam: Exam, title: str, *, partial: Path | None = None
    ) -> Metrics:
        """Scores on LongBench and RULER, as they stand in a record.

        Args:
            model: the model.
            exam: with questions.
            title: what is measured, for the progress bar.
            partial: where an interrupted measurement is kept.

        Raises:
            Interrupted: a signal came; the replies so far are in ``partial``.
        """
        identity = [questions_sha256(exam.questions), exam.window]
        kept = [Reply(**reply) for reply in _kept(partial, identity)]
        self.reporter.begin(f"{title}, LongBench and RULER", len(exam.questions), len(kept))

        def progress(replies: list[Reply], total: int) -> None:
            self.reporter.update(len(replies), replies[-1].task)
            self._stop_here(
                partial, lambda: {"identity": identity, "done": [asdict(r) for r in replies]}
            )

        with self.stop.deferred():
            replies = ask(
                model,
                exam.tokenizer,
                exam.questions,
                exam.window,
                autocast_dtype=self._autocast(),
                progress=progress,
                done=kept,
            )
        metrics = benchmark_metrics(exam.settings.harness, exam.questions, replies, exam.window)
        if partial is not None:
            partial.unlink(missing_ok=True)
        return metrics

    def examine(
        self, model: nn.Module, exam: Exam, title: str, *, partial: Path | None = None
    ) -> Metrics:
        """Everything that the exam asks for.

        Args:
            model: the model; its training flags are put back.
            exam: what is measured.
            title: what is measured, for the progress bar.
            partial: where an interrupted measurement is kept, to be continued by the next call;
                finished parts lie beside it until all are.

        Raises:
            Interrupted: a signal came.
        """
        settings = exam.settings
        parts: dict[str, Callable[[Path | None], Metrics]] = {}
        if settings.perplexity.conventions:
            parts["perplexity"] = lambda path: self.measure(
                model, exam.corpus, settings.perplexity, exam.window, title,
                paragraphs=exam.paragraphs, partial=path,
            )  # fmt: skip
        if settings.lost_in_middle.enabled:
            parts["lost_in_middle"] = lambda path: self.retrieval(model, exam, title, partial=path)
        if settings.context_gain.enabled:
            parts["context_gain"] = lambda path: self.context_gain(model, exam, title, partial=path)
        if settings.harness.enabled:
            parts["harness"] = lambda path: self.harness(model, exam, title, partial=path)
        finished_path = partial and partial.with_name(f"{partial.name}.parts")
        identity = [exam.corpus.sha256, exam.window, asdict(settings)]
        finished: dict[str, Metrics] = dict(_kept(finished_path, identity))
        metrics: Metrics = {}
        for name, part in parts.items():
            if name not in finished:
                finished[name] = part(partial and partial.with_name(f"{partial.name}-{name}"))
                if finished_path is not None and len(parts) > 1:
                    state = {"identity": identity, "done": list(finished.items())}
                    replace_file(finished_path, json.dumps(state).encode())
            metrics |= finished[name]
        if finished_path is not None:
            finished_path.unlink(missing_ok=True)
        return metrics

    def _autocast(self) -> torch.dtype | None:
        return torch.bfloat16 if self.bf16 else None

    def _stop_here(self, partial: Path | None, state: Callable[[], Any]) -> None:
        """Keep what was measured, and stop, if a signal has come."""
        try:
            self.stop.check()
        except Interrupted:
            if partial is not None:
                replace_file(partial, json.dumps(state()).encode())
            raise


def _kept(partial: Path | None, identity: list[Any]) -> list[Any]:
    """What an interrupted measurement of the same thing left; nothing if it was another."""
    if partial is None or not partial.exists():
        return []
    state = json.loads(partial.read_text())
    # Through JSON, which has no tuples.
    return state["done"] if state["identity"] == json.loads(json.dumps(identity)) else []


def retrieval_metrics(results: Mapping[str, RetrievalResult], exam: Exam) -> Metrics:
    """``lim/accuracy`` with all there is to know, ``lim/accuracy@<depth>``, ``lim/middle_gap``.

    Names of the generated scoring end in ``_generated``, before the ``@``.
    """
    prompts, settings = exam.prompts, exam.settings.lost_in_middle
    assert prompts is not None
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


def context_metrics(scores: list[ContextScore], exam: Exam) -> Metrics:
    """``context_gain/gain``, of the longest context, and ``context_gain/nll@<context>``."""
    last = scores[-1]
    settings = exam.settings
    metrics: Metrics = {
        "context_gain/gain": {
            "value": last.gain,
            "low": last.gain_low,
            "high": last.gain_high,
            "context": last.context,
            "shortest_context": scores[0].context,
            "window": exam.window,
            "targets": settings.context_gain.targets,
            "places": last.tokens // settings.context_gain.targets,
            "split": settings.perplexity.split,
            "text_sha256": exam.corpus.sha256,
            "by_context": [score.to_dict() for score in scores],
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
