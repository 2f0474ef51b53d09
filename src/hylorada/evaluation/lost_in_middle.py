"""Whether a model finds what lies in the middle of its context: accuracy by depth.

Ranked accuracy asks whether the right value is the most likely of all that stand in the context
(chance 1 / candidates); it tells small base models apart where generation is at the floor.
Generated accuracy is the published score. Every arm is asked the same prompts, and each example at
every depth, so that depths are compared within examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from hylorada.errors import ConfigError, DataError, DivergedError
from hylorada.evaluation.candidates import Prefix
from hylorada.evaluation.continuations import EncodedPrompt, PromptEncoder
from hylorada.evaluation.retrieval_prompts import (
    RetrievalPrompt,
    generate_key_values,
    passkey_prompts,
)
from hylorada.evaluation.retrieval_scores import (
    best_subspan_em,
    contains_value,
    rank_credit,
)
from hylorada.evaluation.scoring import evaluation_mode
from hylorada.process.ranks import ALONE, Ranks
from hylorada.statistics.shares import (
    Mean,
    clustered_difference,
    clustered_share,
    wilson_interval,
)


@dataclass(frozen=True)
class Answer:
    """What came of one prompt; None where it was not asked for."""

    example: int
    depth: float
    candidates: int
    prompt_tokens: int
    ranked: float | None
    generated: float | None


@dataclass(frozen=True)
class DepthScore:
    """The share of right answers at one depth."""

    depth: float
    prompts: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class RetrievalResult:
    """Accuracy by depth under one way of scoring.

    Attributes:
        scoring: "ranked" or "generated".
        chance: accuracy of a model that sees no difference; 0 for generation.
        window: the most tokens that a prompt and its answer may have.
        prompt_tokens: the shortest and the longest prompt.
        by_depth: from the first place to the last.
        by_example: for each example its credit at each depth, in the order of `by_depth`; empty if
            some example was not asked at every depth.
        low: lower end of the 95 % interval of the accuracy, clustered by example; None below three.
        high: upper end.
        middle_gap: accuracy at the two ends less accuracy between them; None below three depths.
        middle_gap_low: lower end of its 95 % interval, clustered by example; None below three.
        middle_gap_high: upper end.
    """

    scoring: str
    chance: float
    window: int
    prompt_tokens: tuple[int, int]
    by_depth: list[DepthScore]
    by_example: list[list[float]]
    low: float | None
    high: float | None
    middle_gap: float | None
    middle_gap_low: float | None
    middle_gap_high: float | None

    @property
    def accuracy(self) -> float:
        """Right answers over all prompts."""
        total = sum(score.prompts for score in self.by_depth)
        return sum(score.accuracy * score.prompts for score in self.by_depth) / total

    def to_dict(self) -> dict[str, Any]:
        """The metric as it stands in result.json."""
        return {
            "value": self.accuracy,
            "low": self.low,
            "high": self.high,
            "scoring": self.scoring,
            "chance": self.chance,
            "window": self.window,
            "prompt_tokens": list(self.prompt_tokens),
            "by_depth": [vars(score).copy() for score in self.by_depth],
            "by_example": self.by_example,
            "middle_gap": self.middle_gap,
            "middle_gap_low": self.middle_gap_low,
            "middle_gap_high": self.middle_gap_high,
        }


def evaluate_retrieval(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[RetrievalPrompt],
    window: int,
    *,
    scorings: Sequence[str] = ("ranked",),
    max_new_tokens: int = 0,
    autocast_dtype: torch.dtype | None = None,
    progress: Callable[[list[Answer], int], None] | None = None,
    done: Sequence[Answer] = (),
    ranks: Ranks = ALONE,
) -> dict[str, RetrievalResult]:
    """Ask every prompt.

    Args:
        model: a causal language model, or a PeftModel around one.
        tokenizer: of transformers.
        prompts: see `retrieval_prompts`.
        window: tokens; a prompt that does not fit with its answer is refused, never cut.
        scorings: "ranked" (needs candidates), "generated" or both.
        max_new_tokens: of a generated answer; 0: as many as the longest candidate has, and two.
        autocast_dtype: run under autocast with this type.
        progress: called after each prompt with all answers so far and the number of prompts; may
            raise to stop.
        done: answers of an earlier, interrupted call with the same prompts; they are not asked
            again.
        ranks: the processes that the prompts are dealt out to; each gets all answers.

    Returns:
        Scoring -> result.

    Raises:
        DataError: no prompts, one that is too long, or one without candidates.
        ConfigError: an unknown scoring, or no length for answers without candidates.
        DivergedError: a likelihood is not finite.
    """
    encoded = encode_prompts(tokenizer, prompts, window, scorings, max_new_tokens)
    answers = list(done)
    asked = {(answer.example, answer.depth) for answer in answers}
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    with evaluation_mode(model, autocast_dtype):

        def ask(item: tuple[RetrievalPrompt, EncodedPrompt]) -> list[float | None]:
            prompt, tokens = item
            prefix = Prefix(model, tokens.ids[: tokens.shared])
            ranked = generated = None
            if "ranked" in scorings:
                ranked = _ranked(prefix, tokens, prompt)
            if "generated" in scorings:
                if tokens.shared < len(tokens.ids):
                    prefix = Prefix(model, tokens.ids)
                room = max_new_tokens or max(map(len, tokens.candidates)) + 2
                text = tokenizer.decode(prefix.greedy(room, end))
                generated = (
                    contains_value(text, prompt.answer)
                    if tokens.candidates
                    else best_subspan_em(text, prompt.answer.split("\n"))
                )
            return [ranked, generated]

        left = [
            (prompt, tokens)
            for prompt, tokens in zip(prompts, encoded, strict=True)
            if (prompt.example, prompt.depth) not in asked
        ]
        found = ranks.in_order(left, ask)
        for (prompt, tokens), (ranked, generated) in zip(left, found, strict=True):
            count, length = len(tokens.candidates), len(tokens.ids)
            answers.append(Answer(prompt.example, prompt.depth, count, length, ranked, generated))
            if progress is not None:
                progress(answers, len(prompts))
    return {scoring: _summary(answers, scoring, window) for scoring in scorings}


def _ranked(prefix: Prefix, tokens: EncodedPrompt, prompt: RetrievalPrompt) -> float:
    """The credit for the likelihoods of a prompt's candidates."""
    # What the tokenizer makes the same of is scored once: a tie, whatever the batch's rounding.
    distinct = dict.fromkeys(map(tuple, tokens.candidates))
    scores = prefix.log_likelihoods(list(distinct))
    if not np.isfinite(scores).all():
        raise DivergedError(f"retrieval: a likelihood is not finite on example {prompt.example}")
    likelihoods = dict(zip(distinct, scores.tolist(), strict=True))
    return rank_credit([likelihoods[tuple(c)] for c in tokens.candidates], prompt.gold)


