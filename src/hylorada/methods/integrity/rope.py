"""Are the rotary frequencies in use those of the config, and do logits depend on their scaling?

A table that follows its config proves nothing by itself: Falcon with ALiBi has a rotary module that
is never called. So tables are exchanged and put back, and the logits must move.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hylorada.architecture import anatomy
from hylorada.methods.integrity.probe import Probe
from hylorada.methods.integrity.report import Check, skipped

_ANEW = ("dynamic", "longrope")


def rope(probe: Probe, max_length: int) -> Check:
    """Frequencies follow the config; where they are scaled, unscaled ones give other logits."""
    name = "rope"
    rotary = dict(anatomy.rotary_modules(probe.lm))
    if not rotary:
        return skipped(name, "the model has no rotary position embedding")
    with _exchanged(probe.lm, {path: _changed(module) for path, module in rotary.items()}):
        moved = _logits(probe, max_length)
    own = _logits(probe, max_length)
    asked = getattr(probe.adapter, "rope_scaling_type", "none")
    if torch.equal(moved, own):
        if _scaling(rotary) and (asked != "none" or _extended(probe.lm)):
            detail = (
                f"RoPE scaling changes no logit: {type(probe.lm).__name__} never reads its rotary "
                "table; set method.position_range.rope_type=none"
            )
            return Check(name, False, 0.0, 0.0, detail)
        return skipped(name, "no logit depends on the model's rotary table")
    trained = anatomy.trained_length(probe.lm.config)
    scaling = _scaling(rotary) or rope_scaling(getattr(probe.lm.config, "rope_parameters", None))
    if asked != "none" and getattr(probe.adapter, "max_length", 0) > trained and not scaling:
        detail = f"RoPE scaling ({asked}) is on but the config has none; call extend_range"
        return Check(name, False, None, None, detail)
    for path, module in rotary.items():
        error, table = _off(module, _config(probe.lm, module))
        if error > 0:
            detail = (
                f"{path} does not follow rope_parameters ({_told(scaling)}): its {table} is off by "
                f"{error:.3g}; build it from the config (extend_range), in float32"
            )
            return Check(name, False, error, 0.0, detail)
    if not scaling or not _extended(probe.lm):
        detail = f"the frequencies in use are those of the config ({_told(scaling)})"
        return Check(name, True, 0.0, 0.0, detail)
    least = _effect_of_scaling(probe, rotary, own, max_length)
    if least is None:
        detail = f"RoPE scaling ({_told(scaling)}) changes no frequency; use rope_type=none"
        return Check(name, False, 0.0, 0.0, detail)
    effect, table = least
    if not effect > 0.0:
        detail = (
            f"RoPE scaling ({_told(scaling)}) of {table} changes no logit; set "
            "method.position_range.rope_type=none"
        )
        return Check(name, False, 0.0, 0.0, detail)
    detail = (
        f"the frequencies in use are those of the config ({_told(scaling)}); without the scaling "
        f"of {table} the logits move by {effect:.3g} of their spread"
    )
    return Check(name, True, effect, 0.0, detail)


def _logits(probe: Probe, max_length: int) -> Tensor:
    """At the last positions of the range, where dynamic RoPE is scaled too."""
    positions_1T = torch.arange(max_length - probe.length, max_length, device=probe.device)[None]
    return probe.logits(positions_BT=positions_1T)


def _effect_of_scaling(
    probe: Probe, rotary: dict[str, Any], own_TV: Tensor, max_length: int
) -> tuple[float, str] | None:
    """How far logits move without the scaling of one table: the least, and of which.

    None if no table is scaled.
    """
    effects = []
    for path, module in rotary.items():
        plain = _plain(module, _config(probe.lm, module))
        dynamic = "dynamic" in _scaling([module])
        for table in _tables(module):
            if not dynamic and torch.equal(getattr(plain, table), _kept(module, table)):
                continue
            with _exchanged(probe.lm, {path: _with_one(module, plain, table, dynamic)}):
                moved_TV = _logits(probe, max_length)
            change = ((moved_TV - own_TV).abs().max() / own_TV.std()).item()
            effects.append((change, f"{path}.{table}"))
    return min(effects, default=None)


def _with_one(module: Any, plain: Any, table: str, dynamic: bool) -> Any:
    """A copy of a rotary module in which one table is the unscaled one."""
    if dynamic:  # it computes its table anew at every call
        return plain
    copied = copy.deepcopy(module)
    kind = table.removesuffix("inv_freq")
    for attribute in (table, f"{kind}original_inv_freq", f"original_{table}"):
        if hasattr(copied, attribute):
            setattr(copied, attribute, getattr(plain, table).clone())
    scale = f"{kind}attention_scaling"
    if hasattr(copied, scale):
        setattr(copied, scale, getattr(plain, scale))
    return copied


def _tables(module: Any) -> list[str]:
    """The tables that a rotary module reads: one, or one for each kind of layer."""
    return list(anatomy.rotary_tables(module).values())


def _kept(module: Any, table: str) -> Tensor:
    """A table; of those that are computed anew for each length, as it was built."""
    kind = table.removesuffix("inv_freq")
    types = getattr(module, "rope_type", "")
    if (types.get(kind.rstrip("_"), "") if isinstance(types, dict) else types) not in _ANEW:
        return getattr(module, table)
    for attribute in (f"{kind}original_inv_freq", f"original_{table}"):
        if hasattr(module, attribute):
            return getattr(module, attribute)
    return getattr(module, table)


def _off(live: Any, config: Any) -> tuple[float, str]:
    """How far a module is from the one that its makers' code builds from the config."""
    rebuilt, worst = type(live)(config=config), (0.0, "")
    for table in _tables(live):
        kept = _kept(live, table)
        expected = getattr(rebuilt, table).to(kept.device)
        scale = f"{table.removesuffix('inv_freq')}attention_scaling"
        error = ((kept.float() - expected).abs() / expected.abs().clamp(min=1e-30)).max().item()
        error = max(error, abs(getattr(live, scale, 1.0) - getattr(rebuilt, scale, 1.0)))
        worst = max(worst, (error, table))
    return worst


