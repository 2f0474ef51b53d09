"""The untouched base, measured once for all runs that share it.

It stands in every record twice: with its range extended to the run's length but untrained, in the
run's window; and as it is, in the window it was trained on (sliding perplexity). Both depend on the
base, the text and the evaluation settings alone, so a sweep measures them once: they are cached
under `<output_root>/.cache/base/`, behind a lock, each kind of measurement by itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch import nn

from hylorada.config import RunConfig
from hylorada.data.token_corpus import tokenizer_sha256
from hylorada.evaluation.measurement import Metrics
from hylorada.loading.backbone import Backbone, load_backbone
from hylorada.loading.base_below_adapter import BaseBelow
from hylorada.process.disk import disk_errors, make_directory, replace_file
from hylorada.process.redaction import redacted
from hylorada.records.manifest import plain_sha256
from hylorada.runner.measure import Meter
from hylorada.runner.preparation import Part, Prepared

_CACHE_FORMAT = 3


def base_metrics(
    config: RunConfig, meter: Meter, backbone: Backbone, prepared: Prepared, model: nn.Module
) -> dict[str, Metrics]:
    """The measurements of the base, from the cache or made now.

    They are made on the run's own model with its adapter switched off (see `BaseBelow`), which is
    left as it was.

    Args:
        config: the run's settings.
        meter: measures.
        backbone: the base as it was loaded.
        prepared: what is measured.
        model: of the run: the base with its range extended, and an adapter on it if there is one.

    Returns:
        {"extended": metrics, "own_window": metrics}; the latter empty where no measurement asks
        for it (prompts for the run's window do not fit its own), and where the run's window is no
        longer than the trained one: then the base is what is measured as "extended".

    Raises:
        Interrupted: a signal came.
        DiskError: the cache cannot be written.
    """
    own_window = backbone.trained_length
    length = config.length.max_length
    position_range = config.method.position_range
    common = {
        "format": _CACHE_FORMAT,
        "model": [backbone.sha256, backbone.config_sha256],
        "tokenizer": tokenizer_sha256(backbone.tokenizer),
        "length": length,
        "trained_length": own_window,
        "attention": config.model.attn_implementation,
        **meter.conditions,
    }
    extension = {"position_range": dataclasses.asdict(position_range)}
    folder = Path(config.output_root) / ".cache" / "base"
    make_directory(folder)
    below = BaseBelow(
        model, backbone, length, position_range,
        lambda: load_backbone(config.model, meter.device, config.train.precision),
    )  # fmt: skip

    def cached(
        key: dict[str, Any], base: Callable[[], AbstractContextManager[Any]], part: Part, title: str
    ) -> Metrics:
        with _CacheEntry(folder, {**common, **key, **part.identity}) as entry:
            if entry.value is None:
                with base() as base_model:
                    entry.value = meter.measure(base_model, part, title, partial=entry.partial)
            return entry.value

    measured: dict[str, Metrics] = {"own_window": {}, "extended": {}}
    for part in prepared.parts if own_window < length else []:
        own = part.measurement.in_own_window(part.asked, own_window)
        if own is not None:
            asked = prepared.part(part.measurement, own)
            measured["own_window"] |= cached(
                {}, below.as_loaded, asked, f"base, own window {own_window}"
            )
    for part in prepared.parts:
        measured["extended"] |= cached(
            extension, below.extended, part, f"base, extended to {length}"
        )
    below.release()
    return measured


class _CacheEntry:
    """An entry of the cache, held for one process; its value is written when the block ends well.

    Attributes:
        value: the cached value; None if there is none yet.
        partial: where an interrupted measurement of this entry is kept.
    """

    def __init__(self, folder: Path, key: dict[str, Any]) -> None:
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
        self._path = folder / f"{name}.json"
        self._key = redacted(key)
        self._lock = FileLock(folder / f"{name}.lock")
        self.partial = folder / f"{name}.partial"
        self.value: dict[str, Any] | None = None
        self._found = False

    def __enter__(self) -> _CacheEntry:
        with disk_errors(self._path):
            self._lock.acquire()
        try:
            stored = json.loads(self._path.read_text())
            whole = stored["sha256"] == plain_sha256(stored["value"])
            self._found = whole and stored["key"] == self._key
            self.value = stored["value"] if self._found else None
        except (OSError, ValueError, KeyError, TypeError):
            self.value = None  # absent, or not what was written: measured again
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and not self._found:
                value = json.loads(json.dumps(self.value))  # as it is read: no tuples
                entry = {"key": self._key, "value": value, "sha256": plain_sha256(value)}
                replace_file(self._path, json.dumps(entry).encode())
        finally:
            self._lock.release()
