"""What a run would read, and how long reading it took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from hylorada.config import RunConfig
from hylorada.loading.backbone import Blueprint
from hylorada.process.signals import Stop
from hylorada.runner.texts import Texts, read_texts


@dataclass(frozen=True)
class Text(Texts):
    """What was read; see `runner.texts.Texts`.

    Attributes:
        seconds: that reading took, from the user's cache or into it.
        unread: titles of measurements whose questions are not here.
        published: whether nothing was read, and sizes are the published ones.
    """

    seconds: float
    unread: Sequence[str] = ()
    published: bool = False


def read_text(config: RunConfig, opened: Blueprint) -> Text:
    """Read what a run reads. Tokens are cached as a run caches them, outside of its directory.

    Raises:
        HyloradaError: see `runner.texts.read_texts`.
    """
    started = time.perf_counter()
    texts = read_texts(config, opened, Stop())
    seconds = time.perf_counter() - started
    return Text(texts.prepared, texts.blocks, texts.validation, texts.trained_length, seconds)