def _config(lm: Any, module: Any) -> Any:
    return getattr(module, "config", None) or lm.config


def _plain(module: Any, config: Any) -> Any:
    """The module as it would be without any scaling."""
    config = copy.deepcopy(config)
    parameters = config.rope_parameters
    config.rope_parameters = (
        {kind: own and {**own, "rope_type": "default"} for kind, own in parameters.items()}
        if _nested(parameters)
        else {**parameters, "rope_type": "default"}
    )
    device = getattr(module, _tables(module)[0]).device
    return type(module)(config=config).to(device)


def _changed(module: Any) -> Any:
    """A copy that gives something else, whether it is called or its tables are read."""
    copied = copy.deepcopy(module)
    for name in [*copied._buffers, *(["inv_freq"] if "inv_freq" in copied.__dict__ else [])]:
        if name.endswith("inv_freq"):
            setattr(copied, name, getattr(copied, name) * 0.5)
    copied.register_forward_hook(lambda _, args, output: _halved(output))
    return copied


def _halved(output: Any) -> Any:
    return output * 0.5 if isinstance(output, Tensor) else tuple(_halved(part) for part in output)


@contextmanager
def _exchanged(lm: Any, modules: dict[str, Any]) -> Iterator[None]:
    """Other modules in these places for a while."""
    kept = {path: lm.get_submodule(path) for path in modules}
    try:
        for path, module in modules.items():
            lm.set_submodule(path, module)
        yield
    finally:
        for path, module in kept.items():
            lm.set_submodule(path, module)


def _nested(parameters: Any) -> bool:
    """Whether there are settings for each kind of layer."""
    values = (parameters or {}).values()
    return any(isinstance(value, dict) for value in values)


def rope_scaling(parameters: Any) -> dict[str, float]:
    """Rope types other than the default, with their factors."""
    every = parameters.values() if _nested(parameters) else [parameters or {}]
    return {
        own["rope_type"]: own.get("factor", 1.0)
        for own in every
        if own and own.get("rope_type", "default") != "default"
    }


def _scaling(rotary: Any) -> dict[str, float]:
    modules = rotary.values() if isinstance(rotary, dict) else rotary
    found: dict[str, float] = {}
    for module in modules:
        found |= rope_scaling(getattr(getattr(module, "config", None), "rope_parameters", None))
    return found


def _told(scaling: dict[str, float]) -> str:
    if not scaling:
        return "rope_type=default"
    return "; ".join(f"rope_type={kind}, factor {factor:g}" for kind, factor in scaling.items())


def _extended(lm: Any) -> bool:
    """Whether `extend_range` rescaled this model."""
    done: Any = getattr(lm.config, "hylorada_range", None)
    return bool(done) and done["kind"] == "rope"
