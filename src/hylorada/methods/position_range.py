"""How a model reaches positions beyond its trained length (paper 2.2).

Learned position embeddings (GPT-2, OPT) get more rows: old and new positions are spread over the
same interval and each new row is interpolated between its two old neighbours,

    P'[i] = (1 - t) P[j] + t P[j + 1],   j + t = i (n - 1) / (n' - 1)

or the old rows are repeated (tile), which leaves short prompts exactly as they were.

Rotary embeddings (RoPE) are rescaled by factor = ceil(max_length / trained length): linear
interpolation (arXiv:2306.15595) up to 8192 tokens, YaRN (arXiv:2309.00071) beyond, dynamic NTK on
request. The rotary modules are built again from the changed config: a config changed after
construction has no effect by itself.

Every arm of a comparison gets the same extension. What trains of it is another switch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hylorada import anatomy
from hylorada.errors import ConfigError

LINEAR_UP_TO = 8192  # tokens; "auto" takes YaRN beyond
LEARNED_INITS = ("interpolate", "tile")
ROPE_TYPES = ("auto", "linear", "yarn", "dynamic", "none")


@dataclass
class RangeReport:
    """What `extend_range` did.

    Attributes:
        kind: "learned", "rope", or "none" if nothing was to do.
        from_length: positions the model was trained on, in tokens.
        to_length: positions it reaches now, in tokens.
        factor: the RoPE factor; for learned embeddings the ratio of the lengths.
        type: the initialisation of the rows, the RoPE type, or "none".
    """

    kind: str
    from_length: int
    to_length: int
    factor: float = 1.0
    type: str = "none"
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
    """Make ``model`` reach ``max_length`` positions, in place; nothing happens if it does.

    The model's config follows (``max_position_embeddings``, ``rope_parameters``) and remembers the
    extension as ``hylorada_range``, from which `anatomy.trained_length` knows the original length.

    Args:
        model: a causal language model, before any adapter wraps its embeddings.
        max_length: tokens.
        learned_init: of longer learned embeddings, "interpolate" or "tile".
        rope_type: "auto", "linear", "yarn", "dynamic", or "none" to leave RoPE as it is.
        rope_factor: 0 means ceil(max_length / trained length).

    Returns:
        What was done, for records and for `restore_range`.

    Raises:
        ConfigError: a setting that is wrong or cannot take effect on this model.
    """
    lm = anatomy.causal_lm(model)
    kind = type(lm).__name__
    trained = anatomy.trained_length(lm.config)
    rotary = anatomy.rotary_modules(lm)
    _check_settings(kind, bool(rotary), max_length, learned_init, rope_type, rope_factor)
    done = getattr(lm.config, "hylorada_range", None)
    reach = done["to"] if done else trained
    unchanged = RangeReport("none", trained, reach)
    if max_length <= trained or (rotary and rope_type == "none"):
        return unchanged
    if done:
        same_type = done["type"] == rope_type or rope_type == "auto"
        same_factor = done["factor"] == rope_factor or rope_factor == 0
        same = (same_type and same_factor) if rotary else done["type"] == learned_init
        if same and max_length <= reach:
            return unchanged
        raise ConfigError(
            f"position_range: {kind} was already extended from {trained} to {reach} positions "
            f"({done['type']}); load the base model again to extend it to {max_length} otherwise"
        )
    if rotary:
        factor = float(rope_factor or math.ceil(max_length / trained))
        report = _rescale_rope(lm, dict(rotary), max_length, trained, rope_type, factor)
    else:
        found = anatomy.position_embedding(lm)
        if found is None:
            return unchanged  # no position is ever looked up, so none can be out of range (ALiBi)
        report = _lengthen_embedding(lm, *found, max_length, trained, learned_init)
    lm.config.hylorada_range = report.to_dict()
    return report


def restore_range(model: nn.Module, report: RangeReport) -> None:
    """Undo `extend_range`: the trained rows or rotary modules and the config as they were."""
    lm = anatomy.causal_lm(model)
    originals = report.originals
    if report.kind == "none" or not originals:
        return
    if report.kind == "learned":
        embedding = lm.get_submodule(originals["name"])
        now = embedding.weight
        weight = originals["weight"]
        weight.data = weight.data.to(now.device, now.dtype)
        embedding.weight = weight
        embedding.num_embeddings = weight.shape[0]
    else:
        for name, module in originals["modules"].items():
            device = lm.get_submodule(name).inv_freq.device
            lm.set_submodule(name, module.to(device))
        for config in _rope_configs(lm, list(originals["modules"].values())):
            config.rope_parameters = dict(originals["rope_parameters"])
            config.max_position_embeddings = report.from_length
    lm.config.max_position_embeddings = report.from_length
    lm.config.__dict__.pop("hylorada_range", None)
    report.originals = {}


def _check_settings(
    kind: str, rotary: bool, max_length: int, learned_init: str, rope_type: str, factor: float
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
    if not rotary and (rope_type not in ("auto", "none") or factor > 1):
        raise ConfigError(
            f"position_range: {kind} has no rotary position embedding; RoPE scaling does not "
            "apply; set rope_type=auto and rope_factor=0"
        )
    if rope_type == "none" and factor > 1:
        raise ConfigError(
            f"position_range.rope_factor: {factor} has no effect with rope_type=none; drop one"
        )


@torch.no_grad()
def _lengthen_embedding(
    lm: Any, name: str, embedding: nn.Embedding, offset: int, length: int, trained: int, init: str
) -> RangeReport:
    old = embedding.weight
    head, body = old[:offset], old[offset:]
    if init == "tile":
        rows = body[torch.arange(length, device=old.device) % trained]
    else:  # in float32: bf16 could not tell neighbouring rows apart
        scaled = torch.arange(length, device=old.device) * (trained - 1)  # exact, as integers
        left = scaled // (length - 1)
        t = (scaled % (length - 1) / (length - 1))[:, None]
        right = (left + 1).clamp(max=trained - 1)
        rows = torch.lerp(body[left].float(), body[right].float(), t)
    weight = torch.cat([head, rows.to(old.dtype)]).contiguous()
    embedding.weight = nn.Parameter(weight, requires_grad=old.requires_grad)
    embedding.num_embeddings = length + offset
    lm.config.max_position_embeddings = length
    originals = {"name": name, "weight": old}
    return RangeReport("learned", trained, length, length / trained, init, originals)


def _rescale_rope(
    lm: Any,
    modules: dict[str, Any],
    max_length: int,
    trained: int,
    rope_type: str,
    factor: float,
) -> RangeReport:
    kind = type(lm).__name__
    if trained * factor < max_length:
        raise ConfigError(
            f"position_range.rope_factor: {factor:g} x {trained} trained positions reach "
            f"{int(trained * factor)}, not max_length {max_length}; use 0 (automatic)"
        )
    before = dict(getattr(lm.config, "rope_parameters", None) or {})
    if before.get("rope_type") != "default":
        raise ConfigError(
            f"position_range: {kind} comes with rope_type={before.get('rope_type')} for {trained} "
            f"positions and cannot be rescaled to {max_length}; use rope_type=none"
        )
    if rope_type == "auto":
        rope_type = "linear" if max_length <= LINEAR_UP_TO else "yarn"
    for config in _rope_configs(lm, list(modules.values())):
        config.rope_parameters = {**before, "rope_type": rope_type, "factor": factor}
        if rope_type == "yarn":
            config.rope_parameters["original_max_position_embeddings"] = trained
        if rope_type != "dynamic":  # there, it is the length from which the scaling begins
            config.max_position_embeddings = int(trained * factor)
    originals = {"modules": modules, "rope_parameters": before}
    report = RangeReport("rope", trained, int(trained * factor), factor, rope_type, originals)
    for name, old in modules.items():
        new: Any = type(old)(config=getattr(old, "config", lm.config)).to(old.inv_freq.device)
        lm.set_submodule(name, new)
        if new.inv_freq.is_meta:
            continue
        same = torch.equal(new.inv_freq, old.inv_freq.float())
        if factor > 1 and same != (rope_type == "dynamic"):  # dynamic rescales when it runs
            restore_range(lm, report)
            raise ConfigError(
                f"position_range: {type(old).__name__} of {kind} does not follow the RoPE scaling "
                "of its config; use rope_type=none"
            )
    return report


def _rope_configs(lm: Any, modules: list[nn.Module]) -> list[Any]:
    """The config objects that the model and its rotary modules read, each once."""
    configs = [lm.config, *(m.config for m in modules if hasattr(m, "config"))]
    return list({id(config): config for config in configs}.values())
