"""Which tokens are scored, and with how much context: the conventions behind a perplexity.

Both conventions score the same tokens: every token of a document but its first (nothing precedes
it), each exactly once, in windows of at most `window` input tokens that never cross a document.

`blocks`: non-overlapping windows; window k reads tokens [kT, kT + T) and predicts [kT + 1, kT + T].
The last, shorter window of a document counts too, so that no arm is spared the end of a document.
A token has 1 to T tokens of context.

`sliding`: after a first full window, each window moves `stride` tokens on and scores only the
tokens that no earlier window scored: every token has at least T - stride + 1 tokens of context
where the document has them. The last window of a document ends at its end and keeps its full
context.

`word` scores in the windows of `sliding`; it divides the same sum by words instead of tokens.

`paper` takes paragraphs for documents and scores one window of each, from its start; what a
paragraph has beyond `window` tokens is cut off.

With `max_blocks` a part of the split is scored: that many blocks of `window` tokens, evenly spread
over it. `sliding` then scores the tokens of the same blocks, and so does a model that is measured
in a shorter window (`cover`), so that a difference between two numbers is never one of text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hylorada.config.rules import choices
from hylorada.errors import ConfigError

CONVENTIONS = choices("eval.perplexity.conventions")


@dataclass(frozen=True)
class Window:
    """One forward pass: input tokens [start, end), scored targets [first_target, end].

    Attributes:
        document: index of the document.
        start: first input token.
        end: one past the last input token; also the index of the last target.
        first_target: index of the first token that this window scores.
    """

    document: int
    start: int
    end: int
    first_target: int

    @property
    def length(self) -> int:
        """Input tokens."""
        return self.end - self.start

    @property
    def scored(self) -> int:
        """Tokens scored here."""
        return self.end - self.first_target + 1


def plan_windows(
    lengths: Sequence[int],
    convention: str,
    window: int,
    *,
    stride: int = 0,
    max_blocks: int = 0,
    cover: int = 0,
) -> list[Window]:
    """The windows of a split, in document order.

    Args:
        lengths: tokens per document.
        convention: one of `CONVENTIONS`.
        window: tokens a window may read.
        stride: tokens between two sliding windows; 0: half a window.
        max_blocks: blocks scored, spread evenly; 0: all.
        cover: the window, in tokens, whose blocks decide which tokens are scored; 0: `window`.

    Raises:
        ConfigError: an unknown convention, an impossible window or stride.
    """
    if convention not in CONVENTIONS:
        raise ConfigError(
            f"eval.perplexity.conventions: unknown {convention!r}; use {', '.join(CONVENTIONS)}"
        )
    if window < 1:
        raise ConfigError(f"evaluation window: {window} tokens; it must be at least 1")
    stride = effective_stride(window, stride)
    cover = cover or window
    blocks = [
        (document, first, min(first + cover, length))
        for document, length in enumerate(lengths)
        for first in range(1, min(length, 2) if convention == "paper" else length, cover)
    ]
    if 0 < max_blocks < len(blocks):
        # The middle of each of max_blocks equal slices of the list.
        blocks = [blocks[(2 * i + 1) * len(blocks) // (2 * max_blocks)] for i in range(max_blocks)]
    windows = []
    for document, first, stop in _joined(blocks):
        while first < stop:
            slides = convention in ("sliding", "word")
            step = stride if slides and first > 1 else window
            last = min(first + step, stop) - 1
            start = max(0, last - window) if slides else first - 1
            windows.append(Window(document, start, last, first))
            first = last + 1
    return windows


def scorable(lengths: Sequence[int]) -> int:
    """Tokens of a split that can be scored: all but each document's first."""
    return sum(max(0, length - 1) for length in lengths)


def block_limit(lengths: Sequence[int], window: int, max_tokens: int, max_blocks: int) -> int:
    """The most blocks of `window` tokens that may be scored; 0: all.

    Args:
        lengths: tokens per document.
        window: tokens in a block.
        max_tokens: at most so many, but one block in any case; 0: no limit.
        max_blocks: at most so many; 0: no limit.
    """
    limits = [max_blocks] if max_blocks else []
    if 0 < max_tokens < scorable(lengths):
        limits.append(max(1, max_tokens // window))
    return min(limits, default=0)


def _joined(blocks: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Neighbouring blocks as one stretch, so that windows slide on across their border."""
    stretches: list[tuple[int, int, int]] = []
    for document, first, stop in blocks:
        if stretches and stretches[-1][0] == document and stretches[-1][2] == first:
            stretches[-1] = (document, stretches[-1][1], stop)
        else:
            stretches.append((document, first, stop))
    return stretches


def effective_stride(window: int, stride: int) -> int:
    """The stride in tokens; 0 stands for half a window.

    Raises:
        ConfigError: a stride that would leave tokens unscored.
    """
    if not 0 <= stride <= window:
        raise ConfigError(
            f"eval.perplexity.stride: {stride} tokens; it must be between 1 and the window "
            f"({window}), or 0 for half of it"
        )
    return stride or max(1, window // 2)


def batches(windows: Sequence[Window], batch_size: int) -> list[list[Window]]:
    """Windows grouped into batches of one input length, so that nothing is ever padded."""
    waiting: dict[int, list[Window]] = {}
    done: list[list[Window]] = []
    for item in windows:
        group = waiting.setdefault(item.length, [])
        group.append(item)
        if len(group) == batch_size:
            done.append(waiting.pop(item.length))
    return done + list(waiting.values())