def encode_prompts(
    tokenizer: Any,
    prompts: Sequence[RetrievalPrompt],
    window: int,
    scorings: Sequence[str] = ("ranked",),
    max_new_tokens: int = 0,
) -> list[EncodedPrompt]:
    """Token ids of each prompt and of its candidates; arguments as of `evaluate_retrieval`.

    Raises:
        DataError: no prompts, one that is too long, or one without candidates.
        ConfigError: an unknown scoring, or no length for answers without candidates.
    """
    unknown = set(scorings) - {"ranked", "generated"}
    if unknown or not scorings:
        raise ConfigError(f"retrieval: scorings {list(scorings)}; use ranked, generated or both")
    if not prompts:
        raise DataError("retrieval: no prompts")
    encoder = PromptEncoder(tokenizer)
    encoded = [encoder.prompt(prompt.text, prompt.candidates) for prompt in prompts]
    for prompt, tokens in zip(prompts, encoded, strict=True):
        if "ranked" in scorings and len(tokens.candidates) < 2:
            raise DataError(f"retrieval: example {prompt.example} has no candidates to rank")
        if not max_new_tokens and "generated" in scorings and not tokens.candidates:
            raise ConfigError("retrieval: say max_new_tokens for prompts without candidates")
        if tokens.tokens(max_new_tokens) > window:
            answer = tokens.tokens(max_new_tokens) - len(tokens.ids)
            raise DataError(
                f"retrieval: example {prompt.example} has {len(tokens.ids)} tokens and an answer "
                f"of {answer}, more than the window of {window}; use fewer keys or a longer window"
            )
    return encoded


