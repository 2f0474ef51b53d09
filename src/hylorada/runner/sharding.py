"""A run whose sequences, or whose frozen base, are split over several processes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel

from hylorada.config import RunConfig
from hylorada.loading.backbone import Backbone
from hylorada.loading.base_below_adapter import logits_below
from hylorada.loading.sharded_base import shard_base
from hylorada.methods.integrity import Check, IntegrityReport, check_saving
from hylorada.methods.integrity.split import check_split
from hylorada.methods.sequence_part import CROSSING
from hylorada.methods.sequence_split import split_sequences
from hylorada.process.ranks import Ranks
from hylorada.training.loss import LossModel
from hylorada.training.split_loss import SplitLossModel

logger = logging.getLogger(__name__)


def share_base_out(
    config: RunConfig, model: Any, backbone: Backbone, device: torch.device, ranks: Ranks
) -> Check | None:
    """Shard the frozen base over the processes, if the settings say so.

    Args:
        config: the run's settings.
        model: with what trains on it; changed in place.
        backbone: that it was made from; its logits are those on the device afterwards.
        device: to run on.
        ranks: the processes of the run.

    Returns:
        The gate's check that the adapter can be saved, which must be made before; None if none is.
    """
    if not config.shard_base:
        return None
    saved = None
    if config.integrity.enabled and isinstance(model, PeftModel):
        saved = check_saving(
            model, backbone.tokenizer, config.length.max_length,
            probe_length=config.integrity.probe_length, seed=config.seed,
        )  # fmt: skip
    base = shard_base(model, dist.group.WORLD, device)
    ranks.alike = True
    if device.type != "cpu":  # it was loaded where it lay
        backbone.logits = logits_below(model, backbone)
    logger.info(
        "the base is sharded over %d processes: this one holds %.1f of %.1f MiB of its layers, one "
        "layer (%.1f MiB) is gathered at a time, %.1f MiB are held by each process",
        ranks.world, *(n / 2**20 for n in (base.here, base.whole, base.one_layer, base.kept)),
    )  # fmt: skip
    return saved


@contextmanager
def loss_of_parts(
    loss_model: LossModel, config: RunConfig, ranks: Ranks
) -> Iterator[Callable[..., Any]]:
    """The loss that trains: that of whole rows, or of this process's part of them.

    Args:
        loss_model: of whole rows.
        config: the run's settings.
        ranks: the processes of the run.
    """
    if config.sequence_ranks == 1:
        yield loss_model
        return
    train = config.train
    recomputed = train.gradient_checkpointing_every if train.gradient_checkpointing else 0
    with split_sequences(loss_model.model, ranks.split_sequences(config.sequence_ranks)) as split:
        yield SplitLossModel(loss_model, split, recomputed)


def sent_in_parts(loss: Callable[..., Any], ranks: Ranks) -> dict[str, Any]:
    """What all processes have sent each other for the sequences that they share.

    Every process must call it.

    Args:
        loss: from `loss_of_parts`, after training.
        ranks: the processes of the run.

    Returns:
        `split` of a record's `training`; empty where sequences are whole.
    """
    if not isinstance(loss, SplitLossModel):
        return {}
    names = [f"{what}{end}" for what in CROSSING for end in ("", " gradient")]
    counts = [[of[name] for name in names] for of in (loss.split.sent, loss.formula)]
    sent_2C = ranks.sum(torch.tensor(counts, dtype=torch.int64))
    rows = ranks.sum(torch.tensor([loss.sequences]))
    sent, formula = (
        {name: count for name, count in zip(names, counts_C, strict=True) if count}
        for counts_C in sent_2C.tolist()
    )
    sequences = int(rows) // loss.split.count  # each was given to all that share it
    logger.info(
        "%d sequences were split over %d processes, which sent %s", sequences, loss.split.count,
        ", ".join(f"{count:,} bytes {what}" for what, count in sent.items()),
    )  # fmt: skip
    return {"split": {"sequences": sequences, "sent": sent, "formula": formula}}


def prove_parts(
    report: IntegrityReport, loss_model: LossModel, tokenizer: Any, config: RunConfig,
    autocast: torch.dtype | None, ranks: Ranks, packed: bool,
) -> None:  # fmt: skip
    """Add the check of split sequences to a report, if the settings split them."""
    if config.sequence_ranks == 1:
        return
    group = ranks.split_sequences(config.sequence_ranks)
    with split_sequences(loss_model.model, group) as split:
        check_split(
            report, loss_model.model, tokenizer, split, loss_model,
            SplitLossModel(loss_model, split), autocast=autocast, packed=packed, seed=config.seed,
        )  # fmt: skip
