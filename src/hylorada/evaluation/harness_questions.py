"""The questions of LongBench and RULER, from lm-eval's task definitions, made official.

lm-eval (https://github.com/EleutherAI/lm-evaluation-harness) holds the prompts and the settings of
generation; rows of LongBench are given (no network). Where its definitions depart from what the
authors run, they are put right here:

* LongBench (Bai et al., arXiv 2308.14508; `pred.py` and `config/` of its repository). triviaqa and
  samsum have an empty line before the question; passage_count and passage_retrieval_en end in a
  space, lcc and repobench-p in a line break. lm-eval stops trec, triviaqa, samsum and lsht at the
  first line break, so that an answer that begins with one is empty; officially trec, triviaqa and
  lsht go on and the first line that is not empty counts, and samsum stops at a line break but must
  not begin with one.
* RULER (Hsieh et al., arXiv 2404.06654). lm-eval sizes the needle tasks without the words that
  begin the answer, and frequent words without room for the answer, so that prompts do not fit the
  window and are cut. They are made again, shorter, until the longest fits.

No chat template is applied: this is how base models are asked.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import logging
import random
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from hylorada.errors import DataError, HyloradaError, in_one_line
from hylorada.settings.harness_tasks import is_ruler, longbench_file

_SUFFIXES = {
    "passage_count": " ", "passage_retrieval_en": " ", "lcc": "\n", "repobench-p": "\n",
}  # fmt: skip
_EMPTY_LINE = ("triviaqa", "samsum")
_NO_STOP = ("trec", "triviaqa", "lsht")
_SOURCES = {  # what lm-eval fetches for a task of RULER; the others are made up on the spot
    "essay": "the hub's data set baber/paul_graham_essays and nltk's punkt_tab",
    "ruler_qa_squad": "dev-v2.0.json of rajpurkar.github.io/SQuAD-explorer",
    "ruler_qa_hotpot": "hotpot_dev_distractor_v1.json of the hub's namlh2004/hotpotqa",
}
_ESSAYS = (
    "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multiquery", "niah_multivalue",
)  # fmt: skip
_CHATTY = ("lm_eval", "transformers", "datasets", "huggingface_hub")
_PATIENCE = 25.0  # seconds without an answer from a server
_SLACK = 48  # tokens by which samples of one size differ


@dataclass(frozen=True)
class Question:
    """One prompt of a task.

    Attributes:
        task: lm-eval's name.
        index: of the example in its task.
        prompt: before any cut.
        generation: settings of lm-eval's `generate_until`.
        document: what the score needs: answers and the like.
    """

    task: str
    index: int
    prompt: str
    generation: dict[str, Any]
    document: dict[str, Any] = field(repr=False)

    @property
    def answer_tokens(self) -> int:
        """The most tokens of an answer."""
        return self.generation["max_gen_toks"]


def questions_sha256(questions: Sequence[Question]) -> str:
    """Of all prompts, settings and answers."""
    text = json.dumps(
        [[q.task, q.index, q.prompt, q.generation, q.document] for q in questions], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()


def lm_eval_version() -> str:
    """The installed version."""
    return version("lm_eval")


def make_questions(
    tasks: Sequence[str],
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    tokenizer: Any,
    window: int,
    limit: int = 0,
    progress: Callable[[], None] | None = None,
) -> list[Question]:
    """The questions of each task, the same for the same arguments.

    Args:
        tasks: lm-eval's names.
        rows: of each task of LongBench, with the fields of its files (`input`, `context`,
            `answers`, `all_classes`, `length`).
        tokenizer: of the model; RULER sizes its texts by it.
        window: tokens of a prompt and its answer.
        limit: examples of a task, the first ones; 0: all.
        progress: called after each task; may raise to stop.

    Raises:
        DataError: a task of RULER that does not fit the window, or wants a download that fails.
    """
    questions = []
    for task in tasks:
        if is_ruler(task):
            questions += _ruler(task, tokenizer, window, limit)
        else:
            questions += _longbench(task, rows[task], tokenizer, limit)
        if progress is not None:
            progress()
    return questions


class _Rows(list):
    """Rows in the way that lm-eval looks at a data set."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        super().__init__(rows)
        self.features = dict.fromkeys(rows[0])


def _longbench(
    task: str, rows: Sequence[Mapping[str, Any]], tokenizer: Any, limit: int
) -> list[Question]:
    if not rows:
        raise DataError(f"{task}: the data has no rows for it")
    from lm_eval.api.task import ConfigurableTask

    file = longbench_file(task)
    name = file.removesuffix("_e")
    chosen = rows[:limit] if limit else rows
    documents = [{**row, "question": row["input"]} for row in chosen]
    with _quiet():
        settings = _without_functions(_task_folder("longbench") / f"{file}.yaml")
        prompt = settings["doc_to_text"]
        if name in _EMPTY_LINE:
            prompt = prompt.replace("{{context}}\n{{question}}", "{{context}}\n\n{{question}}")
        if not prompt.endswith(suffix := _SUFFIXES.get(name, "")):
            prompt += suffix
        built = ConfigurableTask(
            config={
                **{k: v for k, v in settings.items() if k != "tag"},
                "doc_to_text": prompt,
                "generation_kwargs": _generation(name, settings["generation_kwargs"], tokenizer),
                "custom_dataset": lambda **_: {"test": _Rows(documents)},
                # Scored by `longbench_metrics`.
                "process_results": lambda document, replies: {},
            }
        )
        built.build_all_requests()
        requests = built.instances
    kept = ("answers", "all_classes", "length")
    return [
        Question(task, i, request.args[0], request.args[1], {key: row[key] for key in kept})
        for i, (request, row) in enumerate(zip(requests, chosen, strict=True))
    ]


