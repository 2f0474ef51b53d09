"""LongBench and RULER by name: what may be asked for, and whether this machine can ask it.

Standard library only: a wrong name, a window that is too small and a missing package are found
before torch loads. Names are those of lm-eval.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from hylorada.command_line.suggest import did_you_mean
from hylorada.config import HarnessConfig
from hylorada.errors import ConfigError, DataError

# Tokens of an answer, as its authors set them (config/dataset2maxlen.json).
_LONGBENCH_TOKENS = {
    "narrativeqa": 128, "qasper": 128, "multifieldqa_en": 64, "multifieldqa_zh": 64,
    "hotpotqa": 32, "2wikimqa": 32, "musique": 32, "dureader": 128, "gov_report": 512,
    "qmsum": 512, "multi_news": 512, "vcsum": 512, "trec": 64, "triviaqa": 32, "samsum": 128,
    "lsht": 64, "passage_count": 32, "passage_retrieval_en": 32, "passage_retrieval_zh": 32,
    "lcc": 64, "repobench-p": 64,
}  # fmt: skip
_WITH_EVEN_LENGTHS = (
    "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "gov_report", "multi_news", "trec",
    "triviaqa", "samsum", "passage_count", "passage_retrieval_en", "lcc", "repobench-p",
)  # fmt: skip
_CHINESE = ("multifieldqa_zh", "dureader", "vcsum")  # scored by words: they need a segmenter

LONGBENCH = tuple(f"longbench_{task}" for task in _LONGBENCH_TOKENS)
LONGBENCH_E = tuple(f"longbench_{task}_e" for task in _WITH_EVEN_LENGTHS)
RULER = (
    "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2",
    "niah_multikey_3", "niah_multiquery", "niah_multivalue", "ruler_vt", "ruler_cwe", "ruler_fwe",
    "ruler_qa_squad", "ruler_qa_hotpot",
)  # fmt: skip
GROUPS = {"longbench": LONGBENCH, "longbench_e": LONGBENCH_E, "ruler": RULER}
TASKS = (*LONGBENCH, *LONGBENCH_E, *RULER)

# Package -> what of it must be importable.
_FOR_ALL = ("lm_eval",)
_FOR_RULER = ("wonderwords", "nltk", "scipy")


def expand(names: Sequence[str]) -> list[str]:
    """The tasks that are meant: groups replaced by their members, each task once."""
    return list(dict.fromkeys(task for name in names for task in GROUPS.get(name, (name,))))


def is_ruler(task: str) -> bool:
    """Whether a task is one of RULER's; the others are LongBench's."""
    return task in RULER


def longbench_file(task: str) -> str:
    """LongBench's own name of a task: ``longbench_trec_e`` is ``trec_e``."""
    return task.removeprefix("longbench_")


def metric_name(task: str) -> str:
    """How records and trackers call its score: ``longbench/trec_e``, ``ruler/vt``."""
    if is_ruler(task):
        return f"ruler/{task.removeprefix('ruler_')}"
    return f"longbench/{longbench_file(task)}"


def benchmark(metric: str) -> str:
    """The group that a metric belongs to, averages too; empty if it is no benchmark's."""
    kind, _, task = metric.partition("/")
    if kind not in GROUPS:
        return ""
    return f"{kind}_e" if kind == "longbench" and task.endswith("_e") else kind


def longbench_answer_tokens(task: str) -> int:
    """Tokens that LongBench's authors give an answer."""
    return _LONGBENCH_TOKENS[longbench_file(task).removesuffix("_e")]


def check(settings: HarnessConfig, window: int) -> None:
    """Refuses what cannot be asked, before any model loads.

    Args:
        settings: `eval.harness`.
        window: tokens of a prompt and its answer.

    Raises:
        ConfigError: an unknown task, no room for an answer, or a package that is not installed.
        DataError: a path that does not exist.
    """
    key = "eval.harness"
    for name in settings.tasks:
        if name not in GROUPS and name not in TASKS:
            known = [*GROUPS, *TASKS]
            raise ConfigError(
                f"{key}.tasks: there is no {name!r}{did_you_mean(name, known) or '.'} There are "
                f"the groups {', '.join(GROUPS)} and their tasks, as in {', '.join(known[3:6])}"
            )
    if not settings.enabled:
        return
    tasks = expand(settings.tasks)
    if not tasks:
        raise ConfigError(f"{key}.tasks is empty; name tasks or longbench, longbench_e, ruler")
    longbench = [task for task in tasks if not is_ruler(task)]
    for task in longbench:
        answer = longbench_answer_tokens(task)
        if window < answer + 2:
            raise ConfigError(
                f"{key}.tasks: {task} gives an answer {answer} tokens, which leaves nothing of a "
                f"window of {window} for the question; choose a longer length or leave it out"
            )
    if settings.longbench_path:
        if not longbench:
            raise ConfigError(f"{key}.longbench_path has no effect: no task is LongBench's")
        if not Path(settings.longbench_path).expanduser().exists():
            raise DataError(
                f"{key}.longbench_path: {settings.longbench_path} does not exist; give LongBench's "
                "data.zip or the folder that holds it"
            )
    elif longbench and not settings.longbench_hub_id:
        raise ConfigError(f"{key}: longbench_path and longbench_hub_id are empty; set one")
    _require_packages(tasks)


def _require_packages(tasks: Sequence[str]) -> None:
    wanted = list(_FOR_ALL)
    if any(is_ruler(task) for task in tasks):
        wanted += _FOR_RULER
    if any(longbench_file(task) in _CHINESE for task in tasks):
        wanted.append("jieba")
    missing = [name for name in wanted if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"eval.harness needs {', '.join(missing)}, which is not installed; run: "
            "pip install 'hylorada[harness]'"
        )
