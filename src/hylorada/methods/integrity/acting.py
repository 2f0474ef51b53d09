"""Does every component act, and only what should train trains?"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hylorada.methods.integrity.adapters import is_own, own_names
from hylorada.methods.integrity.probe import Probe
from hylorada.methods.integrity.report import Check, skipped

NO_ADAPTER = "the model has no adapter"
# A change below this, relative to the spread of the logits, is rounding and not an effect.
VISIBLE = 1e-6
TIMES_ROUNDING = 10  # an effect below so many times rounding is worth a warning


def switched_on(probe: Probe) -> list[str]:
    """The components that must have parameters, by the adapter's config."""
    switches = {
        "position_bias": "position_bias_enabled",
        "landmark": "landmark_enabled",
        "position_embeddings": "train_embeddings",
        "norms": "train_norms",
    }
    on = [group for group, switch in switches.items() if getattr(probe.adapter, switch, False)]
    return [probe.kind, *on]


def parameter_audit(probe: Probe) -> Check:
    """Every component that is on has parameters, nothing else trains, the base is frozen."""
    name = "parameter_audit"
    if probe.adapter is None:
        return skipped(name, NO_ADAPTER)
    if not probe.groups:
        return Check(
            name, False, 0, 1, "nothing trains; load the adapter with is_trainable=True to train it"
        )
    expected = switched_on(probe)
    missing = [group for group in expected if group not in probe.groups]
    names = own_names(probe.model)
    biases = getattr(probe.adapter, "bias", "none") != "none"
    tokens = getattr(probe.adapter, "trainable_token_indices", None)
    unexpected = []
    for group, members in probe.groups.items():
        for path, _ in members:
            asked = ".modules_to_save." in path or (biases and path.endswith(".bias"))
            asked = asked or (tokens and ".trainable_tokens_delta." in path)
            own = is_own(path, names) and (probe.kind != "lora" or group in expected)
            if not (asked or own):
                unexpected.append(path)
    frozen = _frozen(probe, names)
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


def _frozen(probe: Probe, names: tuple[set[str], str]) -> list[str]:
    """Parameters of the active adapter that should train and do not.

    Of LoRA all train. Other methods freeze parts of their own, in every layer alike; one that is
    frozen while its namesakes train was frozen by somebody.
    """
    adapter = probe.model.active_adapters[0]
    if probe.kind == "lora":
        return [
            path for path, p in probe.model.named_parameters()
            if not p.requires_grad and _belongs_to(path, adapter)
        ]  # fmt: skip
    by_name: dict[str, list[tuple[str, bool]]] = {}
    for path, parameter in probe.model.named_parameters():
        parts = path.split(".")
        if adapter in parts and is_own(path, names):
            own = next((p for p in reversed(parts) if is_own(p, names)), parts[-1])
            by_name.setdefault(own, []).append((path, parameter.requires_grad))
    return [
        path
        for members in by_name.values()
        if any(trains for _, trains in members)
        for path, trains in members
        if not trains
    ]


def _belongs_to(path: str, adapter_name: str) -> bool:
    """Whether a parameter is one of a LoRA adapter's own."""
    parts = path.split(".")
    own = any(part.startswith("lora_") or part == "modules_to_save" for part in parts)
    return own and adapter_name in parts


def identity_at_start(probe: Probe) -> Check:
    """An untrained adapter that starts as the identity leaves the logits exactly as they are.

    LoRA with all B zero must; of other methods and initialisations it is only reported.
    """
    name = "identity_at_start"
    if probe.adapter is None:
        return skipped(name, NO_ADAPTER)
    if getattr(probe.adapter, "s2_in_evaluation", False):
        return skipped(name, "without the adapter, evaluation attends fully")
    must = probe.kind == "lora"
    if must:
        reason = _why_not_identity(probe)
        if reason:
            return skipped(name, reason)
    with_adapter = probe.logits()
    with probe.attention_kept(), probe.model.disable_adapter():
        without = probe.logits()
    change = (with_adapter - without).abs().max().item()
    if change and not must:
        return skipped(
            name,
            f"{probe.kind.upper()} with these settings does not start as the identity, "
            f"or has been trained: it moves the logits by {change:.3g}",
        )
    detail = f"the untrained adapter moves the logits by {change:.3g}"
    if change:
        detail += "; a component does not start as the identity, attach it again"
    return Check(name, change == 0.0, change, 0.0, detail)


