"""Which contexts of `eval.context_gain` are measured in a window."""

from __future__ import annotations

from hylorada.config import ContextGainConfig


def fitting_contexts(gain: ContextGainConfig, window: int) -> list[int]:
    """The contexts that fit a window together with the targets, in tokens.

    If some do not, the most that fit takes their place, so that the whole window is used; but not
    beside another of nearly that length.

    Args:
        gain: contexts and targets.
        window: tokens.
    """
    most = window - gain.targets + 1  # the last target is predicted and never read
    found = sorted({c for c in gain.contexts if 1 <= c <= most})
    if any(c > most for c in gain.contexts) and most > 1.25 * max(found, default=0):
        found.append(most)
    return found