def keys_that_fit(tokenizer: Any, window: int, form: str = "uuid", seed: int = 0) -> int:
    """How many key-value pairs fill a window together with the question and the answer.

    One token in fifty is kept free, since examples differ a little in length.

    Raises:
        DataError: not even two pairs fit.
    """

    def prompts(keys: int) -> list[RetrievalPrompt]:
        examples = generate_key_values(keys, 4, seed=seed, form=form)
        return [example.prompt(0.5, number) for number, example in enumerate(examples)]

    return _largest(tokenizer, window, prompts, 2, f"two {form} pairs")


def lines_that_fit(tokenizer: Any, window: int, seed: int = 0) -> int:
    """How many lines of filler around a passkey fill a window; see `keys_that_fit`.

    Raises:
        DataError: not even two lines fit.
    """

    def prompts(lines: int) -> list[RetrievalPrompt]:
        return passkey_prompts(lines, 4, depths=(0.5,), seed=seed)

    return _largest(tokenizer, window, prompts, 2, "two lines around a passkey")


def _largest(
    tokenizer: Any,
    window: int,
    prompts: Callable[[int], list[RetrievalPrompt]],
    least: int,
    what: str,
) -> int:
    """The largest number of items whose prompts fit, by bisection."""
    room = window - window // 50
    encoder = PromptEncoder(tokenizer)

    def fits(items: int) -> bool:
        encoded = (encoder.prompt(p.text, p.candidates) for p in prompts(items))
        return all(tokens.tokens() <= room for tokens in encoded)

    if not fits(least):
        raise DataError(f"retrieval: not even {what} fit a window of {window} tokens")
    low, high = least, 2 * least
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _summary(answers: Sequence[Answer], scoring: str, window: int) -> RetrievalResult:
    credit: dict[float, dict[int, float]] = {}
    for answer in answers:
        value = answer.ranked if scoring == "ranked" else answer.generated
        assert value is not None
        credit.setdefault(answer.depth, {})[answer.example] = value
    depths = sorted(credit)
    by_depth = []
    for depth in depths:
        values = list(credit[depth].values())
        low, high = wilson_interval(sum(values), len(values))
        by_depth.append(DepthScore(depth, len(values), sum(values) / len(values), low, high))
    chance = float(np.mean([1 / a.candidates for a in answers])) if scoring == "ranked" else 0.0
    lengths = [answer.prompt_tokens for answer in answers]
    examples = sorted(set.union(*(set(by_example) for by_example in credit.values())))
    whole = all(len(by_example) == len(examples) for by_example in credit.values())
    by_example = [[credit[depth][e] for depth in depths] for e in examples] if whole else []
    share = clustered_share(np.mean(by_example, axis=1)[None]) if whole else Mean(0.0, None, None)
    return RetrievalResult(
        scoring, chance, window, (min(lengths), max(lengths)), by_depth, by_example, share.low,
        share.high, *_middle_gap(credit, depths),
    )  # fmt: skip


def _middle_gap(
    credit: dict[float, dict[int, float]], depths: Sequence[float]
) -> tuple[float | None, float | None, float | None]:
    """Edges minus middle, paired within examples, with the ends of its interval."""
    if len(depths) < 3:
        return None, None, None
    common = set.intersection(*(set(by_example) for by_example in credit.values()))
    if not common:
        return None, None, None
    gaps = [
        (credit[depths[0]][e] + credit[depths[-1]][e]) / 2
        - sum(credit[d][e] for d in depths[1:-1]) / (len(depths) - 2)
        for e in sorted(common)
    ]
    found = clustered_difference(np.array([gaps]))
    return float(np.mean(gaps)), found.low, found.high
