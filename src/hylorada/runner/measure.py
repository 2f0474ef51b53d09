"""Measuring a model for the record: perplexity, retrieval by depth, worth of context, benchmarks.

Every measurement says its progress, ends at a signal between two batches or prompts, and continues
from there when it is started again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from hylorada.config import PerplexityConfig, RunConfig
from hylorada.data.token_corpus import TokenCorpus
from hylorada.evaluation.context_gain import ContextScore, evaluate_context_gain
from hylorada.evaluation.harness import Reply, ask
from hylorada.evaluation.harness_questions import questions_sha256
from hylorada.evaluation.lost_in_middle import Answer, RetrievalResult, evaluate_retrieval
from hylorada.evaluation.perplexity import Progress, evaluate_perplexity
from hylorada.evaluation.resumable import Partial
from hylorada.kernels.switch import are_left_out
from hylorada.process.device import choose_bf16, choose_device
from hylorada.process.progress import Reporter
from hylorada.process.signals import Stop
from hylorada.records.metric_names import PERPLEXITIES, SUFFIXES
from hylorada.records.provenance import name_of
from hylorada.records.result import finite
from hylorada.runner.exam import Exam
from hylorada.runner.harness import benchmark_metrics

Metrics = dict[str, dict[str, Any]]


@dataclass
class Meter:
    """What every measurement of a run shares.

    Attributes:
        device: of the models.
        bf16: whether to run under bf16 autocast.
        chunk: tokens whose logits exist at one time.
        stop: a signal ends a measurement at the next batch or prompt.
        reporter: shows progress.
        clock: seconds; it says when to keep what was measured so far.
        weights: the precision of the frozen weights.
    """

    device: torch.device
    bf16: bool
    chunk: int
    stop: Stop
    reporter: Reporter
    clock: Callable[[], float] = time.monotonic
    weights: torch.dtype = torch.float32

    def weigh(self, weights: torch.dtype) -> None:
        """Take note of the weights' precision; bfloat16 is always run under bf16 autocast."""
        self.weights, self.bf16 = weights, self.bf16 or weights == torch.bfloat16

    @property
    def precision(self) -> str:
        """As a record says it."""
        return "bf16" if self.bf16 else "fp32"

    @property
    def conditions(self) -> dict[str, Any]:
        """What every number depends on, whatever is measured: numbers of two are never mixed."""
        return {
            "precision": self.precision,
            "weights": name_of(self.weights),
            "device": self.device.type,
            "versions": [torch.__version__, transformers.__version__],
            **({"kernels": "the model's own"} if are_left_out() else {}),
        }

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
        kept = self._partial(
            partial,
            text=[corpus.sha256, None if paragraphs is None else paragraphs.sha256],
            settings=asdict(settings),
            window=[window, cover],
        )

        def progress(now: Progress) -> None:
            nonlocal started
            if now.convention != started:
                started = now.convention
                self.reporter.begin(f"{title}, {now.convention}", now.total)
            self.reporter.update(now.done, f"ppl {math.exp(min(now.sum_nll / now.done, 700)):.3f}")
            kept.boundary(now.state)

        with self.stop.deferred():
            results = evaluate_perplexity(
                model,
                corpus.documents,
                settings,
                window,
                cover=cover,
                paragraphs=None if paragraphs is None else paragraphs.documents,
                words=corpus.official_words,
                chunk=self.chunk,
                autocast_dtype=self._autocast(),
                progress=progress,
                state=kept.done,
            )
        kept.remove()
        # A perplexity beyond the range of a float is null here as it is in the record.
        return {PERPLEXITIES[name]: finite(result.to_dict()) for name, result in results.items()}

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
        kept = self._partial(
            partial,
            prompts=[prompts.sha256, prompts.max_new_tokens],
            scorings=settings.scorings,
            window=exam.window,
        )
        done = [Answer(**answer) for answer in kept.done or ()]
        self.reporter.begin(f"{title}, retrieval", len(prompts.prompts), len(done))

        def progress(answers: list[Answer], total: int) -> None:
            values = [a.generated if a.ranked is None else a.ranked for a in answers]
            right = sum(value for value in values if value is not None) / len(values)
            self.reporter.update(len(answers), f"right {right:.1%}")
            kept.boundary(lambda: [asdict(answer) for answer in answers])

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
                done=done,
            )
        kept.remove()
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
        kept = self._partial(
            partial, text=exam.corpus.sha256, settings=asdict(settings), window=exam.window
        )
        done: list[list[float]] = kept.done or []
        started = False

        def progress(sums: list[list[float]], total: int) -> None:
            nonlocal started
            if not started:
                self.reporter.begin(f"{title}, context gain", total, len(done))
                started = True
            self.reporter.update(len(sums), "places")
            kept.boundary(lambda: sums)

        with self.stop.deferred():
            scores = evaluate_context_gain(
                model,
                exam.corpus.documents,
                exam.window,
                settings,
                autocast_dtype=self._autocast(),
                progress=progress,
                done=done,
            )
        kept.remove()
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
        kept = self._partial(
            partial, questions=questions_sha256(exam.questions), window=exam.window
        )
        done = [Reply(**reply) for reply in kept.done or ()]
        self.reporter.begin(f"{title}, LongBench and RULER", len(exam.questions), len(done))

        def progress(replies: list[Reply], total: int) -> None:
            self.reporter.update(len(replies), replies[-1].task)
            kept.boundary(lambda: [asdict(reply) for reply in replies])

        with self.stop.deferred():
            replies = ask(
                model,
                exam.tokenizer,
                exam.questions,
                exam.window,
                autocast_dtype=self._autocast(),
                progress=progress,
                done=done,
            )
        metrics = benchmark_metrics(exam.settings.harness, exam.questions, replies, exam.window)
        kept.remove()
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
        settings, prompts, paragraphs = exam.settings, exam.prompts, exam.paragraphs
        parts: dict[str, Callable[[Path | None], Metrics]] = {}
        if settings.perplexity.conventions:
            parts["perplexity"] = lambda path: self.measure(
                model, exam.corpus, settings.perplexity, exam.window, title,
                paragraphs=paragraphs, partial=path,
            )  # fmt: skip
        if settings.lost_in_middle.enabled:
            parts["lost_in_middle"] = lambda path: self.retrieval(model, exam, title, partial=path)
        if settings.context_gain.enabled:
            parts["context_gain"] = lambda path: self.context_gain(model, exam, title, partial=path)
        if settings.harness.enabled:
            parts["harness"] = lambda path: self.harness(model, exam, title, partial=path)
        kept = self._partial(
            partial and partial.with_name(f"{partial.name}.parts"),
            text=[exam.corpus.sha256, None if paragraphs is None else paragraphs.sha256],
            prompts=None if prompts is None else prompts.sha256,
            questions=questions_sha256(exam.questions),
            settings=asdict(settings),
            window=exam.window,
        )
        finished: dict[str, Metrics] = kept.done or {}
        metrics: Metrics = {}
        for name, part in parts.items():
            if name not in finished:
                finished[name] = part(partial and partial.with_name(f"{partial.name}-{name}"))
                if len(parts) > 1:
                    kept.keep(finished)
            metrics |= finished[name]
        kept.remove()
        return metrics

    def _autocast(self) -> torch.dtype | None:
        return torch.bfloat16 if self.bf16 else None

    def _partial(self, path: Path | None, **identity: Any) -> Partial:
        """What an interrupted measurement of the same thing left, under the same conditions."""
        return Partial(path, {**self.conditions, **identity}, self.stop, self.clock)


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
            "value": score.sum_nll / score.tokens, "sum_nll": score.sum_nll,
            "tokens": score.tokens, "context": score.context,
        }  # fmt: skip
    return metrics


def make_meter(config: RunConfig, stop: Stop, reporter: Reporter) -> Meter:
    """A meter on the device and in the precision of the settings; also sets their threads.

    Raises:
        ConfigError: the hardware has no such device or precision.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    bf16 = choose_bf16(config.train.precision, device)
    return Meter(device, bf16, config.train.loss_chunk, stop, reporter)
