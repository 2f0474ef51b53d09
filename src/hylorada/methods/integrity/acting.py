"""Does every component act, and only what should train trains?"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from hylorada.methods.integrity.probe import Probe
from hylorada.methods.integrity.report import Check, skipped
from hylorada.methods.positions import buckets_reached

NO_ADAPTER = "the model has no adapter"
# A change below this, relative to the spread of the logits, is rounding and not an effect.
VISIBLE = 1e-6


def switched_on(adapter: Any) -> list[str]:
    """The components that must have parameters, by the adapter's config."""
    switches = {
        "position_bias": "position_bias_enabled",
        "landmark": "landmark_enabled",
        "position_embeddings": "train_embeddings",
        "norms": "train_norms",
    }
    return ["lora", *(g for g, switch in switches.items() if getattr(adapter, switch, False))]


def parameter_audit(probe: Probe) -> Check:
    """Every component that is on has parameters, nothing else trains, the base is frozen."""
    name = "parameter_audit"
    if probe.adapter is None:
        return skipped(name, NO_ADAPTER)
    if not probe.groups:
        return Check(
            name, False, 0, 1, "nothing trains; load the adapter with is_trainable=True to train it"
        )
    expected = switched_on(probe.adapter)
    missing = [group for group in expected if group not in probe.groups]
    unexpected = []
    for group, members in probe.groups.items():
        for path, _ in members:
            copied = ".modules_to_save." in path  # listed in the adapter's config, so asked for
            own = ".lora_" in path
            if not (copied or own) or (own and group not in expected):
                unexpected.append(path)
    frozen = [
        path for path, p in probe.model.named_parameters()
        if not p.requires_grad and _belongs_to(path, probe.model.active_adapters[0])
    ]  # fmt: skip
    trainable = sum(p.numel() for members in probe.groups.values() for _, p in members)
    detail = f"{trainable} values train, in {', '.join(probe.groups)}"
    if missing:
        detail = f"{missing[0]} is switched on but has no trainable parameter; attach it again"
    elif frozen:
        detail = f"{frozen[0]} is part of the adapter but frozen; thaw it (requires_grad_(True))"
    elif unexpected:
        detail = (
            f"{unexpected[0]} trains although no component asks for it; freeze it "
            "(requires_grad_(False)) or list its module in modules_to_save"
        )
    wrong = len(missing) + len(frozen) + len(unexpected)
    return Check(name, wrong == 0, wrong, 0, detail)


def _belongs_to(path: str, adapter_name: str) -> bool:
    """Whether a parameter is one of the adapter's own."""
    parts = path.split(".")
    own = any(part.startswith("lora_") or part == "modules_to_save" for part in parts)
    return own and adapter_name in parts


def identity_at_start(probe: Probe) -> Check:
    """An adapter that has not been trained (all B zero) leaves the logits exactly as they are."""
    name = "identity_at_start"
    if probe.adapter is None:
        return skipped(name, NO_ADAPTER)
    if probe.adapter.peft_type not in ("LORA", "HYLORADA") or probe.adapter.use_dora:
        return skipped(name, "DoRA divides by a norm, so it starts as the identity up to rounding")
    b_matrices = [p for path, p in probe.groups.get("lora", []) if ".lora_B." in path]
    if not b_matrices or any(b.detach().any() for b in b_matrices):
        return skipped(name, "the adapter has been trained")
    if getattr(probe.adapter, "s2_in_evaluation", False):
        return skipped(name, "without the adapter, evaluation attends fully")
    with_adapter = probe.logits()
    with probe.attention_kept(), probe.model.disable_adapter():
        without = probe.logits()
    change = (with_adapter - without).abs().max().item()
    detail = f"the untrained adapter moves the logits by {change:.3g}"
    if change:
        detail += "; a component does not start as the identity, attach it again"
    return Check(name, change == 0.0, change, 0.0, detail)


def no_op(probe: Probe) -> Check:
    """Other parameters of a component give other logits."""
    name = "no_op"
    if probe.adapter is None:
        return skipped(name, NO_ADAPTER)
    before = probe.logits()
    spread = before.std().item()
    effects = dict.fromkeys(switched_on(probe.adapter), 0.0)
    for group in probe.groups:
        with probe.perturbed([group]):
            after = probe.logits()
        if not after.isfinite().all():
            return Check(name, False, None, None, f"{group}: the logits are not finite")
        effects[group] = (after - before).abs().max().item() / spread
    weakest = min(effects, key=lambda group: effects[group])
    ok = effects[weakest] > VISIBLE
    detail = (
        f"changing the parameters of {weakest} moves the logits by {effects[weakest]:.3g} of their "
        "spread"
    )
    if not ok:
        detail += "; the component is attached but never applied, switch it off or attach it again"
    return Check(name, ok, effects[weakest], VISIBLE, detail)


def gradient_coverage(probe: Probe) -> Check:
    """Every trainable tensor gets a finite gradient that is not all zeros.

    Runs on perturbed parameters: with B = 0 at the start, some gradients are zero rightly.
    """
    name = "gradient_coverage"
    if probe.adapter is None:
        return skipped(name, NO_ADAPTER)
    members = [member for group in probe.groups.values() for member in group]
    probe.model.train()
    torch.manual_seed(probe.seed)
    with torch.enable_grad(), probe.s2_groups(probe.group_size):
        output = probe.model(input_ids=probe.ids_1T, use_cache=False)
        F.cross_entropy(output.logits[0, :-1].float(), probe.ids_1T[0, 1:]).backward()
    bad = []
    for path, parameter in members:
        gradient = parameter.grad
        if gradient is None:
            bad.append((path, "gets no gradient"))
        elif not gradient.isfinite().all():
            bad.append((path, "gets a gradient that is not finite"))
        elif not gradient.any():
            bad.append((path, "gets a gradient of exactly zero"))
        parameter.grad = None
    detail = f"all {len(members)} trainable tensors get a gradient"
    if bad:
        detail = (
            f"{bad[0][0]} {bad[0][1]} ({len(bad)} of {len(members)} tensors); its component is "
            "not part of the forward pass, switch it off or attach it again"
        )
    return Check(name, not bad, len(bad), 0, detail)


def position_buckets(probe: Probe, max_length: int) -> dict[str, dict[str, int]]:
    """How many buckets of each table a text of max_length tokens reaches."""
    adapter, found = probe.adapter, {}
    tables = {
        "position_bias": ("position_bias_enabled", "position_buckets"),
        "landmark": ("landmark_enabled", "landmark_position_buckets"),
    }
    for component, (switch, size) in tables.items():
        buckets = getattr(adapter, size, 0)
        if getattr(adapter, switch, False) and buckets:
            reached = buckets_reached(max_length, buckets, adapter.bucketing)
            found[component] = {"reached": reached, "of": buckets}
    return found
