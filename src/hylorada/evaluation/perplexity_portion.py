"""The window of a perplexity that stands for all of them; see `evaluation.portion`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hylorada.config import PerplexityConfig
from hylorada.evaluation.perplexity import planned_windows
from hylorada.evaluation.portion import Cost


@dataclass
class OneDocument:
    """A text of one window."""

    documents: Sequence[Any]
    sha256: str = ""
    label: str = "a window"
    official_words: int | None = None


def longest_window(asked: Any, cost: Cost) -> tuple[OneDocument, PerplexityConfig, int, float]:
    """The longest window of the first convention: as a text, its settings, its tokens, its share.

    Args:
        asked: of the measurement `perplexity`.
        cost: of a forward pass.
    """
    plans = planned_windows(
        asked.text.documents, asked.settings, asked.window, cover=asked.cover,
        paragraphs=None if asked.paragraphs is None else asked.paragraphs.documents,
    )  # fmt: skip
    convention, (documents, plan) = next(iter(plans.items()))
    longest = max((one for batch in plan for one in batch), key=lambda one: one.length)
    document: Any = documents[longest.document]
    tokens = document.tokens[longest.start : longest.end + 1]
    windows = [one for _, plan in plans.values() for batch in plan for one in batch]
    whole = sum(cost(one.length, one.scored) for one in windows)
    alone = dataclasses.replace(
        asked.settings, conventions=[convention], max_blocks=0, max_tokens=0, stride=0
    )
    one_document = OneDocument([dataclasses.replace(document, tokens=tokens)])
    return one_document, alone, longest.length, cost(longest.length) / whole
