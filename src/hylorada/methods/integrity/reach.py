"""Does shifted sparse attention run, and does the model reach the positions it is meant for?"""

from __future__ import annotations

import copy
from typing import Any

import torch

from hylorada import anatomy
from hylorada.methods.integrity.acting import VISIBLE
from hylorada.methods.integrity.probe import Probe
from hylorada.methods.integrity.report import Check, skipped
from hylorada.methods.s2_attention import count_s2_layers


def s2_layers(probe: Probe) -> Check:
    """All attention layers run in segments, and that changes what a training step computes."""
    name = "s2_layers"
    wanted = getattr(probe.adapter, "s2_attn_enabled", False) or bool(probe.s2_configs)
    if not wanted:
        return skipped(name, "shifted sparse attention is off")
    layers = len(anatomy.attention_modules(probe.lm))
    count = count_s2_layers(probe.model)
    fix = "call enable_s2, or set method.s2_attn.enabled=false"
    if count != layers:
        detail = f"{count} of {layers} attention layers take shifted sparse attention; {fix}"
        return Check(name, False, count, layers, detail)
    with probe.s2_groups(probe.length):
        full = probe.logits(training=True)
    with probe.s2_groups(probe.group_size):
        segmented = probe.logits(training=True)
    change = ((segmented - full).abs().max() / full.std()).item()
    if not change > VISIBLE:
        detail = f"shifted sparse attention computes what full attention does; {fix}"
        return Check(name, False, change, VISIBLE, detail)
    return Check(name, True, count, layers, f"{count} of {layers} attention layers take it")


def rope(probe: Probe, max_length: int) -> Check:
    """The frequencies in use are those of the config, and scaled if the range was extended."""
    name = "rope"
    rotary = anatomy.rotary_modules(probe.lm)
    if not rotary:
        return skipped(name, "the model has no rotary position embedding")
    parameters = dict(getattr(probe.lm.config, "rope_parameters", None) or {})
    kind = parameters.get("rope_type", "default")
    trained = anatomy.trained_length(probe.lm.config)
    asked = getattr(probe.adapter, "rope_scaling_type", "none")
    reach = getattr(probe.adapter, "max_length", 0)
    if asked != "none" and reach > trained and kind == "default":
        detail = f"RoPE scaling ({asked}) is on but the config has none; call extend_range"
        return Check(name, False, None, None, detail)
    worst = 0.0
    for path, module in rotary:
        live: Any = module
        # What the makers of the model compute from this config, against what runs.
        rebuilt = type(live)(config=live.config if hasattr(live, "config") else probe.lm.config)
        original = getattr(live, "original_inv_freq", live.inv_freq)  # dynamic: not the last used
        expected = rebuilt.inv_freq.to(original.device)
        error = ((original.float() - expected).abs() / expected).max().item()
        scaled = getattr(live, "attention_scaling", 1.0), getattr(rebuilt, "attention_scaling", 1.0)
        error = max(error, abs(scaled[0] - scaled[1]))
        worst = max(worst, error)
        if error > 0:
            detail = (
                f"{path} does not follow rope_parameters (rope_type={kind}): its frequencies are "
                f"off by {error:.3g}; build it from the config (extend_range), in float32"
            )
            return Check(name, False, error, 0.0, detail)
        if kind in ("linear", "yarn") and parameters.get("factor", 1.0) > 1.0:
            plain = _unscaled(live, probe.lm.config)
            if torch.equal(plain.to(original.device), original):
                detail = f"{path}: RoPE scaling ({kind}) changes no frequency; use rope_type=none"
                return Check(name, False, 0.0, 0.0, detail)
    factor = parameters.get("factor")
    told = f"{kind}, factor {factor:g}" if factor else kind
    return Check(name, True, worst, 0.0, f"the frequencies in use are those of the config ({told})")


def _unscaled(live: Any, config: Any) -> torch.Tensor:
    config = copy.deepcopy(getattr(live, "config", config))
    config.rope_parameters = {**config.rope_parameters, "rope_type": "default"}
    return type(live)(config=config).inv_freq


def position_range(probe: Probe, max_length: int) -> Check:
    """Learned position embeddings have a row for every position."""
    name = "position_range"
    found = anatomy.position_embedding(probe.lm)
    if found is None:
        if probe.lm.config.max_position_embeddings is None or anatomy.rotary_modules(probe.lm):
            return skipped(name, "the model looks no position up")
        detail = "the position embeddings do not fit the config; call extend_range"
        return Check(name, False, None, max_length, detail)
    path, embedding, offset = found
    reach = min(embedding.num_embeddings, embedding.weight.shape[0]) - offset
    detail = f"{path.removesuffix('.original_module')} has rows for {reach} positions"
    if reach < max_length:
        detail += f", max_length is {max_length}; call extend_range first"
    return Check(name, reach >= max_length, reach, max_length, detail)
