"""What more context is worth: the loss of the same target tokens with more and more before them.

For each place in the split the same few hundred tokens are predicted with 0.5K, 1K, 2K, ... tokens
of context in front. Only the context differs, so a falling curve means that the model uses it, and
a flat or rising one that it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from hylorada.architecture.labels import IGNORE
from hylorada.config import ContextGainConfig
from hylorada.errors import ConfigError, DataError, DivergedError
from hylorada.evaluation.perplexity import TokenDocument
from hylorada.evaluation.perplexity_result import perplexity
from hylorada.evaluation.scoring import evaluation_mode, token_nll
from hylorada.process.ranks import ALONE, Ranks
from hylorada.settings.context_lengths import fitting_contexts
from hylorada.statistics.clustered import clustered_mean


@dataclass(frozen=True)
class ContextScore:
    """The loss of the targets with one amount of context.

    `gain` is the loss with the shortest context less this one, in nats per token. Its 95 % interval
    is clustered by document, since places of one document gain alike; None for the shortest context
    itself and below three documents. `by_document` holds name, places and mean gain of each.
    """

    context: int
    sum_nll: float
    tokens: int
    gain: float
    gain_low: float | None
    gain_high: float | None
    by_document: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """With the perplexity, without the documents."""
        found = {**vars(self), "ppl": perplexity(self.sum_nll, self.tokens)}
        del found["by_document"]
        return found


def evaluate_context_gain(
    model: nn.Module,
    documents: Sequence[TokenDocument],
    window: int,
    settings: ContextGainConfig,
    *,
    autocast_dtype: torch.dtype | None = None,
    progress: Callable[[list[list[float]], int], None] | None = None,
    done: Sequence[Sequence[float]] = (),
    ranks: Ranks = ALONE,
) -> list[ContextScore]:
    """Score the same tokens with every amount of context.

    Args:
        model: a causal language model, or a PeftModel around one.
        documents: the split; only those that hold the longest context and the targets are used.
        window: the most input tokens. Contexts beyond the longest document are left out.
        settings: contexts, targets at each place, and places, which are spread evenly over the
            documents' non-overlapping stretches; fewer if there are no more.
        autocast_dtype: run under autocast with this type.
        progress: called after each place with the sums of all places so far, nats, one for each
            context, and the number of places; may raise to stop.
        done: sums of an earlier, interrupted call with the same arguments; those places are not
            scored again.
        ranks: the processes that the places are dealt out to; each gets all sums.

    Raises:
        ConfigError: fewer than two contexts fit the window.
        DataError: no document is long enough.
    """
    targets = settings.targets
    fitting = contexts_that_fit(documents, window, settings)
    stretch = fitting[-1] + targets
    chosen = places(documents, stretch, settings.places)
    count = len(chosen)
    nll_PC = np.zeros((count, len(fitting)))
    nll_PC[: len(done)] = np.asarray(done).reshape(len(done), len(fitting))
    with evaluation_mode(model, autocast_dtype) as device:

        def score(place: tuple[int, int]) -> list[float]:
            number, first = place
            tokens = np.asarray(documents[number].tokens[first : first + stretch])
            ids_T = torch.from_numpy(tokens.astype(np.int64)).to(device)
            sums = []
            for context in fitting:
                part_1T = ids_T[None, fitting[-1] - context :]
                targets_1T = part_1T[:, 1:].clone()
                targets_1T[:, : context - 1] = IGNORE
                nll_1T = token_nll(model, part_1T[:, :-1], targets_1T)
                sums.append(float(nll_1T.double().sum()))
            return sums

        found = ranks.in_order(chosen[len(done) :], score)
        for p, sums_C in enumerate(found, len(done)):
            number, nll_PC[p] = chosen[p][0], sums_C
            if not np.isfinite(nll_PC[p]).all():
                name = documents[number].name
                raise DivergedError(f"context gain: the loss is not finite on {name}")
            if progress is not None:
                progress(nll_PC[: p + 1].tolist(), count)
    names_P = [(number, documents[number].name) for number, _ in chosen]
    return [_score(nll_PC, c, context, targets, names_P) for c, context in enumerate(fitting)]


def places(documents: Sequence[TokenDocument], stretch: int, most: int) -> list[tuple[int, int]]:
    """Where targets are scored: number of the document and first token of the stretch.

    Args:
        documents: the split.
        stretch: tokens of the longest context and the targets.
        most: places, spread evenly over all that there are.
    """
    starts = [
        (number, first)
        for number, document in enumerate(documents)
        for first in range(0, len(document.tokens) - stretch + 1, stretch)
    ]
    count = min(most, len(starts))
    return [starts[(2 * i + 1) * len(starts) // (2 * count)] for i in range(count)]


def contexts_that_fit(
    documents: Sequence[TokenDocument], window: int, settings: ContextGainConfig
) -> list[int]:
    """The contexts that are measured, in tokens: those that fit the window and a document.

    Raises:
        ConfigError: fewer than two contexts fit the window.
        DataError: no document is long enough.
    """
    targets = settings.targets
    if len(fitting_contexts(settings, window)) < 2:
        raise ConfigError(
            f"context gain: contexts {settings.contexts} with {targets} targets do not fit the "
            f"window of {window} tokens at least twice; use fewer targets or shorter contexts"
        )
    longest = max((len(document.tokens) for document in documents), default=0)
    fitting = [c for c in fitting_contexts(settings, window) if c + targets <= longest]
    if len(fitting) < 2:
        raise DataError(
            f"context gain: the longest document has {longest} tokens, too few for two of the "
            f"contexts {settings.contexts} and {targets} targets; use shorter contexts"
        )
    return fitting


def _score(
    nll_PC: np.ndarray, c: int, context: int, targets: int, names_P: Sequence[tuple[int, str]]
) -> ContextScore:
    gains_P = (nll_PC[:, 0] - nll_PC[:, c]) / targets
    of_document: dict[tuple[int, str], list[float]] = {}
    for name, gain in zip(names_P, gains_P.tolist(), strict=True):
        of_document.setdefault(name, []).append(gain)
    by_document = [
        {"name": name, "places": len(gains), "gain": sum(gains) / len(gains)}
        for (_, name), gains in of_document.items()
    ]
    sums_1D = np.array([[sum(gains) for gains in of_document.values()]])
    found = clustered_mean(sums_1D, np.array([len(gains) for gains in of_document.values()]))
    low, high = (found.interval() if c else None) or (None, None)
    nll, tokens = float(nll_PC[:, c].sum()), len(gains_P) * targets
    return ContextScore(context, nll, tokens, float(gains_P.mean()), low, high, by_document)
