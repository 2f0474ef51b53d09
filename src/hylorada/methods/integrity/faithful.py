"""Does the model read only the past, decode as it trains, and survive saving?"""

from __future__ import annotations

import copy
import itertools
import tempfile
import warnings
from typing import Any

import torch
from peft import PeftModel

from hylorada.methods.integrity.acting import NO_ADAPTER
from hylorada.methods.integrity.probe import Probe
from hylorada.methods.integrity.report import Check, skipped

# Cached and uncached logits differ by rounding: sums in another order, relative to the spread of
# the logits. A state dropped between two chunks moves them by more than a hundred times this.
CACHE_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
NOT_SAVED = (
    "a trained tensor or a setting of the adapter is not saved; check modules_to_save and the "
    "files of save_pretrained"
)


def causality(probe: Probe, allow_leak: bool) -> Check:
    """Changing the tokens from t on leaves the logits before t exactly as they are.

    In training and evaluation mode, at several t, at a length that no group divides and, with
    shifted sparse attention, at one that it does.
    """
    name = "causality"
    with probe.s2_groups(probe.group_size):
        leak, effect = _leak(probe)
        component = _who_leaks(probe) if leak > 0 else ""
    if effect == 0.0:
        detail = "changed tokens change no logit at all; the model does not read its input"
        return Check(name, False, leak, 0.0, detail)
    if leak == 0.0:
        return Check(name, True, leak, 0.0, "logits do not move when later tokens change")
    detail = (
        f"{component} reads the future: past logits move by {leak:.3g} when later tokens change"
    )
    if allow_leak:
        return Check(name, True, leak, 0.0, f"{detail} (allowed as a control arm)")
    fix = (
        "use landmark_pooling=prefix_mean, or integrity.allow_leak=true for a control arm"
        if component == "landmark"
        else "it must not see later tokens; switch it off"
    )
    return Check(name, False, leak, 0.0, f"{detail}; {fix}")


def packed_documents(probe: Probe, packed: bool) -> Check:
    """In a row of two documents, told apart by their positions, neither reads the other.

    The first one's tokens are changed: no logit of the second may move.
    """
    name = "packed_documents"
    if not packed:
        return skipped(name, "a block never holds more than one document")
    n = probe.length
    cut = n // 2 + 1
    positions_1T = torch.cat([torch.arange(cut), torch.arange(n - cut)])[None].to(probe.device)
    ids_1T = probe.ids_1T
    changed_1T = ids_1T.clone()
    changed_1T[:, :cut] = (changed_1T[:, :cut] + 1) % probe.vocabulary
    with probe.s2_groups(probe.group_size):
        moved_T = [
            (
                probe.logits(changed_1T, training, positions_1T)
                - probe.logits(ids_1T, training, positions_1T)
            ).abs()
            for training in (True, False)
        ]
    leak = max(moved[cut:].max().item() for moved in moved_T)
    if not leak > 0.0:
        return Check(name, True, leak, 0.0, "a document does not read the one packed before it")
    detail = (
        f"{type(probe.lm).__name__} reads the document packed before its own: logits move by "
        f"{leak:.3g}; set dataset.packing=documents"
    )
    return Check(name, False, leak, 0.0, detail)


