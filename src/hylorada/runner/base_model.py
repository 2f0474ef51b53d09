"""The untouched base, measured once for all runs that share it.

It stands in every record twice: with its range extended to the run's length but untrained, in the
run's window; and as it is, in the window it was trained on (sliding perplexity). Both depend on the
base, the text and the evaluation settings alone, so a sweep measures them once: they are cached
under `<output_root>/.cache/base/`, behind a lock, each kind of measurement by itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import nn

from hylorada.config import RunConfig
from hylorada.data.token_corpus import tokenizer_sha256
from hylorada.errors import ConfigError
from hylorada.evaluation.measurement import Metrics
from hylorada.loading.backbone import Backbone, load_backbone
from hylorada.loading.base_below_adapter import BaseBelow
from hylorada.process.disk import disk_errors, make_directory, replace_file
from hylorada.process.ranks import Ranks
from hylorada.process.redaction import redacted
from hylorada.records.manifest import plain_sha256
from hylorada.records.result import parse_json
from hylorada.runner.measure import Meter
from hylorada.runner.preparation import Part, Prepared

_CACHE_FORMAT = 3
_PATIENCE = 20.0  # seconds that the first process waits for another run, before it tells the rest


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
    folder, ranks = Path(config.output_root) / ".cache" / "base", meter.ranks
    if ranks.is_first:
        make_directory(folder)
    below = BaseBelow(
        model, backbone, config.length.max_length, config.method.position_range,
        lambda: load_again(config, meter),
    )  # fmt: skip
    measured: dict[str, Metrics] = {"own_window": {}, "extended": {}}
    for question in questions_to_base(config, meter, backbone, prepared):
        with _CacheEntry(folder, question.key, ranks) as entry:
            if entry.value is None:
                with below.extended() if question.extended else below.as_loaded() as base_model:
                    entry.value = meter.measure(
                        base_model, question.part, question.title, partial=entry.partial
                    )
            measured["extended" if question.extended else "own_window"] |= entry.value
    below.release()
    return measured


def load_again(config: RunConfig, meter: Meter) -> Backbone:
    """The base once more, for a model that the adapter cannot be taken off (`BaseBelow`).

    Raises:
        ConfigError: the base is to be sharded.
    """
    if config.shard_base:
        raise ConfigError(
            "shard_base=true: the adapter cannot be removed from this base exactly, so the base "
            "would have to be loaded whole to be measured; set shard_base=false"
        )
    return load_backbone(config.model, meter.device, config.train.precision)


@dataclass(frozen=True)
class Question:
    """What the base is measured for, once.

    Attributes:
        part: the measurement, and what it asks.
        extended: of the base with its range extended; otherwise as it is, in its own window.
        title: what is measured, for the progress bar.
        key: all that the numbers depend on.
    """

    part: Part
    extended: bool
    title: str
    key: dict[str, Any]

    def is_answered(self, output_root: str) -> bool:
        """Whether the cache below this folder holds an answer; it is not looked into."""
        return (Path(output_root) / ".cache" / "base" / f"{_entry_name(self.key)}.json").exists()


def questions_to_base(
    config: RunConfig, meter: Meter, backbone: Backbone, prepared: Prepared
) -> list[Question]:
    """All that a run asks of its base, in order; arguments as of `base_metrics`."""
    own_window, length = backbone.trained_length, config.length.max_length
    common = {
        "format": _CACHE_FORMAT,
        "model": [backbone.sha256, backbone.config_sha256],
        "tokenizer": tokenizer_sha256(backbone.tokenizer),
        "length": length,
        "trained_length": own_window,
        "attention": config.model.attn_implementation,
        **meter.conditions,
    }
    extension = {"position_range": dataclasses.asdict(config.method.position_range)}
    questions = []
    for part in prepared.parts if own_window < length else []:
        own = part.measurement.in_own_window(part.asked, own_window)
        if own is not None:
            asked = prepared.part(part.measurement, own)
            key = common | asked.identity
            questions.append(Question(asked, False, f"base, own window {own_window}", key))
    for part in prepared.parts:
        key = common | extension | part.identity
        questions.append(Question(part, True, f"base, extended to {length}", key))
    return questions


def _entry_name(key: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]


class _CacheEntry:
    """An entry of the cache, held for one run; its value is written when the block ends well.

    Of several processes the first one looks into it, and tells the others what it finds.

    Attributes:
        value: the cached value; None if there is none yet.
        partial: where an interrupted measurement of this entry is kept.
    """

    def __init__(self, folder: Path, key: dict[str, Any], ranks: Ranks) -> None:
        name = _entry_name(key)
        self._ranks = ranks
        self._path = folder / f"{name}.json"
        self._key = redacted(key)
        self._lock = FileLock(folder / f"{name}.lock")
        self.partial = folder / f"{name}.partial"
        self.value: dict[str, Any] | None = None
        self._found = False

    def __enter__(self) -> _CacheEntry:
        if self._ranks.is_first:
            self._read()  # without the lock: a finished entry may lie on a read-only disk
        # Another run may hold it for hours; processes wait for each other no longer than minutes.
        while not self._ranks.decided(self._opened):
            pass
        self._found, self.value = self._ranks.decided(lambda: [self._found, self.value])
        return self

    def _opened(self) -> bool:
        """Whether the value is there, or this run has the lock and may measure it."""
        if self._found:
            return True
        with disk_errors(self._path), contextlib.suppress(Timeout):
            self._lock.acquire(timeout=-1 if self._ranks.world == 1 else _PATIENCE)
            self._read()
            return True
        return False

    def _read(self) -> None:
        try:
            stored = parse_json(self._path.read_bytes())
            whole = stored["sha256"] == plain_sha256(stored["value"])
            self._found = whole and stored["key"] == self._key
            self.value = stored["value"] if self._found else None
        except (OSError, ValueError, KeyError, TypeError):
            self.value = None  # absent, or not what was written: measured again

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and not self._found and self._ranks.is_first:
                value = json.loads(json.dumps(self.value))  # as it is read: no tuples
                entry = {"key": self._key, "value": value, "sha256": plain_sha256(value)}
                replace_file(self._path, json.dumps(entry).encode())
        finally:
            self._lock.release()
