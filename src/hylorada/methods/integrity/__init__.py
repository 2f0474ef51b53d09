"""The integrity gate: proof, in seconds, that every switch acts, on the very model about to train.

| check             | refuses                                                                   |
| ----------------- | ------------------------------------------------------------------------- |
| parameter_audit   | a component without parameters, a base parameter that trains              |
| identity_at_start | an untrained adapter that changes the logits                              |
| no_op             | a component whose parameters change nothing                               |
| gradient_coverage | a trainable tensor that gets no gradient                                  |
| causality         | a logit that moves when later tokens change; exactly 0 is asked for       |
| packed_documents  | a document that reads the one before it in the same row (packing=reset)   |
| s2_layers         | shifted sparse attention that some layer does not take, or that is full   |
| rope              | frequencies that are not those of the config                              |
| position_range    | fewer learned positions than max_length                                   |
| cache_parity      | decoding with a KV cache that differs from one pass                       |
| save_load         | an adapter that is not the same after saving and loading                  |

The checks work on a short random text and on perturbed parameters (an untrained component does
nothing yet, so neither its leak nor its absence would show); S2 groups are shortened with it. The
model is left exactly as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hylorada.errors import ConfigError
from hylorada.methods.integrity import acting, faithful, reach
from hylorada.methods.integrity.probe import DEFAULT_LENGTH, Probe, as_found, vocabulary_size
from hylorada.methods.integrity.report import Check, IntegrityReport
from hylorada.methods.trainable import count_by_group
from hylorada.validation.settings import SHORTEST_PROBE

__all__ = ["Check", "IntegrityReport", "check_integrity"]


def check_integrity(
    model: nn.Module,
    tokenizer_or_vocab_size: Any,
    max_length: int,
    *,
    allow_leak: bool = False,
    packed: bool = False,
    probe_length: int = 0,
    seed: int = 0,
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

    Returns:
        The report; ``report.raise_if_failed()`` stops on a failure.

    Raises:
        ConfigError: the probe or the vocabulary does not fit the model.
    """
    length = probe_length or min(DEFAULT_LENGTH, max_length)
    if not SHORTEST_PROBE <= length <= max_length:
        raise ConfigError(
            f"integrity.probe_length: {length} tokens; it must lie between {SHORTEST_PROBE} and "
            f"max_length ({max_length})"
        )
    vocabulary = vocabulary_size(model, tokenizer_or_vocab_size)
    report = IntegrityReport(max_length, length)

    def run(name: str, check: Callable[..., Check], *args: Any) -> None:
        try:
            result = check(probe, *args)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a component that cannot even run has failed its check
            reason = " ".join(str(error).split())
            result = Check(name, False, detail=f"cannot run ({type(error).__name__}: {reason})")
        assert result.name == name
        report.checks[name] = result

    with as_found(model):
        probe = Probe(model, vocabulary, length, seed)
        if probe.adapter is not None:
            report.parameters = count_by_group(model)
            report.position_buckets = acting.position_buckets(probe, max_length)
        run("position_range", reach.position_range, max_length)
        run("parameter_audit", acting.parameter_audit)
        run("identity_at_start", acting.identity_at_start)
        probe.perturb(list(probe.groups))
        run("no_op", acting.no_op)
        run("gradient_coverage", acting.gradient_coverage)
        run("causality", faithful.causality, allow_leak)
        run("packed_documents", faithful.packed_documents, packed)
        run("s2_layers", reach.s2_layers)
        run("rope", reach.rope, max_length)
        run("cache_parity", faithful.cache_parity)
        run("save_load", faithful.save_load)
    return report