def _leak(probe: Probe) -> tuple[float, float]:
    """The largest change before a cut, and the largest after one."""
    n = probe.length
    lengths = [n]
    if probe.s2_configs and n % probe.group_size:
        lengths.append(n - n % probe.group_size)
    leak = effect = 0.0
    for training in (True, False):
        for length in lengths if training else lengths[:1]:
            before_TV = probe.logits(probe.ids_1T[:, :length], training)
            for cut in sorted({max(1, length // 3), length // 2 + 1, length - 1}):
                after_TV = probe.logits(probe.other_tokens(cut, length), training)
                moved_T = (after_TV - before_TV).abs().amax(1)
                if not moved_T.isfinite().all():
                    return float("inf"), 1.0
                leak = max(leak, moved_T[:cut].max().item())
                effect = max(effect, moved_T[cut:].max().item())
    return leak, effect


def _who_leaks(probe: Probe) -> str:
    """The component without which nothing leaks."""
    with probe.s2_groups(probe.length):
        if probe.s2_configs and _leak(probe)[0] == 0.0:
            return "s2 attention"
    for group in ("landmark", "position_bias"):
        members = [p for _, p in probe.groups.get(group, [])]
        kept = [p.detach().clone() for p in members]
        with torch.no_grad():
            for parameter in members:
                parameter.zero_()
        silent = bool(members) and _leak(probe)[0] == 0.0
        with torch.no_grad():
            for parameter, value in zip(members, kept, strict=True):
                parameter.copy_(value)
        if silent:
            return group
    return "the model's attention"


def cache_parity(probe: Probe) -> Check:
    """Logits computed piece by piece with a KV cache are those of one pass."""
    name = "cache_parity"
    adapter, config = probe.adapter, probe.lm.config
    leaks = getattr(adapter, "landmark_enabled", False) and (
        getattr(adapter, "landmark_pooling", "") == "sequence_mean"
    )
    if leaks:
        return skipped(name, "a landmark that reads the future cannot be decoded piece by piece")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "dynamic" and probe.length > config.max_position_embeddings:
        return skipped(name, "dynamic RoPE changes its frequencies while the text grows")
    if probe.s2_configs and any(
        c.s2_in_evaluation and probe.length > c.s2_group_size for c in probe.s2_configs
    ):
        return skipped(name, "s2_in_evaluation: decoding attends fully, one pass in segments")
    whole_TV = probe.logits()
    n = probe.length
    cuts = sorted({0, n // 2, n // 2 + 5, n - 2, n - 1, n})
    cache: Any = None
    pieces = []
    with torch.no_grad():
        for start, end in itertools.pairwise(cuts):
            output = probe.model(
                input_ids=probe.ids_1T[:, start:end], past_key_values=cache, use_cache=True
            )
            cache = output.past_key_values
            pieces.append(output.logits[0].float())
    error = ((torch.cat(pieces) - whole_TV).abs().max() / whole_TV.std()).item()
    dtype = probe.lm.get_input_embeddings().weight.dtype
    limit = CACHE_TOLERANCE.get(dtype, CACHE_TOLERANCE[torch.bfloat16])
    detail = f"decoding with a cache moves the logits by {error:.3g} of their spread"
    if not error <= limit:
        detail += "; a component loses its state between two pieces, or restarts its positions"
    return Check(name, error <= limit, error, limit, detail)


def save_load(probe: Probe) -> Check:
    """Saved and loaded onto the bare base model, the adapter gives the same logits, bit for bit."""
    name = "save_load"
    if probe.adapter is None:
        return skipped(name, NO_ADAPTER)
    before_TV = probe.logits()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Not "auto": peft would ask the hub for the base model's vocabulary.
        probe.model.save_pretrained(folder, save_embedding_layers=False)
        base = _structure_sharing_weights(probe.model).unload()
        active = probe.model.active_adapters[0]
        path = folder if active == "default" else f"{folder}/{active}"
        model_under_test = probe.model
        try:
            probe.model = PeftModel.from_pretrained(base, path, torch_device=str(probe.device))
            after_TV = probe.logits()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())
            return Check(name, False, None, 0.0, f"{NOT_SAVED} ({type(error).__name__}: {reason})")
        finally:
            probe.model = model_under_test
    change = (after_TV - before_TV).abs().max().item()
    same = torch.equal(after_TV, before_TV)
    detail = "the saved adapter gives the same logits"
    if not same:
        detail = f"{NOT_SAVED} (logits differ by {change:.3g})"
    return Check(name, same, change, 0.0, detail)


def _structure_sharing_weights(model: Any) -> Any:
    """A copy of all modules and configs; the tensors stay shared, so it costs no memory."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
