"""A placebo does nothing: without its components the model gives the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hylorada.methods.integrity.probe import Probe
from hylorada.methods.integrity.report import Check
from hylorada.methods.position_bias import PositionBiasVariant


def placebo(probe: Probe) -> Check:
    """The logits are those of the model without the components, bit for bit, in both modes.

    Runs on perturbed parameters, with which a component that acts would move them.
    """
    name = "placebo"
    if not probe.inert:
        detail = (
            "the method is a placebo, but neither position bias nor landmarks are attached; switch "
            "one of them on, or placebo off"
        )
        return Check(name, False, None, 0.0, detail)
    moved = 0.0
    for training in (False, True):
        with_them = probe.logits(training=training)
        chance = (probe.logits(training=training) - with_them).abs().max().item()
        with _without_components(probe):
            bare = probe.logits(training=training)
        moved = max(moved, (with_them - bare).abs().max().item() - chance)
    what = " and ".join(probe.inert)
    detail = f"{what} attached, and the logits are those without, bit for bit"
    if moved:
        detail = (
            f"{what}: a placebo that moves the logits by {moved:.3g}; its output must be "
            "multiplied by 0"
        )
    return Check(name, moved == 0.0, moved, 0.0, detail)


@contextmanager
def _without_components(probe: Probe) -> Iterator[None]:
    """The model as it would be if position bias and landmarks had not been attached."""
    tuner, adapter = probe.model.base_model, probe.model.active_adapters[0]
    layers: list[tuple[Any, Any]] = [
        (layer, layer.lora_variant.pop(adapter))
        for layer in probe.model.modules()
        if isinstance(getattr(layer, "lora_variant", {}).get(adapter), PositionBiasVariant)
    ]
    landmark = tuner.lora_landmark.pop(adapter) if adapter in tuner.lora_landmark else None
    try:
        yield
    finally:
        for layer, variant in layers:
            layer.lora_variant[adapter] = variant
        if landmark is not None:
            tuner.lora_landmark[adapter] = landmark
