"""A sequence split over processes, against the same sequence in each of them whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hylorada.methods.integrity.as_trained import PARITY
from hylorada.methods.integrity.probe import Probe, as_found, vocabulary_size
from hylorada.methods.integrity.report import Check, IntegrityReport
from hylorada.methods.sequence_split import SequenceSplit

_GROUP = 4  # tokens in a segment while probing
_GROUPS = 3  # segments in a part

Loss = Callable[..., tuple[Tensor, Tensor]]
"""(input_ids, labels, position_ids) -> (summed NLL, tokens); runs the model."""


def check_split(
    report: IntegrityReport,
    model: nn.Module,
    tokenizer_or_vocab_size: Any,
    split: SequenceSplit,
    whole: Loss,
    parted: Loss,
    *,
    autocast: torch.dtype | None = None,
    packed: bool = False,
    seed: int = 0,
) -> None:
    """Add the check `sequence_split` to a report, the same in all processes of the split.

    A short text goes through the model whole and in parts, in training mode, with shifted sparse
    attention (if the model has it) and with full attention. Loss and gradients must be the same up
    to the order of sums: a wrong halo, a document that is lost at a boundary or a running mean that
    starts anew there moves them by more.

    Args:
        report: of the model; its ``max_length`` bounds the text.
        model: with an adapter, inside `split_sequences`; left as it was found.
        tokenizer_or_vocab_size: a tokenizer, or its number of tokens.
        split: of this model.
        whole: the loss of whole rows.
        parted: the loss of this process's part of them.
        autocast: the precision of products; None: the model's own.
        packed: rows hold several documents, told apart by their position ids.
        seed: of the text and of the noise on the parameters.
    """
    name, group = "sequence_split", _GROUP
    tokens = _GROUPS * group
    if tokens * split.count > report.max_length:
        group = tokens = 2
    length = tokens * split.count
    with as_found(model):
        vocabulary = vocabulary_size(model, tokenizer_or_vocab_size)
        probe = Probe(model, vocabulary, length, seed)
        probe.perturb(list(probe.groups))
        rows = {"input_ids": torch.cat([probe.ids_1T, probe.another_text()])}
        rows["labels"] = rows["input_ids"]
        if packed:
            rows["position_ids"] = _positions(length).to(probe.device)
        model.train()
        errors: dict[str, float] = {}
        for size in (group, length) if probe.s2_configs else (length,):
            how = "in segments" if size < length else "full"
            with (
                probe.s2_groups(size),
                torch.autocast(probe.device.type, autocast, enabled=autocast is not None),
            ):
                right, found = _numbers(probe, whole, rows), _numbers(probe, parted, rows)
            for what, part in found.items():
                dist.all_reduce(part, group=split.group)
                error = (part - right[what]).norm() / right[what].norm().clamp(min=1e-30)
                error = error.nan_to_num(float("inf"))  # which no comparison would find
                errors[f"{what} (attention {how})"] = float(error)
    worst = max(errors, key=lambda what: errors[what])
    largest = torch.tensor([errors[worst]], dtype=torch.float64, device=probe.device)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=split.group)  # one verdict for all
    value, limit = float(largest), PARITY[autocast or probe.dtype]
    detail = (
        f"{length} tokens over {split.count} processes: {worst} differs most from that of one "
        f"process that has them whole, by {value:.3g}"
    )
    if value > limit:
        detail += "; something that crosses between the parts is wrong, set sequence_ranks=1"
    report.checks[name] = Check(name, value <= limit, value, limit, detail)


def _numbers(probe: Probe, loss: Loss, rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """The summed loss, and the gradients of each component as one vector, in float64."""
    groups = {g: [p for _, p in members] for g, members in probe.groups.items()}
    with torch.enable_grad():
        sum_nll, _ = loss(**rows)
        parameters = [p for members in groups.values() for p in members]
        gradients = iter(torch.autograd.grad(sum_nll, parameters, allow_unused=True))
    found = {"the loss": sum_nll.detach().double().reshape(1)}
    for group, members in groups.items():
        parts = [(p, next(gradients)) for p in members]
        if group not in probe.inert:
            flat = [(torch.zeros_like(p) if g is None else g).flatten().double() for p, g in parts]
            found[f"the gradient of {group}"] = torch.cat(flat)
    return found


def _positions(length: int) -> Tensor:
    """Of two rows: documents that end inside a part and at its first token; and one document."""
    place_T = torch.arange(length)
    starts_T = torch.zeros(length, dtype=torch.long)
    for start in (length // 3 + 1, length // 2):
        starts_T[start] = start
    return torch.stack([place_T - starts_T.cummax(0).values, place_T])
