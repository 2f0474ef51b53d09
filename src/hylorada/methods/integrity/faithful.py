"""Is the model what is scored, does it decode as it trains, and survive saving?"""

from __future__ import annotations

import copy
import tempfile
import warnings
from typing import Any

import torch
from peft import PeftModel

from hylorada.architecture import anatomy
from hylorada.architecture.logits import TOLERANCE, disagreement
from hylorada.errors import ConfigError, in_one_line
from hylorada.methods.integrity.acting import NO_ADAPTER
from hylorada.methods.integrity.probe import Probe, keeps_keys_and_values
from hylorada.methods.integrity.report import Check, skipped
from hylorada.methods.integrity.rope import rope_scaling

# Cached and uncached logits differ by rounding: sums in another order, relative to the spread of
# the logits. A state dropped between two chunks moves them by more than a hundred times this.
CACHE_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
CANNOT_LOAD = (
    "a trained tensor or a setting of the adapter is not saved, or the saved adapter cannot be "
    "loaded again"
)
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
NOT_SAVED = (
    "a trained tensor or a setting of the adapter is not saved; check modules_to_save and the "
    "files of save_pretrained"
)


def scored_logits(probe: Probe) -> Check:
    """Loss and scores are computed from the logits that the model's own forward pass gives."""
    name = "scored_logits"
    limit = TOLERANCE.get(probe.dtype, TOLERANCE[torch.bfloat16])
    probe.model.eval()
    try:
        change = disagreement(probe.model, probe.ids_1T)
    except ConfigError as error:
        detail = f"{type(probe.lm).__name__} cannot be scored from its hidden states ({error})"
        return Check(name, False, None, limit, detail)
    if change <= limit:
        detail = "what is trained and scored are the logits of the model's own forward pass"
        return Check(name, True, change, limit, detail)
    what = type(probe.model).__name__
    detail = (
        f"{what}.forward gives other logits than those that are trained and scored, which are the "
        f"output head of the backbone's hidden states: they differ by {change:.3g} of the largest; "
        f"something acts outside the layers of {type(probe.lm).__name__}, use an adapter without it"
    )
    return Check(name, False, change, limit, detail)


def cache_parity(probe: Probe) -> Check:
    """Logits computed piece by piece with a KV cache are those of one pass."""
    name = "cache_parity"
    adapter, config = probe.adapter, probe.lm.config
    if not probe.decodes:
        return skipped(name, f"{type(probe.lm).__name__} keeps no KV cache")
    leaks = getattr(adapter, "landmark_enabled", False) and (
        getattr(adapter, "landmark_pooling", "") == "sequence_mean"
    )
    if leaks:
        return skipped(name, "a landmark that reads the future cannot be decoded piece by piece")
    dynamic = "dynamic" in rope_scaling(getattr(config, "rope_parameters", None))
    if dynamic and probe.length > anatomy.trained_length(config):
        return skipped(name, "dynamic RoPE changes its frequencies while the text grows")
    if probe.s2_configs and any(
        c.s2_in_evaluation and probe.length > c.s2_group_size for c in probe.s2_configs
    ):
        return skipped(name, "s2_in_evaluation: decoding attends fully, one pass in segments")
    error = _cache_error(probe)
    limit = CACHE_TOLERANCE.get(probe.dtype, CACHE_TOLERANCE[torch.bfloat16])
    detail = f"decoding with a cache moves the logits by {error:.3g} of their spread"
    if error <= limit:
        return Check(name, True, error, limit, detail)
    if not keeps_keys_and_values(probe.cache) and _base_cache_error(probe, error) > limit:
        # A recurrent state of transformers' own; nothing that was attached is at fault.
        warning = (
            f"cache_parity: {type(probe.lm).__name__} by itself decodes otherwise with its cache "
            f"than in one pass (logits move by {error:.3g} of their spread), which generated "
            "answers depend on"
        )
        return Check(name, True, error, limit, detail, warnings=[warning])
    detail += "; a component loses its state between two pieces, or restarts its positions"
    return Check(name, False, error, limit, detail)


def _cache_error(probe: Probe) -> float:
    whole_TV = probe.logits()
    pieces_TV = probe.pieces(probe.ids_1T)
    return ((pieces_TV - whole_TV).abs().max() / whole_TV.std()).item()


def _base_cache_error(probe: Probe, error: float) -> float:
    """Of the model without its adapter."""
    if probe.adapter is None:
        return error
    with probe.attention_kept(), probe.model.disable_adapter():
        return _cache_error(probe)


def save_load(probe: Probe) -> Check:
    """Saved and loaded onto the bare base model, the adapter gives the same logits, bit for bit."""
    name = "save_load"
    if probe.adapter is None:
        return skipped(name, NO_ADAPTER)
    reason = _why_not_reloaded(probe)
    if reason:
        return skipped(name, reason)
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
            reason = in_one_line(error)
            detail = f"{CANNOT_LOAD} ({type(error).__name__}: {reason})"
            return Check(name, False, None, 0.0, detail)
        finally:
            probe.model = model_under_test
    change = (after_TV - before_TV).abs().max().item()
    same = torch.equal(after_TV, before_TV)
    detail = "the saved adapter gives the same logits"
    if not same:
        detail = f"{NOT_SAVED} (logits differ by {change:.3g})"
    return Check(name, same, change, 0.0, detail)


def _why_not_reloaded(probe: Probe) -> str:
    """Why the base that an adapter is loaded onto cannot be recovered from the adapted model."""
    if not hasattr(probe.model.base_model, "unload"):
        return f"{probe.kind} cannot be taken off a model, to load it again"
    start = getattr(probe.adapter, "init_lora_weights", True)
    if isinstance(start, str) and start.startswith(_CHANGES_BASE):
        return (
            f"init_lora_weights={start} has changed the base; it must be loaded onto the original"
        )
    if getattr(probe.adapter, "layer_replication", None):
        return "layer_replication has changed the base; it must be loaded onto the original"
    return ""


def _structure_sharing_weights(model: Any) -> Any:
    """A copy of all modules and configs; the tensors stay shared, so it costs no memory."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
