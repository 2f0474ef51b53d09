"""The loss of one process's part of sequences that are split over several."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from hylorada.architecture import anatomy
from hylorada.errors import ConfigError
from hylorada.kernels.linear import product_dtype
from hylorada.methods.sequence_split import SequenceSplit, bytes_of_a_step
from hylorada.methods.split_limits import group_size_in
from hylorada.training.loss import LossModel, next_token_labels


class SplitLossModel(nn.Module):
    """As `LossModel`, of whole rows, but it computes this process's part of them.

    Summed over the processes of the split, losses, counts of tokens and gradients are those of
    whole rows. Every process calls it with the same rows, and goes backward.

    Args:
        loss_model: of the model that was split.
        split: from `split_sequences`, whose block must not have been left.
        recomputed: every how many-th layer activation checkpointing computes again; 0: none.

    Attributes:
        sequences: rows that were given, with gradients to come.
        formula: bytes that `bytes_of_a_step` says of them, beside those that ``split`` has counted.
    """

    def __init__(self, loss_model: LossModel, split: SequenceSplit, recomputed: int = 0) -> None:
        super().__init__()
        self.loss_model = loss_model
        self.split = split
        self.recomputed = recomputed
        self.sequences = 0
        self.formula: Counter[str] = Counter()
        self._of_rows: dict[tuple[int, ...], dict[str, int]] = {}

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Summed negative log-likelihood in nats of this part's tokens, and how many are scored.

        The last token of a part is scored on the first one of the next: labels are shifted before
        they are cut.

        Args:
            input_ids: whole rows, [B, N].
            labels: [B, N], aligned with ``input_ids``; -100 is not scored.
            position_ids: [B, N] or None; resets mark packed documents.
            attention_mask: None.

        Raises:
            ConfigError: rows of this length cannot be split, or there is a mask.
        """
        if attention_mask is not None:
            raise ConfigError(
                "sequence_ranks: rows with an attention mask are not split; set sequence_ranks=1"
            )
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        part = self.split.part(position_ids.expand(len(input_ids), -1))
        if torch.is_grad_enabled():
            self._expect(*input_ids.shape)
        targets = part.own(next_token_labels(labels))
        with part.running():
            # The part knows its documents itself; nobody else need look for them.
            return self.loss_model.of_targets(
                part.own(input_ids),
                targets,
                True,
                position_ids=part.own(position_ids),
                sequence_part=part,
            )

    def _expect(self, rows: int, length: int) -> None:
        model = self.loss_model.model
        embedding_VD = anatomy.causal_lm(model).get_input_embeddings().weight
        itemsize = product_dtype(embedding_VD).itemsize
        key = (rows, length, itemsize, group_size_in(model, length))
        if key not in self._of_rows:
            self._of_rows[key] = bytes_of_a_step(
                model, rows, length, self.split.count, itemsize, self.split.index, self.recomputed
            )
        self.sequences += rows
        self.formula.update(self._of_rows[key])
