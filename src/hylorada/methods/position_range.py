"""How a model reaches positions beyond its trained length (paper 2.2).

Learned position embeddings (GPT-2, OPT) get more rows, made from the old ones; see `longer_rows`.

Rotary embeddings (RoPE) are rescaled by factor = ceil(max_length / trained length): linear
interpolation (arXiv:2306.15595) up to 8192 tokens, YaRN (arXiv:2309.00071) beyond, dynamic NTK on
request; see `rope_tables`. Distances added to the scores (ALiBi) and recurrent states know no last
position, so there is nothing to do. Any other form of positions, and one that cannot be found, is
refused beyond the trained length.

Every arm of a comparison gets the same extension. What trains of it is another switch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hylorada.architecture import anatomy
from hylorada.architecture.anatomy import PositionForm
from hylorada.config.rules import choices
from hylorada.errors import ConfigError
from hylorada.methods import rope_tables
from hylorada.methods.longer_rows import longer_rows
from hylorada.methods.own_range import Asked, forget, put, remember

LEARNED_INITS = choices("method.position_range.learned_init")
ROPE_TYPES = choices("method.position_range.rope_type")


@dataclass
class RangeReport:
    """What `extend_range` did.

    Attributes:
        kind: "learned", "rope", "distances" (only as many as are made at once: MPT), or "none" if
            nothing was to do.
        from_length: positions the model was trained on, in tokens.
        to_length: positions it reaches now, in tokens.
        factor: the RoPE factor; for learned embeddings the ratio of the lengths.
        type: the initialisation of the rows, the RoPE type, or "none".
        reason: why nothing was to do although the model is to reach beyond its trained length.
    """

    kind: str
    from_length: int
    to_length: int
    factor: float = 1.0
    type: str = "none"
    reason: str = ""
    originals: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """For records."""
        return {
            "kind": self.kind,
            "from": self.from_length,
            "to": self.to_length,
            "factor": self.factor,
            "type": self.type,
        }


def extend_range(
    model: nn.Module,
    max_length: int,
    learned_init: str = "interpolate",
    rope_type: str = "auto",
    rope_factor: float = 0.0,
) -> RangeReport:
    """Make ``model`` reach ``max_length`` positions, in place; unless it does so already.

    The model's config follows (``max_position_embeddings``, ``rope_parameters``) and remembers the
    extension as ``hylorada_range``, from which `anatomy.trained_length` knows the original length.

    Args:
        model: a causal language model, before any adapter wraps its embeddings.
        max_length: tokens.
        learned_init: of longer learned embeddings, "interpolate", "tile", "by_parts" or "keep".
        rope_type: "auto", "linear", "yarn", "dynamic", or "none" to leave RoPE as it is.
        rope_factor: 0 means ceil(max_length / trained length).

    Returns:
        What was done, for records and for `restore_range`.

    Raises:
        ConfigError: a setting that is wrong or cannot take effect on this model.
    """
    lm = anatomy.causal_lm(model)
    asked = Asked(max_length, learned_init, rope_type, float(rope_factor))
    report = _extended(lm, asked)
    remember(lm, asked, report)
    return report


def _extended(lm: Any, asked: Asked) -> RangeReport:
    max_length, learned_init, rope_type = asked.max_length, asked.learned_init, asked.rope_type
    rope_factor = asked.rope_factor
    kind = type(lm).__name__
    trained = anatomy.trained_length(lm.config)
    form = anatomy.position_form(lm)
    rotary = form is PositionForm.ROTARY
    _check_settings(kind, form, max_length, learned_init, rope_type, rope_factor)
    done = _done(lm, trained)
    reason = nothing_to_extend(lm) if max_length > trained else ""
    if reason:
        return _without_extension(lm, reason, trained, max_length, rope_type, rope_factor)
    if max_length <= trained or (rotary and rope_type == "none"):
        return RangeReport("none", trained, max(trained, done.get("to", 0)))
    if done:
        reach = done["to"]
        same_type = done["type"] == rope_type or rope_type == "auto"
        same_factor = done["factor"] == rope_factor or rope_factor == 0
        same = (same_type and same_factor) if rotary else done["type"] == learned_init
        if same and max_length <= reach:
            return RangeReport("none", trained, reach)
        raise ConfigError(
            f"position_range: {kind} was already extended from {trained} to {reach} positions "
            f"({done['type']}); load the base model again to extend it to {max_length} otherwise, "
            "or, if it was trained further since, set model.trained_length"
        )
    if rotary:
        factor = float(rope_factor or math.ceil(max_length / trained))
        report = _rescale_rope(lm, max_length, trained, rope_type, factor)
    elif form is PositionForm.LEARNED:
        report = _lengthen_embedding(lm, max_length, trained, learned_init)
    else:
        found = (
            f"where {kind} keeps its positions was not found"
            if form is PositionForm.UNKNOWN
            else f"{kind} has {form}"
        )
        raise ConfigError(
            f"position_range: {found}, so its {trained} positions cannot be extended to "
            f"{max_length}; use a length of at most {trained}"
        )
    report.originals["range"] = getattr(lm.config, "hylorada_range", None)
    lm.config.hylorada_range = report.to_dict()
    return report


def _done(lm: Any, trained: int) -> dict[str, Any]:
    """The extension that this model has; empty if it has none, or was trained in it since."""
    done = getattr(lm.config, "hylorada_range", None) or {}
    return done if done.get("from") == trained else {}


def _without_extension(
    lm: Any, reason: str, trained: int, max_length: int, rope_type: str, factor: float
) -> RangeReport:
    if rope_type not in ("auto", "none") or factor > 1:
        raise ConfigError(
            f"position_range: {reason}, so RoPE scaling has nothing to do; set rope_type=auto and "
            "rope_factor=0"
        )
    count = anatomy.position_count(lm.config)
    if count is None or count[0] != "max_seq_len" or count[1] >= max_length:
        return RangeReport("none", trained, max_length, reason=reason)
    # MPT makes its distances for as many tokens as the config says
    originals = {"count": count, "range": getattr(lm.config, "hylorada_range", None)}
    report = RangeReport("distances", trained, max_length, reason=reason, originals=originals)
    setattr(anatomy.text_config(lm.config), count[0], max_length)
    lm.config.hylorada_range = report.to_dict()
    return report


def nothing_to_extend(model: nn.Module) -> str:
    """Why a model reaches any length as it is; empty if it does not."""
    lm = anatomy.causal_lm(model)
    kind, form = type(lm).__name__, anatomy.position_form(lm)
    if form in (PositionForm.DISTANCES, PositionForm.STATE):
        return f"{kind} has {form}"
    if form is PositionForm.ROTARY:
        trained = anatomy.trained_length(lm.config)
        tables = rope_tables.rope_tables(lm)
        if not any(table.must_follow(trained) for table in tables):
            window = max(table.sees or 0 for table in tables)
            return (
                f"the layers with RoPE in {kind} see {window} tokens, fewer than it was trained on"
            )
    return ""


def restore_range(model: nn.Module, report: RangeReport) -> None:
    """Undo `extend_range`: the trained rows or rotary modules and the config as they were."""
    lm = anatomy.causal_lm(model)
    if report.kind == "none" or not report.originals:
        return
    put(lm, report.originals)
    forget(lm)
    report.originals = {}


def _check_settings(
    kind: str,
    form: PositionForm,
    max_length: int,
    learned_init: str,
    rope_type: str,
    factor: float,
) -> None:
    if max_length < 1:
        raise ConfigError(f"position_range: max_length is {max_length}; use at least 1 token")
    if learned_init not in LEARNED_INITS:
        raise ConfigError(
            f"position_range.learned_init: {learned_init!r} is not one of "
            f"{', '.join(LEARNED_INITS)}"
        )
    if rope_type not in ROPE_TYPES:
        raise ConfigError(
            f"position_range.rope_type: {rope_type!r} is not one of {', '.join(ROPE_TYPES)}"
        )
    if factor and factor < 1:
        raise ConfigError(
            f"position_range.rope_factor: {factor} would shorten the range; use 0 (automatic) or "
            "at least 1"
        )
    if form is not PositionForm.ROTARY and (rope_type not in ("auto", "none") or factor > 1):
        raise ConfigError(
            f"position_range: {without_rope(kind, form)}; RoPE scaling does not apply; set "
            "rope_type=auto and rope_factor=0"
        )
    if rope_type == "none" and factor > 1:
        raise ConfigError(
            f"position_range.rope_factor: {factor} has no effect with rope_type=none; drop one"
        )


def refuse_start(learned_init: str, model: nn.Module) -> None:
    """Refuse a start that was set by hand on a base that has no learned positions to start.

    Not part of `extend_range`, which reads what adapters were saved with.
    """
    form = anatomy.position_form(model)
    if learned_init != "interpolate" and form not in (PositionForm.LEARNED, PositionForm.UNKNOWN):
        raise ConfigError(
            f"method.position_range.learned_init={learned_init} has no effect: "
            f"{type(anatomy.causal_lm(model)).__name__} has {form}; set it to interpolate"
        )


def without_rope(kind: str, form: PositionForm) -> str:
    """Why RoPE scaling has nothing to act on."""
    if form is PositionForm.UNKNOWN:
        return f"where {kind} keeps its positions was not found"
    if form is PositionForm.ROTARY_TABLE:
        return f"{kind} has {form}"
    return f"{kind} has no rotary position embedding"


@torch.no_grad()
def _lengthen_embedding(lm: Any, length: int, trained: int, init: str) -> RangeReport:
    found, count = anatomy.position_embedding(lm), anatomy.position_count(lm.config)
    assert found is not None
    assert count is not None
    name, embedding, offset = found
    kind = type(lm).__name__
    if trained > count[1]:
        raise ConfigError(
            f"model.trained_length: {kind} has position embeddings for {count[1]} tokens, so it "
            f"cannot have been trained on {trained}"
        )
    buffers = _longer_buffers(lm, count[1], length)
    old = embedding.weight
    head, body = old[:offset], old[offset:]
    rows = longer_rows(body[:trained], length, init)
    weight = torch.cat([head, rows.to(old.dtype)]).contiguous()
    embedding.weight = nn.Parameter(weight, requires_grad=old.requires_grad)
    embedding.num_embeddings = length + offset
    originals: dict[str, Any] = {"name": name, "weight": old, "count": count, "buffers": []}
    for module, buffer_name, new in buffers:
        originals["buffers"].append((module, buffer_name, getattr(module, buffer_name)))
        setattr(module, buffer_name, new)
    setattr(anatomy.text_config(lm.config), count[0], length)
    return RangeReport("learned", trained, length, length / trained, init, originals=originals)


def _longer_buffers(lm: Any, count: int, length: int) -> list[tuple[nn.Module, str, Tensor]]:
    """The buffers that older models keep for each position, for `length` of them.

    Raises:
        ConfigError: one that is none of those known: numbers of the positions, token types (zeros)
            and causal masks, with or without a window.
    """
    found = []
    for path, module in anatomy.text_modules(lm):
        for name, old in module._buffers.items():
            if old is None or old.dim() == 0 or old.shape[-1] != count:
                continue
            if name == "position_ids":
                new = torch.arange(length, device=old.device, dtype=old.dtype)
                new = new.expand(*old.shape[:-1], length).contiguous()
            elif name == "token_type_ids":
                new = old.new_zeros(*old.shape[:-1], length)
            elif name == "bias" and old.dim() >= 2 and old.shape[-2] == count:
                new = _longer_mask(module, old, length)
            else:
                raise ConfigError(
                    f"position_range: {type(lm).__name__} keeps {path}.{name} for its {count} "
                    f"positions, which cannot be lengthened; use a length of at most {count}"
                )
            found.append((module, name, new))
    return found


def _longer_mask(module: Any, old: Tensor, length: int) -> Tensor:
    """A causal mask [..., n, n] whose entry depends on the distance of the two positions alone."""
    count = old.shape[-1]
    at_distance = old.reshape(-1, count, count)[0, -1].flip(0)  # of 0, 1, ..., n - 1
    index = torch.arange(length, device=old.device)
    distance = index[:, None] - index[None]
    mask = at_distance[distance.clamp(0, count - 1)]
    window = getattr(getattr(module, "config", None), "window_size", None)
    local = getattr(module, "attention_type", "") == "local"
    far = window if local and window else length
    mask = torch.where((distance >= 0) & (distance < far), mask, torch.zeros_like(mask))
    return mask.expand(*old.shape[:-2], length, length).contiguous()


def _rescale_rope(
    lm: Any, max_length: int, trained: int, rope_type: str, factor: float
) -> RangeReport:
    if trained * factor < max_length:
        raise ConfigError(
            f"position_range.rope_factor: {factor:g} x {trained} trained positions reach "
            f"{int(trained * factor)}, not max_length {max_length}; use 0 (automatic)"
        )
    length_is_set = bool(getattr(lm.config, "hylorada_trained_length", None))
    done = rope_tables.rescale(lm, max_length, trained, rope_type, factor, length_is_set)
    originals = {"rescaled": done}
    reached = int(trained * factor)
    return RangeReport("rope", trained, reached, factor, done.type, originals=originals)
