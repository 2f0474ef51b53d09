"""The integrity gate: proof, in seconds, that every switch acts, on the very model about to train.

| check             | refuses                                                                   |
| ----------------- | ------------------------------------------------------------------------- |
| position_range    | fewer learned positions than max_length                                   |
| tokenizer         | a tokenizer that begins a text with its special token twice               |
| parameter_audit   | a component without parameters, a base parameter that trains              |
| identity_at_start | an untrained LoRA adapter that changes the logits                         |
| evaluation_mode   | dropout, or another random draw, in evaluation mode                       |
| scored_logits     | a loss or score that is not of the logits of the model's own forward pass |
| no_op             | a component whose parameters change nothing                               |
| placebo           | a placebo that moves a logit (asked of placebos only)                     |
| gradient_coverage | a trainable tensor that gets no gradient                                  |
| causality         | a logit that moves when later tokens change; exactly 0 is asked for       |
| rows              | a row of a batch that reads another                                       |
| requests          | state that survives from one request into the next                        |
| packed_documents  | a document that reads the one before it in the same row (packing=reset)   |
| positions         | a component that looks up another position, or another bucket             |
| s2_layers         | shifted sparse attention that a layer or head does not take, or all full  |
| rope              | frequencies that are not those of the config, scaling without effect      |
| cache_parity      | decoding with a KV cache that differs from one pass                       |
| save_load         | an adapter that is not the same after saving and loading                  |

These work on a short random text and on perturbed parameters (an untrained component does nothing
yet, so neither its leak nor its absence would show), in the model's own precision; S2 groups are
shortened with the text. `as_trained` asks once more what depends on length, kernels and precision,
of the model as it trains. The model is left exactly as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from hylorada.config.python_arguments import LARGEST_SEED, shown, true_or_false, whole_number
from hylorada.errors import ConfigError
from hylorada.methods.integrity import (
    acting,
    causal,
    faithful,
    placebo,
    positions,
    reach,
    repeatable,
    rope,
    special_tokens,
)
from hylorada.methods.integrity.adapters import refuse_unsupported_adapter
from hylorada.methods.integrity.probe import DEFAULT_LENGTH, Probe, as_found, vocabulary_size
from hylorada.methods.integrity.report import Check, IntegrityReport, outcome
from hylorada.settings.run import SHORTEST_PROBE

__all__ = ["Check", "IntegrityReport", "check_integrity", "check_saving"]


def check_integrity(
    model: nn.Module,
    tokenizer_or_vocab_size: Any,
    max_length: int,
    *,
    allow_leak: bool = False,
    packed: bool = False,
    probe_length: int = 0,
    seed: int = 0,
    autocast: torch.dtype | None = None,
    saved: Check | None = None,
) -> IntegrityReport:
    """Run every check that applies to ``model``, a PeftModel or a bare causal language model.

    Args:
        model: the model about to train; left exactly as found.
        tokenizer_or_vocab_size: a tokenizer, or its number of tokens.
        max_length: tokens in a training sequence.
        allow_leak: let a control arm that reads the future pass.
        packed: training rows hold several documents, told apart by their position ids.
        probe_length: tokens in the probe; 0 chooses 61 (at most max_length).
        seed: of the probe text and of the noise on the parameters.
        autocast: the precision that training and evaluation run under; effects are held against
            rounding in it.
        saved: what `check_saving` has found of this model before its base was sharded; None: it is
            asked now.

    Returns:
        The report; ``report.raise_if_failed()`` stops on a failure.

    Raises:
        ConfigError: the probe or the vocabulary does not fit the model, the adapter puts virtual
            tokens before the text, or an argument is of another kind.
    """
    _refuse_other_kinds(model, autocast, saved, allow_leak=allow_leak, packed=packed)
    max_length = whole_number("check_integrity: max_length", max_length, 1)
    probe_length = whole_number("check_integrity: probe_length", probe_length, 0)
    seed = whole_number("check_integrity: seed", seed, 0, LARGEST_SEED)
    length = _length(probe_length, max_length)
    vocabulary = vocabulary_size(model, tokenizer_or_vocab_size)
    report = IntegrityReport(max_length, length)

    def run(name: str, check: Callable[..., Check], *args: Any) -> None:
        report.checks[name] = outcome(name, lambda: check(probe, *args))

    with as_found(model):
        probe = Probe(model, vocabulary, length, seed)
        refuse_unsupported_adapter(probe.adapter, probe.logits)
        report.probed["short"] = probe.described()
        if probe.adapter is not None:
            report.parameters = {
                group: sum(parameter.numel() for _, parameter in members)
                for group, members in probe.groups.items()
            }
            report.position_buckets = reach.position_buckets(probe, max_length)
        run("position_range", reach.position_range, max_length)
        run("tokenizer", special_tokens.tokenizer, tokenizer_or_vocab_size)
        run("parameter_audit", acting.parameter_audit)
        run("identity_at_start", acting.identity_at_start)
        probe.perturb(list(probe.groups))
        run("evaluation_mode", repeatable.evaluation_mode)
        run("scored_logits", faithful.scored_logits)
        run("no_op", acting.no_op, autocast)
        if getattr(probe.adapter, "placebo", False):
            run("placebo", placebo.placebo)
        run("gradient_coverage", acting.gradient_coverage)
        run("causality", causal.causality, allow_leak)
        run("rows", causal.rows)
        run("requests", repeatable.requests)
        run("packed_documents", causal.packed_documents, packed)
        run("positions", positions.positions, max_length, packed)
        run("s2_layers", reach.s2_layers)
        run("rope", rope.rope, max_length)
        run("cache_parity", faithful.cache_parity)
        run("save_load", faithful.save_load if saved is None else lambda _: saved)
    return report


def check_saving(
    model: nn.Module,
    tokenizer_or_vocab_size: Any,
    max_length: int,
    *,
    probe_length: int = 0,
    seed: int = 0,
) -> Check:
    """The check `save_load` alone, of a model whose base is about to be sharded.

    It copies the model's modules, which those of a sharded base do not allow.

    Args:
        model: a PeftModel; left exactly as found.
        tokenizer_or_vocab_size: a tokenizer, or its number of tokens.
        max_length: tokens in a training sequence.
        probe_length: tokens in the probe; 0 chooses.
        seed: of the probe text and of the noise on the parameters.
    """
    length = _length(probe_length, max_length)
    with as_found(model):
        probe = Probe(model, vocabulary_size(model, tokenizer_or_vocab_size), length, seed)
        probe.perturb(list(probe.groups))
        return outcome("save_load", lambda: faithful.save_load(probe))


def _refuse_other_kinds(model: Any, autocast: Any, saved: Any, **flags: Any) -> None:
    """Arguments that are not of the kind that is asked for."""
    if not isinstance(model, PreTrainedModel | PeftModel):
        raise ConfigError(
            f"check_integrity: model is {shown(model)}; use a PeftModel, as from adapt(...), or a "
            "transformers model"
        )
    if autocast is not None and not isinstance(autocast, torch.dtype):
        raise ConfigError(
            f"check_integrity: autocast is {shown(autocast)}; use None or a torch type, as "
            "torch.bfloat16"
        )
    if saved is not None and not isinstance(saved, Check):
        raise ConfigError(
            f"check_integrity: saved is {shown(saved)}; use None or what check_saving has returned"
        )
    for name, value in flags.items():
        true_or_false(f"check_integrity: {name}", value)


def _length(probe_length: int, max_length: int) -> int:
    """Tokens in the probe.

    Raises:
        ConfigError: too few, or more than a training sequence has.
    """
    length = probe_length or min(DEFAULT_LENGTH, max_length)
    if not SHORTEST_PROBE <= length <= max_length:
        raise ConfigError(
            f"integrity.probe_length: {length} tokens; it must lie between {SHORTEST_PROBE} and "
            f"max_length ({max_length})"
        )
    return length
