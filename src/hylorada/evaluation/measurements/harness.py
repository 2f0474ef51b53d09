"""LongBench and RULER by lm-eval: scores from 0 to 100, by the official cut and scores.

A kind with several tasks shows their mean in tables, one with a single task that task. How it is
asked and scored: `evaluation.harness`, `harness_questions`, `harness_scores`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hylorada.comparison.arms import Comparison
from hylorada.comparison.cells import Cell, Column
from hylorada.comparison.subjects import Metric, Subject, agreed, reference, subjects
from hylorada.config import HarnessConfig, RunConfig
from hylorada.evaluation.attempt import Attempt
from hylorada.evaluation.measurement import Lines, Measurement, Metrics, Sources
from hylorada.settings import harness_tasks
from hylorada.settings.harness_tasks import expand, is_ruler, longbench_file

KINDS = {"longbench": "LongBench", "longbench_e": "LongBench-E", "ruler": "RULER"}
"""Kind -> its name for people; the kind is also the key of its column."""

_AVERAGES = {
    "longbench": "longbench/average", "longbench_e": "longbench/average_e", "ruler": "ruler/average"
}  # fmt: skip
_CUT = {
    "longbench": ", longer prompts cut in the middle",
    "longbench_e": ", longer prompts cut in the middle", "ruler": "",
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """The questions.

    Attributes:
        settings: tasks, and the examples of each.
        questions: of `evaluation.harness_questions`.
        tokenizer: of the base.
        window: tokens of a prompt and its answer.
    """

    settings: HarnessConfig
    questions: Sequence[Any]
    tokenizer: Any
    window: int


class Harness(Measurement):
    """LongBench and RULER."""

    name, order, title = "harness", 40, "benchmarks"
    metrics = ("longbench/", "ruler/")

    def check(self, config: RunConfig) -> None:
        """Tasks that there are and that this machine can ask."""
        harness_tasks.check(config.eval.harness, config.length.max_length)

    def check_with_tokenizer(self, config: RunConfig, tokenizer: Any) -> None:
        """A tokenizer with an end."""
        from hylorada.evaluation.harness import check_questions

        check_questions(tokenizer, [], config.length.max_length)

    # --- measuring ---

    def prepare(self, sources: Sources) -> Asked:
        """The questions, all of which can be asked and scored."""
        from hylorada.evaluation.harness import check_questions
        from hylorada.evaluation.harness_questions import make_questions
        from hylorada.evaluation.longbench_metrics import score_row

        settings, tokenizer, window = sources.config.eval.harness, sources.tokenizer, sources.window
        tasks = expand(settings.tasks)
        rows: dict[str, list[dict[str, Any]]] = {task: [] for task in tasks if not is_ruler(task)}
        if rows:
            for row in sources.longbench([longbench_file(task) for task in rows]):
                rows[f"longbench_{row['task']}"].append(row)
        with sources.stop.deferred():  # lm-eval and its samplers swallow what is raised inside them
            questions = make_questions(
                tasks, rows, tokenizer, window, settings.limit, sources.stop.check
            )
        for question in questions:
            if question.task.startswith("longbench_passage_retrieval"):
                # An answer that cannot be scored is known now, not when all questions were asked.
                score_row(longbench_file(question.task), "", question.document["answers"])
        check_questions(tokenizer, questions, window)
        return Asked(settings, questions, tokenizer, window)

    def identity(self, asked: Asked) -> dict[str, Any]:
        """The questions, and lm-eval's version."""
        from hylorada.evaluation.harness_questions import lm_eval_version, questions_sha256

        return {
            "harness": [
                questions_sha256(asked.questions), lm_eval_version(), asked.settings.limit
            ]
        }  # fmt: skip

    def measure(self, model: Any, asked: Asked, attempt: Attempt) -> Metrics:
        """``longbench/<task>``, ``ruler/<task>`` and their averages, 0 to 100."""
        from hylorada.evaluation.harness import Reply, ask
        from hylorada.evaluation.harness_questions import lm_eval_version
        from hylorada.evaluation.harness_scores import score_replies

        done = [Reply(**reply) for reply in attempt.done or ()]
        attempt.begin("LongBench and RULER", len(asked.questions), len(done))

        def progress(replies: list[Reply], total: int) -> None:
            attempt.boundary(
                len(replies), replies[-1].task, lambda: [asdict(reply) for reply in replies]
            )

        replies = ask(
            model,
            asked.tokenizer,
            asked.questions,
            asked.window,
            autocast_dtype=attempt.autocast_dtype,
            ranks=attempt.ranks,
            progress=progress,
            done=done,
        )
        common = {
            "window": asked.window, "limit": asked.settings.limit, "lm_eval": lm_eval_version()
        }  # fmt: skip
        scores = score_replies(asked.questions, replies)
        return {name: {**score, **common} for name, score in scores.items()}

    def replaced_with(self, metric: str) -> str:
        """All tasks of a benchmark belong to one average."""
        return harness_tasks.benchmark(metric)

    # --- the end of a run ---

    def summary(
        self, record: Mapping[str, Any], metrics: Metrics, arms: Sequence[tuple[str, Metrics]]
    ) -> list[Lines]:
        """A row for each task, since there are too many for one line."""
        from hylorada.statistics.clustered import ONE_SEED

        names = [name for name in metrics if name.startswith(self.metrics)]
        if not names:
            return []
        first = metrics[names[0]]
        lines = Lines(
            f"scores from 0 to 100, window {first['window']}, 95 % intervals, by lm-eval "
            f"{first['lm_eval']} with the official cut and scores; one seed: {ONE_SEED}",
            ["examples", "cut", *(label for label, _ in arms)],
            first="task",
            wraps=True,
        )
        for name in names:
            whole = metrics[name]
            cells = [str(whole["examples"]), str(whole["cut"])]
            for _, arm in arms:
                found = arm.get(name)
                same = found is not None and found["questions_sha256"] == whole["questions_sha256"]
                cells.append(
                    f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
                    if found is not None and same
                    else "-"
                )
            lines.rows.append([name, *cells])
        return [lines]

    # --- the report ---

    def columns(
        self, report: Sequence[Comparison], table: Sequence[Comparison], reference: str
    ) -> list[Column]:
        """One for each kind that some record has a number for."""
        present = {kind for comparison in report for kind, _ in _names(comparison)}
        return [
            Column(kind, f"{name}, of 100", interval=True)
            for kind, name in KINDS.items()
            if kind in present
        ]

    def cells(self, comparison: Comparison, subject: Subject, against: Any) -> dict[str, Cell]:
        """One for each kind; what was asked something else than most rows says so."""
        cells = {}
        for kind, name in _shown(comparison).items():
            alike = subject.alike(name, agreed(comparison, name))
            if alike:
                found = [metrics[name] for metrics in alike]
                cells[kind] = _cell(found, trained=subject.arm is not None)
            elif any(subject.values(other) for k, other in _names(comparison) if k == kind):
                cells[kind] = Cell("other questions")
        return cells

    def notes(self, comparison: Comparison) -> list[str]:
        """What was asked, and the score of every task, base and arms."""
        from hylorada.statistics.clustered import few_seeds

        notes = []
        for kind, title in KINDS.items():
            names = [name for k, name in _names(comparison) if k == kind and "/average" not in name]
            wanted = {name: agreed(comparison, name) for name in names}
            by_question: dict[str, list[str]] = {}
            for name in names:
                metric = reference(comparison, name)
                assert metric is not None  # the name is that of a metric
                by_question.setdefault(_questions(metric), []).append(name.partition("/")[2])
            for question, tasks in by_question.items():
                which = f" ({', '.join(tasks)})" if len(by_question) > 1 else ""
                notes.append(f"{title}{which}: {question}{_CUT[kind]}; official scores.")
            others = []
            for subject in subjects(comparison):
                scores, seeds = [], 0
                for name in names:
                    task = name.partition("/")[2]
                    alike = [metrics[name] for metrics in subject.alike(name, wanted[name])]
                    if alike:
                        scores.append(f"{task} {_cell(alike).text}")
                        seeds = max(seeds, len(alike))
                    for label, metric in subject.others(name, wanted[name]):
                        others.append(
                            f"{label}: {task} {_cell([metric]).text} ({_questions(metric)})"
                        )
                if scores:
                    one = f", {few_seeds(1)}" if subject.arm is not None and seeds == 1 else ""
                    notes.append(f"{title}, {subject.label}{one}: {'; '.join(scores)}.")
            if others:
                notes.append(
                    f"{title}, on other questions and therefore not compared: {'; '.join(others)}."
                )
        return notes