def _generation(name: str, given: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Greedy, up to the official number of tokens; see the top of this file for what differs."""
    settings = {"do_sample": False, "until": given["until"], "max_gen_toks": given["max_gen_toks"]}
    if name in _NO_STOP:
        settings["until"] = []
    if name == "samsum":
        # SentencePiece puts a space before it; WordPiece has no token for it.
        line_break = tokenizer.encode("\n", add_special_tokens=False)[-1:]
        settings |= {
            "until": [],
            "eos_token_id": [tokenizer.eos_token_id, *line_break],
            "min_new_tokens": 1,
        }
    return settings


def _without_functions(path: Path) -> dict[str, Any]:
    """A task's YAML, its functions left as names: lm-eval's metrics would want more packages."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    return yaml.load(path.read_text(encoding="utf-8"), Loader)


def _ruler(task: str, tokenizer: Any, window: int, limit: int) -> list[Question]:
    """The questions of a task of RULER, every prompt with its answer within the window."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        length = window
        for _ in range(4):
            try:
                questions = _built(task, tokenizer, folder, length)
            except HyloradaError:  # ours, or a signal
                raise
            except Exception as error:  # whatever its downloads and samplers meet
                source = _SOURCES.get("essay" if task in _ESSAYS else task)
                wanted = f"; it wants {source}" if source else ""
                first = in_one_line(error, 120)
                raise DataError(
                    f"{task}: lm-eval cannot make its questions for {length} tokens "
                    f"({type(error).__name__}: {first}){wanted}"
                ) from error
            excess = max(
                len(tokenizer(q.prompt, verbose=False)["input_ids"]) + q.answer_tokens - window
                for q in questions
            )
            if excess <= 0:
                return questions[:limit] if limit else questions
            length -= excess
    raise _too_small(task, window)


def _built(task: str, tokenizer: Any, folder: str, length: int) -> list[Question]:
    from lm_eval.tasks import TaskManager

    # As in a fresh process: this module draws from a generator of its own.
    sys.modules.pop("lm_eval.tasks.ruler.cwe_utils", None)
    with _quiet(), _seeded():
        _refuse_endless(task, tokenizer, length)
        manager = TaskManager(
            include_defaults=False,
            include_path=str(_task_folder("ruler")),
            metadata={"max_seq_lengths": [length], "tokenizer": folder},  # type: ignore[dict-item]
        )
        built: Any = manager.load([task])["tasks"][task]
        built.build_all_requests()
    kept = ("outputs", "max_length")
    if not all(request.doc["outputs"] for request in built.instances):
        raise _too_small(task, length)  # common words: none is left, and lm-eval goes on
    return [
        Question(task, i, request.args[0], request.args[1], {key: request.doc[key] for key in kept})
        for i, request in enumerate(built.instances)
    ]


def _refuse_endless(task: str, tokenizer: Any, length: int) -> None:
    """Three of lm-eval's samplers never end if their smallest sample does not fit."""

    def tokens(text: str) -> int:
        return len(tokenizer(text, verbose=False)["input_ids"]) + _SLACK

    room = True
    if task == "ruler_vt":
        module = importlib.import_module("lm_eval.tasks.ruler.vt_utils")
        example, answer = module.generate_input_output(5, 1, 4, is_icl=True)
        smallest, _ = module.generate_input_output(10, 1, 4)
        room = tokens(f"{example} {answer}") + 30 <= 500 and tokens(smallest) + 530 <= length
    elif task == "ruler_cwe":
        module = importlib.import_module("lm_eval.tasks.ruler.cwe_utils")
        room = tokens(module.TEMPLATE) + 120 <= length
    elif task == "ruler_fwe":
        module = importlib.import_module("lm_eval.tasks.ruler.fwe_utils")
        room = length >= 256 and 2 * tokens(module.TEMPLATE) <= length
    if not room:
        raise _too_small(task, length)


def _too_small(task: str, length: int) -> DataError:
    return DataError(
        f"{task}: its smallest sample does not fit a window of {length} tokens; use a longer one, "
        "or leave it out of eval.harness.tasks"
    )


def _task_folder(name: str) -> Path:
    import lm_eval.tasks

    return Path(next(iter(lm_eval.tasks.__path__))) / name


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """lm-eval's seeds in the global generators its samplers draw from; put back afterwards."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(0)
    np.random.seed(1234)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Only errors from lm-eval and from what it calls: it warns of what is meant here."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No chatter from lm-eval's builders, and no waiting for a server that does not answer."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE)
    try:
        with (
            quiet_libraries(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        socket.setdefaulttimeout(timeout)