def _why_not_identity(probe: Probe) -> str:
    """Why a LoRA adapter need not leave the logits as they are; empty if it must."""
    if probe.adapter.use_dora:
        return "DoRA divides by a norm, so it starts as the identity up to rounding"
    zeros = [p for path, p in probe.groups.get("lora", []) if _starts_at_zero(path)]
    if zeros and not any(p.detach().any() for p in zeros):
        return ""
    start = probe.adapter.init_lora_weights
    if start not in (True, "gaussian"):
        return f"init_lora_weights={start} starts with another B than zero"
    return "the adapter has been trained"


def _starts_at_zero(path: str) -> bool:
    """B; of an embedding it is A."""
    return ".lora_B." in path or ".lora_embedding_A." in path


def no_op(probe: Probe, autocast: torch.dtype | None) -> Check:
    """Other parameters of a component give other logits.

    A component that is not applied changes nothing at all. One whose effect is of the size of
    rounding acts, but can hardly be measured: a warning.
    """
    name = "no_op"
    if probe.adapter is None:
        return skipped(name, NO_ADAPTER)
    before = probe.logits()
    spread = before.std().item()
    chance = 0.0
    if probe.device.type != "cpu":  # where some kernels are not deterministic
        chance = (probe.logits() - before).abs().max().item()
    acting = [group for group in probe.groups if group not in probe.inert]
    effects = dict.fromkeys((g for g in switched_on(probe) if g not in probe.inert), 0.0)
    for group in acting:
        with probe.perturbed([group]):
            after = probe.logits()
        if not after.isfinite().all():
            return Check(name, False, None, None, f"{group}: the logits are not finite")
        effects[group] = (after - before).abs().max().item() / spread
    weakest = min(effects, key=lambda group: effects[group])
    limit = chance / spread
    detail = (
        f"changing the parameters of {weakest} moves the logits by {effects[weakest]:.3g} of their "
        "spread"
    )
    if not effects[weakest] > limit:
        detail += "; the component is attached but never applied, switch it off or attach it again"
        return Check(name, False, effects[weakest], limit, detail)
    rounding = rounding_of(probe, autocast, before) / spread
    warnings = [
        f"{group}: changing its parameters moves the logits by {effect:.3g} of their spread, less "
        f"than {TIMES_ROUNDING} times rounding ({rounding:.3g} in "
        f"{_precision(autocast, probe.dtype)}); its effect can hardly be told from it"
        for group, effect in effects.items()
        if effect < TIMES_ROUNDING * rounding
    ]
    return Check(name, True, effects[weakest], limit, detail, warnings=warnings)


def _precision(autocast: torch.dtype | None, dtype: torch.dtype) -> str:
    """As a sentence says it."""
    return str(autocast or dtype).removeprefix("torch.")


def rounding_of(probe: Probe, autocast: torch.dtype | None, before: Tensor) -> float:
    """How far logits move for no other reason than rounding, in the run's precision.

    The same text is computed in other shapes: as one row of several. Under autocast it is compared
    with the model's own precision too. At least half a unit in the last place of a logit.
    """
    others = [probe.another_text() for _ in range(2)]
    batch_BT = torch.cat([probe.ids_1T, *others])
    in_full = before
    context: Any = contextlib.nullcontext()
    if autocast is not None:
        context = torch.autocast(probe.device.type, autocast)
    with context:
        alone = in_full if autocast is None else probe.logits()
        among = probe.logits(batch_BT)
    moved = max((alone - among).abs().max().item(), (alone - in_full).abs().max().item())
    unit = torch.finfo(autocast or probe.dtype).eps / 2
    return max(moved, unit * in_full.abs().max().item())


def gradient_coverage(probe: Probe) -> Check:
    """Every trainable tensor gets a finite gradient that is not all zeros.

    Runs on perturbed parameters: with B = 0 at the start, some gradients are zero rightly.
    """
    name = "gradient_coverage"
    if probe.adapter is None:
        return skipped(name, NO_ADAPTER)
    members = [
        member for name, group in probe.groups.items() if name not in probe.inert
        for member in group
    ]  # fmt: skip
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
    probe.model.zero_grad(set_to_none=True)
    detail = f"all {len(members)} trainable tensors get a gradient"
    if probe.inert:
        detail += f" but those of the placebo ({', '.join(probe.inert)})"
    if bad:
        detail = (
            f"{bad[0][0]} {bad[0][1]} ({len(bad)} of {len(members)} tensors); its component is "
            "not part of the forward pass, switch it off or attach it again"
        )
    return Check(name, not bad, len(bad), 0, detail)
