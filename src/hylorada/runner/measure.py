"""Measuring a model for the record, and the untouched base once for all runs that share it.

The base stands in every record twice: with its range extended to the run's length but untrained, in
the run's window; and as it is, in the window it was trained on (sliding). Both depend on the base,
the text and the evaluation settings alone, so a sweep measures them once: they are cached under
`<output_root>/.cache/base/`, behind a lock.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from torch import nn

from hylorada import anatomy
from hylorada.config import PerplexityConfig, RunConfig
from hylorada.data.packing import TokenCorpus, tokenizer_sha256
from hylorada.errors import Interrupted
from hylorada.evaluation.perplexity import Progress, evaluate_perplexity
from hylorada.methods.position_range import extend_range
from hylorada.runner.backbone import Backbone, load_backbone
from hylorada.runner.disk import disk_errors, make_directory, replace_file
from hylorada.runner.frozen import use_frozen_kernels
from hylorada.runner.progress import Reporter
from hylorada.runner.signals import Stop

NAMES = {"blocks": "eval/ppl", "sliding": "eval/ppl_sliding"}
"""Convention -> name of its metric in records and trackers."""

_CACHE_FORMAT = 1


@dataclass
class Meter:
    """What every measurement of a run shares.

    Attributes:
        device: of the models.
        bf16: whether to run under bf16 autocast.
        chunk: tokens whose logits exist at one time.
        stop: a signal ends a measurement at the next batch.
        reporter: shows progress.
    """

    device: torch.device
    bf16: bool
    chunk: int
    stop: Stop
    reporter: Reporter

    def measure(
        self,
        model: nn.Module,
        corpus: TokenCorpus,
        settings: PerplexityConfig,
        window: int,
        title: str,
        *,
        cover: int = 0,
        partial: Path | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Perplexity under each convention of the settings, as it stands in a record.

        Args:
            model: the model; its training flags are put back.
            corpus: the split, in tokens.
            settings: conventions, stride, how much of the split.
            window: tokens of context.
            title: what is measured, for the progress bar.
            cover: see `evaluate_perplexity`.
            partial: where an interrupted measurement is kept, to be continued by the next call.

        Raises:
            Interrupted: a signal came; what was measured is in ``partial``.
        """
        started = ""
        state: Mapping[str, Any] | None = None
        if partial is not None and partial.exists():
            state = json.loads(partial.read_text())

        def progress(now: Progress) -> None:
            nonlocal started
            if now.convention != started:
                started = now.convention
                self.reporter.begin(f"{title}, {now.convention}", now.total)
            self.reporter.update(now.done, f"ppl {math.exp(min(now.sum_nll / now.done, 700)):.3f}")
            try:
                self.stop.check()
            except Interrupted:
                if partial is not None:
                    replace_file(partial, json.dumps(now.state()).encode())
                raise

        with self.stop.deferred():
            results = evaluate_perplexity(
                model,
                corpus.documents,
                settings,
                window,
                cover=cover,
                chunk=self.chunk,
                autocast_dtype=torch.bfloat16 if self.bf16 else None,
                progress=progress,
                state=state,
            )
        if partial is not None:
            partial.unlink(missing_ok=True)
        return {NAMES[convention]: result.to_dict() for convention, result in results.items()}


def base_metrics(
    config: RunConfig, meter: Meter, backbone: Backbone, corpus: TokenCorpus
) -> dict[str, dict[str, Any]]:
    """The two measurements of the base, from the cache or made now.

    They are made on a second copy of the model, so that the run's own stays as it was loaded and
    its generators do not depend on whether the cache was hit.

    Returns:
        {"extended": metrics, "own_window": metrics}.

    Raises:
        Interrupted: a signal came.
        DiskError: the cache cannot be written.
    """
    own_window = anatomy.trained_length(backbone.model.config)
    length = config.length.max_length
    settings = config.eval.perplexity
    own_settings = dataclasses.replace(settings, conventions=["sliding"])
    common = {
        "format": _CACHE_FORMAT,
        "model": backbone.sha256,
        "tokenizer": tokenizer_sha256(backbone.tokenizer),
        "text": corpus.sha256,
        "length": length,
        "attention": config.model.attn_implementation,
        "bf16": meter.bf16,
        "device": meter.device.type,
        "versions": [torch.__version__, transformers.__version__],
    }
    folder = Path(config.output_root) / ".cache" / "base"
    make_directory(folder)
    copy: Any = None

    def fresh_copy() -> Any:
        nonlocal copy
        if copy is None:
            copy = load_backbone(config.model, meter.device).model
            use_frozen_kernels(copy)
        return copy

    # In this order: the copy is extended after it was measured as it is.
    measured = {}
    own_key = {**common, "window": own_window, "settings": dataclasses.asdict(own_settings)}
    with _CacheEntry(folder, own_key) as entry:
        if entry.value is None:
            entry.value = meter.measure(
                fresh_copy(), corpus, own_settings, own_window,
                f"base, own window {own_window}", cover=length, partial=entry.partial,
            )  # fmt: skip
        measured["own_window"] = entry.value
    position_range = config.method.position_range
    extended_key = {
        **common,
        "settings": dataclasses.asdict(settings),
        "position_range": dataclasses.asdict(position_range),
    }
    with _CacheEntry(folder, extended_key) as entry:
        if entry.value is None:
            model = fresh_copy()
            extend_range(
                model, length, position_range.learned_init, position_range.rope_type,
                position_range.rope_factor,
            )  # fmt: skip
            entry.value = meter.measure(
                model, corpus, settings, length,
                f"base, extended to {length}", partial=entry.partial,
            )  # fmt: skip
        measured["extended"] = entry.value
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
        self._key = key
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
