"""Asking a model in memory through lm-eval, with prompts that are too long cut in the middle.

lm-eval cuts a prompt on the left, which takes away the instruction at its beginning. LongBench's
`pred.py` keeps the first and the last half of the tokens, since both ends hold instructions; so do
we. (It then decodes the halves and encodes the text again; here the tokens themselves go on, which
cannot exceed the window.) How many prompts were cut is counted.

One prompt at a time: nothing is padded, so that positions are those of training.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hylorada.errors import ConfigError
from hylorada.evaluation.continuations import closing_tokens
from hylorada.evaluation.harness_questions import Question, quiet_libraries
from hylorada.evaluation.scoring import evaluation_mode
from hylorada.process.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Reply:
    """What a model said to a question.

    Attributes:
        task: lm-eval's name.
        index: of the example in its task.
        text: up to the end token or the longest answer.
        prompt_tokens: before any cut.
        cut: whether the prompt was cut.
    """

    task: str
    index: int
    text: str
    prompt_tokens: int
    cut: bool


def cut_middle(ids: Sequence[int], room: int) -> list[int]:
    """The first and the last `room // 2` tokens of a text that has more than `room`."""
    if len(ids) <= room:
        return list(ids)
    half = room // 2
    assert half > 0, room
    return [*ids[:half], *ids[-half:]]


def ask(
    model: nn.Module,
    tokenizer: Any,
    questions: Sequence[Question],
    window: int,
    *,
    autocast_dtype: torch.dtype | None = None,
    progress: Callable[[list[Reply], int], None] | None = None,
    done: Sequence[Reply] = (),
    ranks: Ranks = ALONE,
) -> list[Reply]:
    """Ask every question, by greedy generation.

    Args:
        model: a causal language model of transformers, or a PeftModel around one.
        tokenizer: its tokenizer.
        questions: see `benchmark_questions`.
        window: tokens of a prompt and its answer.
        autocast_dtype: run under autocast with this type.
        progress: called after each question with all replies so far and the number of questions;
            may raise to stop.
        done: replies of an earlier, interrupted call with the same questions, not asked again.
        ranks: the processes that the questions are dealt out to; each gets all replies.

    Raises:
        ConfigError: a window that leaves no room for a prompt, or a tokenizer without an end.
    """
    check_questions(tokenizer, questions, window)
    replies = list(done)
    known = {(reply.task, reply.index) for reply in replies}
    with quiet_libraries(), evaluation_mode(model, autocast_dtype):
        lm = language_model(model, tokenizer, window, autocast_dtype)

        def reply(question: Question) -> list[Any]:
            return [lm.reply(question), *lm.last_prompt]

        left = [each for each in questions if (each.task, each.index) not in known]
        for question, said in zip(left, ranks.in_order(left, reply), strict=True):
            replies.append(Reply(question.task, question.index, *said))
            if progress is not None:
                progress(replies, len(questions))
    return replies


def check_questions(tokenizer: Any, questions: Sequence[Question], window: int) -> None:
    """Refuse what cannot be asked, before the first question is.

    Args:
        tokenizer: of the model.
        questions: see `benchmark_questions`; may be empty, to look at the tokenizer alone.
        window: tokens of a prompt and its answer.

    Raises:
        ConfigError: a window that leaves no room for a prompt, or a tokenizer without an end.
    """
    for question in questions:
        if window < question.answer_tokens + 2:
            raise ConfigError(
                f"{question.task}: an answer of {question.answer_tokens} tokens leaves no room in "
                f"a window of {window}; use a longer one"
            )
    if tokenizer.eos_token_id is None:
        raise ConfigError("the tokenizer has no end token, and lm-eval needs one to stop at")


def language_model(
    model: nn.Module, tokenizer: Any, window: int, autocast_dtype: torch.dtype | None = None
) -> Any:
    """lm-eval's `HFLM` around a model in memory; see the top of this file."""
    return _hflm()(
        pretrained=_InMemory(model),
        tokenizer=copy.deepcopy(tokenizer),  # it is given a padding token
        max_length=window,
        batch_size=1,
        mixed_precision_dtype=autocast_dtype,
    )


class _InMemory:
    """What lm-eval needs of a model.

    It would tie the weights of a module that it is given anew, and leave it in evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.config, self.device = model, model.config, model.device

    def generate(self, **settings: Any) -> Tensor:
        return self.model.generate(**settings)


@functools.cache
def _hflm() -> type[Any]:
    """The class, made when it is needed: lm-eval is an extra, and takes seconds to import."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    class MiddleCutLM(HFLM):
        last_prompt: tuple[int, bool]

        def reply(self, question: Question) -> str:
            request = Instance(
                "generate_until", question.document, (question.prompt, question.generation), 0
            )
            return self.generate_until([request], disable_tqdm=True)[0]

        def tok_batch_encode(
            self,
            strings: list[str],
            padding_side: str = "left",
            left_truncate_len: int | None = None,
            truncation: bool = False,
        ) -> tuple[Tensor, Tensor]:
            """Token ids and attention mask of one prompt, [1, T]; T is at most what it is told."""
            (text,) = strings
            ids = list(self.tok_encode(text))
            # Some tokenizers close every text; what the text itself ends with stays.
            closing = closing_tokens(self.tokenizer)
            if ids[len(ids) - len(closing) :] == closing and not text.endswith(
                self.tokenizer.eos_token
            ):
                ids = ids[: len(ids) - len(closing)]
            assert left_truncate_len is not None
            kept = cut_middle(ids, left_truncate_len)
            self.last_prompt = len(ids), len(kept) < len(ids)
            ids_1T = torch.tensor([kept])
            return ids_1T, torch.ones_like(ids_1T)

    return MiddleCutLM
