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
from pathlib import Path
from typing import Any

from filelock import FileLock

from hylorada import anatomy
from hylorada.config import RunConfig
from hylorada.data.packing import tokenizer_sha256
from hylorada.disk import disk_errors, make_directory, replace_file
from hylorada.evaluation.benchmark_questions import lm_eval_version, questions_sha256
from hylorada.methods.position_range import extend_range
from hylorada.redaction import redacted
from hylorada.runner.backbone import Backbone, load_backbone
from hylorada.runner.exam import Exam
from hylorada.runner.frozen import use_frozen_kernels
from hylorada.runner.measure import Meter, Metrics

_CACHE_FORMAT = 3


def base_metrics(
    config: RunConfig, meter: Meter, backbone: Backbone, exam: Exam
) -> dict[str, Metrics]:
    """The measurements of the base, from the cache or made now.

    They are made on a second copy of the model, so that the run's own stays as it was loaded and
    its generators do not depend on whether the cache was hit.

    Returns:
        {"extended": metrics, "own_window": metrics}; the latter empty without perplexity, since
        prompts for the run's window do not fit its own, and where the run's window is no longer
        than the trained one: then the base is what is measured as "extended".

    Raises:
        Interrupted: a signal came.
        DiskError: the cache cannot be written.
    """
    own_window = anatomy.trained_length(backbone.model.config)
    length = config.length.max_length
    settings = exam.settings.perplexity
    position_range = config.method.position_range
    common = {
        "format": _CACHE_FORMAT,
        "model": [backbone.sha256, backbone.config_sha256],
        "tokenizer": tokenizer_sha256(backbone.tokenizer),
        "length": length,
        "attention": config.model.attn_implementation,
        **meter.conditions,
    }
    text = {**common, "text": exam.corpus.sha256}
    extension = {"position_range": dataclasses.asdict(position_range)}
    folder = Path(config.output_root) / ".cache" / "base"
    make_directory(folder)
    copy: Any = None
    extended = False

    def untouched() -> Any:
        nonlocal copy
        if copy is None:
            copy = load_backbone(config.model, meter.device).model
            use_frozen_kernels(copy)
        return copy

    def stretched() -> Any:
        nonlocal extended
        model = untouched()
        if not extended:
            extend_range(
                model, length, position_range.learned_init, position_range.rope_type,
                position_range.rope_factor,
            )  # fmt: skip
            extended = True
        return model

    def cached(key: dict[str, Any], call: Callable[[Path], Metrics]) -> Metrics:
        with _CacheEntry(folder, key) as entry:
            if entry.value is None:
                entry.value = call(entry.partial)
            return entry.value

    # The copy is extended after it was measured as it is.
    measured: dict[str, Metrics] = {"own_window": {}, "extended": {}}
    if settings.conventions and own_window < length:
        by_words = [name for name in settings.conventions if name == "word"]
        own = dataclasses.replace(settings, conventions=["sliding", *by_words])
        measured["own_window"] = cached(
            {**text, "window": own_window, "settings": dataclasses.asdict(own)},
            lambda partial: meter.measure(
                untouched(), exam.corpus, own, own_window,
                f"base, own window {own_window}", cover=length, partial=partial,
            ),
        )  # fmt: skip
    title, found = f"base, extended to {length}", measured["extended"]
    if settings.conventions:
        found |= cached(
            {**text, **extension, "settings": dataclasses.asdict(settings)},
            lambda partial: meter.measure(
                stretched(),
                exam.corpus,
                settings,
                length,
                title,
                paragraphs=exam.paragraphs,
                partial=partial,
            ),
        )  # fmt: skip
    if exam.prompts is not None:
        asked = [exam.prompts.sha256, exam.settings.lost_in_middle.scorings]
        found |= cached(
            {**common, **extension, "prompts": [*asked, exam.prompts.max_new_tokens]},
            lambda partial: meter.retrieval(stretched(), exam, title, partial=partial),
        )
    if exam.settings.context_gain.enabled:
        gain = dataclasses.asdict(exam.settings.context_gain)
        found |= cached(
            {**text, **extension, "context_gain": gain},
            lambda partial: meter.context_gain(stretched(), exam, title, partial=partial),
        )
    if exam.questions:
        harness = [questions_sha256(exam.questions), lm_eval_version()]
        found |= cached(
            {**common, **extension, "harness": [*harness, exam.settings.harness.limit]},
            lambda partial: meter.harness(stretched(), exam, title, partial=partial),
        )
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
            self._found = stored["key"] == self._key
            self.value = stored["value"] if self._found else None
        except (OSError, ValueError, KeyError):
            self.value = None  # absent, or not what was written: measured again
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and not self._found:
                entry = {"key": self._key, "value": self.value}
                replace_file(self._path, json.dumps(entry).encode())
        finally:
            self._lock.release()
