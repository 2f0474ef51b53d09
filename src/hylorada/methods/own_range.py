"""The range that a model was loaded with, below an extension of it and below an adapter.

`position_range` keeps here what it did to a model, so that the base can be looked at as it was
without a second copy: the same tensors and modules are put back for a while.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from torch import nn

from hylorada.architecture import anatomy
from hylorada.methods import rope_tables


@dataclass(frozen=True)
class Asked:
    """The settings of an extension, as `position_range.extend_range` takes them."""

    max_length: int
    learned_init: str
    rope_type: str
    rope_factor: float


class Report(Protocol):
    """What is read of a `position_range.RangeReport`."""

    kind: str
    reason: str
    originals: dict[str, Any]


_known: WeakKeyDictionary[nn.Module, tuple[Asked, Report]] = WeakKeyDictionary()


def remember(lm: nn.Module, asked: Asked, report: Report) -> None:
    """Remember what was done to a model; a later call that found nothing to do is ignored."""
    if lm not in _known or report.originals:
        _known[lm] = (asked, report)


def forget(lm: nn.Module) -> None:
    """Forget an extension that was undone."""
    _known.pop(lm, None)


def adopt_range(model: nn.Module) -> None:
    """Take the longer range of an extended model, trained in it and merged, as its own range.

    Its config says the length (``hylorada_trained_length``), so that it can be saved, read, and
    extended again from there.
    """
    lm = anatomy.causal_lm(model)
    known = _known.pop(lm, None)
    if known is not None and known[1].originals:
        config: Any = lm.config
        config.__dict__.pop("hylorada_range", None)
        config.hylorada_trained_length = known[0].max_length


def is_extended_as(
    model: nn.Module, max_length: int, learned_init: str, rope_type: str, rope_factor: float
) -> bool:
    """Whether a model has the range that `extend_range` would give it under these settings."""
    lm = anatomy.causal_lm(model)
    trained = anatomy.trained_length(lm.config)
    if lm not in _known:
        return max_length <= trained
    done, report = _known[lm]
    if max(done.max_length, max_length) <= trained:
        return True
    if report.reason:  # nothing there to extend
        return rope_type in ("auto", "none") and report.kind in ("none", "distances")
    if report.kind == "learned":
        return (done.max_length, done.learned_init) == (max_length, learned_init)
    asked = replace(done, learned_init=learned_init)
    return asked == Asked(max_length, learned_init, rope_type, float(rope_factor))


@contextmanager
def unextended(model: nn.Module) -> Iterator[None]:
    """Inside the block a model has the range that it was loaded with; afterwards its own again.

    An adapter on it may stay, but is to be switched off: it was made for the longer range.
    """
    lm = anatomy.causal_lm(model)
    report = _known[lm][1] if lm in _known else None
    if report is None or not report.originals:
        yield
        return
    now, originals = _present(lm, report), report.originals
    if "rescaled" in originals:  # some modules count how far they were used: not this use
        done = originals["rescaled"]
        fresh = {path: copy.deepcopy(module) for path, module in done.modules.items()}
        originals = {**originals, "rescaled": replace(done, modules=fresh)}
    put(lm, originals)
    try:
        yield
    finally:
        put(lm, now)


def put(lm: Any, state: dict[str, Any]) -> None:
    """Give a model the positions that a state describes, such as ``originals`` of a report."""
    if "weight" in state:
        embedding = _below_adapter(lm.get_submodule(state["name"]))
        now, weight = embedding.weight, state["weight"]
        weight.data = weight.data.to(now.device, now.dtype)
        embedding.weight = weight
        embedding.num_embeddings = weight.shape[0]
        for module, name, buffer in state["buffers"]:
            setattr(module, name, buffer.to(now.device))
    if "count" in state:
        setattr(anatomy.text_config(lm.config), *state["count"])
    if "rescaled" in state:
        rope_tables.undo(lm, state["rescaled"])
    lm.config.__dict__.pop("hylorada_range", None)
    if state["range"] is not None:
        lm.config.hylorada_range = state["range"]


def _present(lm: Any, report: Report) -> dict[str, Any]:
    """The state that a model is in, for `put`."""
    originals = report.originals
    state: dict[str, Any] = {"range": getattr(lm.config, "hylorada_range", None)}
    if "rescaled" in originals:
        state["rescaled"] = rope_tables.present(lm, originals["rescaled"])
    if "count" in originals:
        state["count"] = anatomy.position_count(lm.config)
    if "weight" in originals:
        state["name"] = originals["name"]
        state["weight"] = _below_adapter(lm.get_submodule(originals["name"])).weight
        state["buffers"] = [
            (module, part, getattr(module, part)) for module, part, _ in originals["buffers"]
        ]
    return state


def _below_adapter(embedding: Any) -> Any:
    """The embedding itself, where an adapter trains a copy of it."""
    return getattr(embedding, "original_module", embedding)
