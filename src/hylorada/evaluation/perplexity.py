"""Perplexity: exp(sum of negative log-likelihoods / number of scored tokens), by convention.

Sums are kept in float64 and divided once. The mean of per-document or per-batch perplexities would
be another, larger number; only the convention `paper` takes it, to compare with a published table.
Which tokens are scored, and with how much context: `windows`.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from hylorada.architecture.labels import IGNORE
from hylorada.config import PerplexityConfig
from hylorada.errors import ConfigError, DataError, DivergedError
from hylorada.evaluation.perplexity_result import Bucket, DocumentScore, PerplexityResult
from hylorada.evaluation.scoring import evaluation_mode, token_nll
from hylorada.evaluation.windows import (
    Window,
    batches,
    block_limit,
    effective_stride,
    plan_windows,
    scorable,
)
from hylorada.process.ranks import ALONE, Ranks
from hylorada.records.outcome import is_out_of_memory


class TokenDocument(Protocol):
    """What `evaluate_perplexity` needs of a tokenised document."""

    @property
    def name(self) -> str:
        """Where the text comes from."""

    @property
    def tokens(self) -> np.ndarray:
        """Token ids, one dimension, any integer type; a memory map will do."""

    @property
    def words(self) -> int:
        """Words of the text, by its data set's convention."""

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of the text."""


@dataclass
class Progress:
    """What the callback of `evaluate_perplexity` gets after each batch.

    Raising from the callback ends the evaluation cleanly. A later call that is given the value of
    `state()` continues it, with the same sums to the last bit.

    Attributes:
        convention: the convention under way.
        done: tokens scored so far under it.
        total: tokens it will score.
        sum_nll: nats so far.
        state: makes the resumable state of all conventions, as plain values.
    """

    convention: str
    done: int
    total: int
    sum_nll: float
    state: Callable[[], dict[str, Any]]


@dataclass
class _Sums:
    """Running sums of one convention: everything that an evaluation needs to be continued."""

    plan: str  # hash of the windows
    window: int
    documents: int
    batches_done: int = 0
    position_nll: np.ndarray = field(init=False)
    position_tokens: np.ndarray = field(init=False)
    document_nll: np.ndarray = field(init=False)
    document_tokens: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.position_nll = np.zeros(self.window)
        self.position_tokens = np.zeros(self.window, dtype=np.int64)
        self.document_nll = np.zeros(self.documents)
        self.document_tokens = np.zeros(self.documents, dtype=np.int64)

    def add(self, batch: Sequence[Window], nll_BT: np.ndarray) -> None:
        for item, nll_T in zip(batch, nll_BT, strict=True):
            first = item.first_target - 1 - item.start
            scored = nll_T[first:]
            self.position_nll[first : item.length] += scored
            self.position_tokens[first : item.length] += 1
            self.document_nll[item.document] += scored.sum()
            self.document_tokens[item.document] += len(scored)
        self.batches_done += 1

    def to_dict(self) -> dict[str, Any]:
        arrays = ("position_nll", "position_tokens", "document_nll", "document_tokens")
        return {
            "plan": self.plan,
            "batches_done": self.batches_done,
            **{name: getattr(self, name).tolist() for name in arrays},
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        if saved["plan"] != self.plan:
            raise ConfigError(
                "evaluation state: it was saved for other documents or settings; delete it"
            )
        self.batches_done = saved["batches_done"]
        self.position_nll = np.array(saved["position_nll"], dtype=np.float64)
        self.position_tokens = np.array(saved["position_tokens"], dtype=np.int64)
        self.document_nll = np.array(saved["document_nll"], dtype=np.float64)
        self.document_tokens = np.array(saved["document_tokens"], dtype=np.int64)


def evaluate_perplexity(
    model: nn.Module,
    documents: Sequence[TokenDocument],
    settings: PerplexityConfig,
    window: int,
    *,
    cover: int = 0,
    paragraphs: Sequence[TokenDocument] | None = None,
    words: int | None = None,
    chunk: int = 512,
    autocast_dtype: torch.dtype | None = None,
    progress: Callable[[Progress], None] | None = None,
    state: Mapping[str, Any] | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, PerplexityResult]:
    """Perplexity of a model on a split, under each convention of the settings.

    Args:
        model: a causal language model, or a PeftModel around one; its training flags are put back.
        documents: the split; a window never crosses from one document to the next.
        settings: conventions, stride, how much of the split, batch size.
        window: tokens of context; the same for every arm that is compared.
        cover: the run's window, for a model that is measured in another one (the untouched base in
            its own); blocks of the run's window then decide which tokens are scored, and the stride
            is half of `window`, since `settings.stride` belongs to the run's. 0: `window` is it.
        paragraphs: of the split; the documents of the convention `paper`.
        words: of the split, where its authors published a number; None: the sum over documents.
        chunk: scored tokens whose logits exist at one time.
        autocast_dtype: run under autocast with this type; None: the model's own precision.
        progress: called after each batch; may raise to stop.
        state: `Progress.state()` of an earlier, interrupted call with the same arguments.
        ranks: the processes that the batches are dealt out to; each gets all results.

    Returns:
        Convention -> result.

    Raises:
        DataError: no document has two tokens.
        DivergedError: a negative log-likelihood is not finite.
        ConfigError: an unknown convention, an impossible stride, a part of a split for `word` or
            `paper`, or `paper` without paragraphs.
    """
    stride = 0 if cover else settings.stride
    sums: dict[str, _Sums] = {}
    plans = planned_windows(documents, settings, window, cover=cover, paragraphs=paragraphs)
    for convention, (text, plan) in plans.items():
        sums[convention] = _Sums(_plan_hash(plan), window, len(text))
        if state and convention in state:
            sums[convention].restore(state[convention])

    def snapshot() -> dict[str, Any]:
        return {name: each.to_dict() for name, each in sums.items() if each.batches_done}

    results = {}
    for convention, (text, plan) in plans.items():
        running = sums[convention]
        total = sum(item.scored for batch in plan for item in batch)
        with evaluation_mode(model, autocast_dtype) as device:
            nll_of = functools.partial(_nll, model, text, chunk=chunk, device=device)
            left = plan[running.batches_done :]
            for batch, nll_BT in zip(left, ranks.in_order(left, nll_of), strict=True):
                running.add(batch, nll_BT)
                if not np.isfinite(nll_BT).all():
                    names = ", ".join(sorted({text[item.document].name for item in batch}))
                    raise DivergedError(f"evaluation: the loss is not finite on {names}")
                if progress is not None:
                    done = int(running.document_tokens.sum())
                    nll = float(running.document_nll.sum())
                    progress(Progress(convention, done, total, nll, snapshot))
        results[convention] = _result(running, text, convention, settings, stride, words)
    if "word" in settings.conventions and "word" not in results:
        results["word"] = replace(results["sliding"], convention="word")
    return {convention: results[convention] for convention in settings.conventions}


def planned_windows(
    documents: Sequence[TokenDocument],
    settings: PerplexityConfig,
    window: int,
    *,
    cover: int = 0,
    paragraphs: Sequence[TokenDocument] | None = None,
) -> dict[str, tuple[Sequence[TokenDocument], list[list[Window]]]]:
    """For each convention, its text and its windows in batches.

    Without `word` where `sliding` is asked for too, which has the same windows. Arguments and
    errors are those of `evaluate_perplexity`.
    """
    plans = {}
    for convention in settings.conventions:
        text, limit = scored_text(convention, documents, settings, cover or window, paragraphs)
        if convention == "word" and "sliding" in settings.conventions:
            continue
        windows = plan_windows(
            [len(document.tokens) for document in text], convention, window,
            stride=0 if cover else settings.stride, max_blocks=limit, cover=cover,
        )  # fmt: skip
        plans[convention] = text, batches(windows, settings.batch_size)
    return plans


def scored_text(
    convention: str,
    documents: Sequence[TokenDocument],
    settings: PerplexityConfig,
    window: int,
    paragraphs: Sequence[TokenDocument] | None = None,
) -> tuple[Sequence[TokenDocument], int]:
    """The text that a convention scores, and the most blocks of it that are scored (0: all).

    Args:
        convention: one of `settings.conventions`.
        documents: the split.
        settings: how much of the split.
        window: of the run, in tokens.
        paragraphs: of the split; the documents of the convention `paper`.

    Raises:
        DataError: no document has two tokens.
        ConfigError: a part of a split for `word` or `paper`, or `paper` without paragraphs.
    """
    text = documents
    if convention == "paper":
        if paragraphs is None:
            raise ConfigError("eval.perplexity.conventions: paper needs paragraphs")
        text = paragraphs
    lengths = [len(document.tokens) for document in text]
    if not any(length > 1 for length in lengths):
        unit = "paragraph" if convention == "paper" else "document"
        raise DataError(
            f"evaluation: split {settings.split!r} has no {unit} of at least two tokens "
            f"({len(lengths)} {unit}s); choose another split or data set"
        )
    limit = block_limit(lengths, window, settings.max_tokens, settings.max_blocks)
    if limit and convention in ("word", "paper"):
        raise ConfigError(
            f"eval.perplexity.conventions: {convention} is a number of the whole split, of "
            f"{scorable(lengths):,} tokens; set eval.perplexity.max_tokens=0 and "
            f"eval.perplexity.max_blocks=0, or leave {convention} out"
        )
    return text, limit


def _plan_hash(plan: list[list[Window]]) -> str:
    text = ";".join(
        ",".join(f"{w.document}:{w.start}:{w.end}:{w.first_target}" for w in batch)
        for batch in plan
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _nll(
    model: nn.Module,
    documents: Sequence[TokenDocument],
    batch: list[Window],
    chunk: int,
    device: torch.device,
) -> np.ndarray:
    """The negative log-likelihoods of a batch, float64 [B, T]; 0 where nothing is scored."""
    # [B, T + 1]: the input and, one further, the last target.
    tokens = np.stack(
        [np.asarray(documents[w.document].tokens[w.start : w.end + 1]) for w in batch]
    )
    ids: Tensor = torch.from_numpy(tokens.astype(np.int64)).to(device)
    targets_BT = ids[:, 1:].clone()
    for row, item in enumerate(batch):
        targets_BT[row, : item.first_target - 1 - item.start] = IGNORE
    nll_BT = _nll_that_fits(model, ids[:, :-1], targets_BT, chunk)
    return nll_BT.double().cpu().numpy()


def _nll_that_fits(model: nn.Module, ids_BT: Tensor, targets_BT: Tensor, chunk: int) -> Tensor:
    """`token_nll`; where memory runs out, of half of the rows at a time."""
    half = (len(ids_BT) + 1) // 2
    try:
        return token_nll(model, ids_BT, targets_BT, chunk=chunk)
    except Exception as error:
        if half == len(ids_BT) or not is_out_of_memory(error):
            raise
    parts = zip(ids_BT.split(half), targets_BT.split(half), strict=True)
    return torch.cat([_nll_that_fits(model, ids, targets, chunk) for ids, targets in parts])


def _result(
    sums: _Sums,
    documents: Sequence[TokenDocument],
    convention: str,
    settings: PerplexityConfig,
    stride: int,
    words: int | None,
) -> PerplexityResult:
    could_be = scorable([len(document.tokens) for document in documents])
    tokens = int(sums.document_tokens.sum())
    whole = tokens == could_be
    count = min(settings.position_buckets, sums.window)
    edges = [i * sums.window // count for i in range(count + 1)]
    return PerplexityResult(
        convention=convention,
        window=sums.window,
        stride=effective_stride(sums.window, stride) if convention in ("sliding", "word") else None,
        split=settings.split,
        sum_nll=float(sums.document_nll.sum()),
        tokens=tokens,
        scorable_tokens=could_be,
        words=(words or sum(document.words for document in documents)) if whole else None,
        bytes=sum(document.bytes for document in documents) if whole else None,
        by_position=[
            Bucket(
                start,
                end,
                float(sums.position_nll[start:end].sum()),
                int(sums.position_tokens[start:end].sum()),
            )
            for start, end in itertools.pairwise(edges)
        ],
        by_document=[
            DocumentScore(document.name, float(nll), int(scored))
            for document, nll, scored in zip(
                documents, sums.document_nll, sums.document_tokens, strict=True
            )
            if scored
        ],
    )