def _questions(metric: Metric) -> str:
    limit = f"the first {metric['limit']} examples" if metric["limit"] else "all examples"
    return (
        f"{limit} of each task, by lm-eval {metric['lm_eval']} in a window of "
        f"{metric['window']:,} tokens"
    )


def _names(comparison: Comparison) -> list[tuple[str, str]]:
    """Kind and name of every such metric, in the order of the records."""
    names: dict[str, str] = {}
    for metrics in (m for subject in subjects(comparison) for m in subject.held()):
        for name in metrics:
            kind, _, task = name.partition("/")
            if kind in ("longbench", "ruler"):
                names[name] = "longbench_e" if kind != "ruler" and task.endswith("_e") else kind
    return [(kind, name) for name, kind in names.items()]


def _shown(comparison: Comparison) -> dict[str, str]:
    """Kind -> the metric that stands for it."""
    shown: dict[str, str] = {}
    names = _names(comparison)
    for kind, name in names:
        shown.setdefault(kind, name)
    return shown | {k: name for k, name in _AVERAGES.items() if (k, name) in names}


def _cell(metrics: Sequence[Metric], *, trained: bool = False) -> Cell:
    from hylorada.comparison.means import mean_cell

    return mean_cell(metrics, 1, 2, trained=trained)


MEASUREMENT = Harness()
