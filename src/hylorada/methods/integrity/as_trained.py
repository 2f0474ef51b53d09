"""What depends on length, kernels and precision, asked of the model as it trains.

The short probe sees a model before its kernels are exchanged, in its own precision, with S2 groups
of a few tokens. Here two rows of the run's own length go through the loss that trains, in training
mode, under the run's autocast, with the kernels in place and the run's own groups, twice:

* from 3/8 of its length on, the first row gets other tokens; the second in its last part (with
  packing=reset: in the document in its middle). No hidden state before, in the other row or in
  another document, and no loss there, may move by a bit; and the second request may find nothing
  that the first has left;
* hidden states, loss and gradients are those of the model's own kernels, up to rounding.

Legend: B rows, T tokens, D hidden size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hylorada.architecture import anatomy
from hylorada.architecture.labels import IGNORE
from hylorada.architecture.logits import output_head
from hylorada.methods.integrity.causal import EVERYTHING, cure, rounding_note
from hylorada.methods.integrity.first_difference import culprit
from hylorada.methods.integrity.half_precision import (
    gradients_round_alike,
    has_exact_weights,
    in_float32,
    states_round_alike,
)
from hylorada.methods.integrity.probe import Probe, as_found, vocabulary_size
from hylorada.methods.integrity.report import Check, IntegrityReport, outcome
from hylorada.methods.integrity.rounding import Movement, movement

GRADIENT_LENGTH = 1040  # tokens: several blocks of every kernel, and a remainder
_SHORT = 16  # tokens: enough to see whether something is drawn
_SCORED = 256  # of them, spread evenly
_STATES = "hidden states"
_PIECES = 9  # short texts for gradients that rounding throws off
PARITY = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}
"""Rounding in other kernels: of a token's hidden state by its norm, of a component's gradient by
its own, of the loss. A wrong kernel is off by more."""


@dataclass(frozen=True)
class Conditions:
    """How a model trains.

    Attributes:
        loss: (input_ids, labels, position_ids) -> (summed NLL, tokens); runs the model.
        own_kernels: puts the model's own kernels back for a while.
        kernels: what stands in their place, in words.
        autocast: the precision of products; None: the model's own.
        packed: rows hold several documents, told apart by their position ids.
    """

    loss: Callable[..., tuple[Tensor, Tensor]]
    own_kernels: Callable[[], AbstractContextManager[None]]
    kernels: str
    autocast: torch.dtype | None = None
    packed: bool = False


def check_in_place(
    report: IntegrityReport,
    model: nn.Module,
    tokenizer_or_vocab_size: Any,
    conditions: Conditions,
    *,
    length: int = 0,
    allow_leak: bool = False,
    seed: int = 0,
) -> None:
    """Add the checks `training_causality` and `training_parity` to a report.

    Args:
        report: of the short probe.
        model: with an adapter, as it trains; left as it was found.
        tokenizer_or_vocab_size: a tokenizer, or its number of tokens.
        conditions: how it trains.
        length: tokens of a sequence that one process has; 0: the report's ``max_length``.
        allow_leak: let a control arm that reads the future pass.
        seed: of the text and of the noise on the parameters.
    """
    with as_found(model):
        vocabulary = vocabulary_size(model, tokenizer_or_vocab_size)
        probe = Probe(model, vocabulary, length or report.max_length, seed)
        probe.perturb(list(probe.groups))
        rows = _Rows(probe, conditions)
        report.probed["in_place"] = {
            "tokens": probe.length,
            "rows": 2,
            "s2_group_size": rows.group_size,
            "precision": str(rows.precision).removeprefix("torch."),
            "kernels": conditions.kernels,
        }
        for name, check in (
            ("training_causality", partial(_causality, rows, allow_leak)),
            ("training_parity", partial(_parity, rows)),
        ):
            report.checks[name] = outcome(name, check)


class _Rows:
    """Two rows, the same with other tokens in places, and where they must agree.

    Attributes:
        ids_BT: the rows.
        other_BT: the rows with other tokens.
        still_BT: where nothing may differ between them.
        ends: where, in each row, the other tokens begin.
        hidden_1TD: what the first row gave when it was run first.
    """

    def __init__(self, probe: Probe, conditions: Conditions) -> None:
        self.probe, self.conditions = probe, conditions
        self.group_size = min((c.s2_group_size for c in probe.s2_configs), default=None)
        self.precision = conditions.autocast or probe.dtype
        n = probe.length
        self.ids_BT = torch.cat([probe.ids_1T, probe.another_text()])
        document_T = torch.zeros(n, dtype=torch.long)
        if conditions.packed:
            document_T = torch.arange(n) * 3 // n
        place_T = torch.arange(n)
        first_of_T = torch.searchsorted(document_T, document_T)
        self.positions_1T = (place_T - first_of_T)[None].to(probe.device)
        changed_BT = torch.zeros(2, n, dtype=torch.bool)
        changed_BT[0, 3 * n // 8 + 1 :] = True
        last = place_T >= n - max(1, (self.group_size or n) // 8)
        changed_BT[1] = document_T == 1 if conditions.packed else last
        self.ends = [int(row.nonzero()[0]) for row in changed_BT]
        still_BT = ~changed_BT & (changed_BT.cumsum(1) == 0)
        if conditions.packed:
            still_BT[1] |= document_T == 2
        shift_BT = torch.randint(1, probe.vocabulary, (2, n), generator=probe.generator)
        others_BT = (self.ids_BT + shift_BT.to(probe.device)) % probe.vocabulary
        self.other_BT = torch.where(changed_BT.to(probe.device), others_BT, self.ids_BT)
        self.still_BT = still_BT.to(probe.device)
        self.hidden_1TD: Tensor | None = None

    @property
    def rounds(self) -> bool:
        """Whether training rounds what the same weights in float32 would not."""
        return self.precision.itemsize == 2 and has_exact_weights(self.probe.model)

    @contextmanager
    def products(self, exact: bool = False) -> Iterator[None]:
        """As training computes them; exact: in float32, of the same weights."""
        dtype, device = self.conditions.autocast, self.probe.device.type
        weights = in_float32(self.probe.model) if exact else contextlib.nullcontext()
        with torch.autocast(device, dtype, enabled=dtype is not None and not exact), weights:
            yield

    def inputs(self, ids_BT: Tensor, labels_BT: Tensor) -> dict[str, Tensor]:
        """What a training step would be given."""
        rows, tokens = ids_BT.shape
        given = {"input_ids": ids_BT, "labels": labels_BT}
        if self.conditions.packed:
            given["position_ids"] = self.positions_1T[:, :tokens].expand(rows, -1)
        return given

    def run(
        self,
        ids_BT: Tensor,
        scored_BT: Tensor | None = None,
        draw: int = 0,
        exact: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Hidden states [B, T, D] and summed loss, as a training step computes them.

        Args:
            ids_BT: token ids.
            scored_BT: tokens that are scored, each from the one before it; None: none.
            draw: another number draws other dropout.
            exact: in float32, not in the precision of training.
        """
        labels_BT = torch.full_like(ids_BT, IGNORE)
        if scored_BT is not None:
            labels_BT[:, 1:] = ids_BT[:, 1:].where(scored_BT[:, 1:] & scored_BT[:, :-1], IGNORE)
        seen: list[Tensor] = []
        self.probe.model.train()
        torch.manual_seed(self.probe.seed + draw)
        handle = anatomy.backbone(self.probe.model).register_forward_hook(
            lambda _, args, output: seen.append(output.last_hidden_state)
        )
        try:
            with torch.no_grad(), self.products(exact):
                loss, _ = self.conditions.loss(**self.inputs(ids_BT, labels_BT))
        finally:
            handle.remove()
        return seen[0], loss

    def standing(self, ids_BT: Tensor) -> Tensor:
        """All that must not move, in one tensor: hidden states, and the loss they give."""
        hidden_BTD, loss = self.run(ids_BT, self.still_BT)
        if self.hidden_1TD is None:
            self.hidden_1TD = hidden_BTD[:1]
        exact = torch.promote_types(hidden_BTD.dtype, torch.float32)
        return torch.cat([hidden_BTD[self.still_BT].flatten().to(exact), loss.to(exact)[None]])


def _causality(rows: _Rows, allow_leak: bool) -> Check:
    """Where nothing was changed before or beside them, hidden states and loss stand still."""
    name = "training_causality"
    moved = movement(partial(rows.standing, rows.ids_BT), partial(rows.standing, rows.other_BT))
    probed = f"two rows of {rows.probe.length} tokens"
    if moved.leak == 0.0:
        detail = f"{probed}: no state moves when later tokens or the other row change"
        return Check(name, True, 0.0, 0.0, detail + rounding_note(moved))
    detail, future = _what_moves(rows, moved)
    if future and allow_leak:
        return Check(name, True, moved.leak, 0.0, f"{detail} (allowed as a control arm)")
    return Check(name, False, moved.leak, 0.0, detail)


def _what_moves(rows: _Rows, moved: Movement) -> tuple[str, bool]:
    """What is wrong, in a sentence, and whether it is that the future is read."""
    model, n, ids_BT = rows.probe.model, rows.probe.length, rows.ids_BT
    by = f"as it trains, at {n} tokens: states move by {moved.leak:.3g}"
    same = partial(rows.run, ids_BT)
    blame = partial(culprit, model, same, shape=(2, n), routed=moved.routed)
    if not torch.equal(rows.standing(ids_BT), rows.standing(ids_BT)):
        part = culprit(model, same, same, (2, n), (EVERYTHING, EVERYTHING))
        return f"{part} keeps something of one request for the next ({by})", False
    for row in (0, 1):
        changed_BT = ids_BT.clone()
        changed_BT[row] = rows.other_BT[row]
        other = partial(rows.run, changed_BT)
        beside = (slice(1 - row, 2 - row), EVERYTHING)
        if _moves(same, other, beside):
            part = blame(other, places=beside)
            return f"{part} lets the rows of a batch see each other ({by})", False
        before = (slice(row, row + 1), slice(0, rows.ends[row]))
        if _moves(same, other, before):
            part = blame(other, places=before)
            return f"{part} reads the future ({by}); {cure(part)}", True
        after = (slice(row, row + 1), slice(2 * n // 3 + 1, n))
        if row == 1 and rows.conditions.packed and _moves(same, other, after):
            part = blame(other, places=after)
            return f"{part} reads the document packed before its own ({by})", False
    return f"the loss of tokens that stand still depends on others ({by})", False


def _moves(
    before: Callable[[], tuple[Tensor, Tensor]],
    after: Callable[[], tuple[Tensor, Tensor]],
    places: tuple[slice, slice],
) -> bool:
    return movement(lambda: before()[0][places], lambda: after()[0][places]).leak > 0.0


def _parity(rows: _Rows) -> Check:
    """Hidden states, loss and gradients are those of the model's own kernels, up to rounding.

    Half precision rounds a token of a deep model beyond any fixed limit now and then. There the
    model's own kernels say, beside the same in float32, how much rounding does; and in float32,
    where nothing excuses it, ours must agree with them at every token.
    """
    name = "training_parity"
    probe = rows.probe
    short_1T = probe.ids_1T[:, :_SHORT]
    one, other = (rows.run(short_1T, draw=draw)[0] for draw in (0, 1))
    draws = not torch.equal(one, other)
    # Dropout draws for the rows that there are; without it, one row tells as much.
    ids_BT = rows.ids_BT if draws else rows.ids_BT[:1]
    fast_1TD = rows.run(ids_BT)[0][:1] if rows.hidden_1TD is None else rows.hidden_1TD
    with rows.conditions.own_kernels():
        own_1TD = rows.run(ids_BT)[0][:1]
    # Rounding alone sends a token to another expert now and then.
    routed = any(p.dim() == 3 for p in anatomy.decoder_layers(probe.model).parameters())
    off_T = _apart(fast_1TD, own_1TD)
    fast, own = _gradients(rows), _gradients(rows, own_kernels=True)
    errors = {_STATES: float(off_T.quantile(0.99) if routed else off_T.max())}
    errors |= {what: _distance(fast[what], own[what]) for what in own}
    limit = PARITY[rows.precision]
    wrong = [what for what in errors if not errors[what] <= limit]
    rounded: dict[str, tuple[float, float]] = {}
    if wrong and rows.rounds:
        if _STATES in wrong:
            with rows.conditions.own_kernels():
                exact_1TD = rows.run(ids_BT, exact=True)[0][:1]
            offs = _apart(fast_1TD, exact_1TD), _apart(own_1TD, exact_1TD)
            same_T = _apart(rows.run(ids_BT, exact=True)[0][:1], exact_1TD)
            if states_round_alike(*offs) and bool((same_T <= PARITY[torch.float32]).all()):
                rounded[_STATES] = float(offs[0].max()), float(offs[1].max())
        if gradients := [what for what in wrong if what != _STATES]:
            rounded |= _rounded_gradients(rows, gradients)
        wrong = [what for what in wrong if what not in rounded]
    worst = max(wrong or errors, key=lambda what: errors[what])
    told = (
        f"{worst} differ most from what the model's own kernels give: by {errors[worst]:.3g} in "
        f"{str(rows.precision).removeprefix('torch.')}"
    )
    if wrong:
        told += f"; the kernels in place ({rows.conditions.kernels}) are wrong on this model"
        if rows.precision.itemsize == 2 and not rows.rounds:
            told += ", or this is rounding; only a whole base in float32 could tell"
    elif worst in rounded:
        ours, theirs = rounded[worst]
        told += (
            f", beyond {limit:g}, which rounding explains: from the same computation in float32 "
            f"they differ by {ours:.3g}, and those of the model's own kernels by {theirs:.3g}"
        )
    return Check(name, not wrong, errors[worst], limit, told)


def _rounded_gradients(rows: _Rows, wrong: list[str]) -> dict[str, tuple[float, float]]:
    """Those that only rounding throws off, with how far: ours, and by the model's own kernels.

    In float32, where nothing excuses it, ours must be those of the model's own kernels.
    """
    ours, own = (_gradients(rows, own_kernels=theirs, exact=True) for theirs in (False, True))
    same = [what for what in wrong if _distance(ours[what], own[what]) <= PARITY[torch.float32]]
    offs: dict[str, list[tuple[float, float]]] = {what: [] for what in same}
    for piece in range(_PIECES if same else 0):
        fast, own = _gradients(rows, piece=piece), _gradients(rows, own_kernels=True, piece=piece)
        exact = _gradients(rows, own_kernels=True, exact=True, piece=piece)
        for what in same:
            offs[what].append(
                (_distance(fast[what], exact[what]), _distance(own[what], exact[what]))
            )
    found = {}
    for what, pairs in offs.items():
        of_ours, of_own = zip(*pairs, strict=True)
        if gradients_round_alike(of_ours, of_own):
            found[what] = median(of_ours), median(of_own)
    return found


def _apart(states_1TD: Tensor, from_1TD: Tensor) -> Tensor:
    """Distance of each token's state from another one, by the norm of that."""
    exact = torch.promote_types(from_1TD.dtype, torch.float32)
    off_T = (states_1TD.to(exact) - from_1TD.to(exact)).norm(dim=-1)[0]
    return off_T / from_1TD.to(exact).norm(dim=-1)[0].clamp(min=torch.finfo(exact).tiny)


def _distance(found: Tensor, own: Tensor) -> float:
    return float((found - own).norm() / own.norm())


def _gradients(
    rows: _Rows, own_kernels: bool = False, exact: bool = False, piece: int | None = None
) -> dict[str, Tensor]:
    """The loss of some tokens, and what it gives each group of parameters, flat.

    Args:
        rows: the first of them is used, shortened.
        own_kernels: by those of the model, and plain logits.
        exact: in float32.
        piece: which of `_PIECES` parts of that is a text of its own; None: all of it.
    """
    probe = rows.probe
    length = min(probe.length, GRADIENT_LENGTH)
    ids_1T = rows.ids_BT[:1, :length]
    if piece is not None:
        length = max(2, length // _PIECES)
        first = min(piece * length, ids_1T.shape[1] - length)
        ids_1T = ids_1T[:, first : first + length]
    index_N = torch.arange(0, length - 1, max(1, length // _SCORED), device=probe.device)
    labels_1T = torch.full_like(ids_1T, IGNORE)
    labels_1T[0, index_N + 1] = ids_1T[0, index_N + 1]
    inputs = rows.inputs(ids_1T, labels_1T)
    size = min(rows.group_size or length, max(2, length // 4 * 2))
    kernels = rows.conditions.own_kernels() if own_kernels else contextlib.nullcontext()
    with torch.enable_grad(), probe.s2_groups(size), rows.products(exact), kernels:
        probe.model.train()
        torch.manual_seed(probe.seed)
        if own_kernels:
            inputs.pop("labels")
            hidden_1TD = anatomy.backbone(probe.model)(**inputs, use_cache=False).last_hidden_state
            logits_NV = output_head(probe.model)(hidden_1TD[0, index_N]).float()
            loss = F.cross_entropy(logits_NV, ids_1T[0, index_N + 1], reduction="sum")
        else:
            loss = rows.conditions.loss(**inputs)[0]
        members = [(group, p) for group, all_ in probe.groups.items() for _, p in all_]
        found = torch.autograd.grad(loss, [p for _, p in members], allow_unused=True)
    by_group: dict[str, list[Tensor]] = {group: [] for group in probe.groups}
    for (group, p), gradient in zip(members, found, strict=True):
        gradient = torch.zeros_like(p) if gradient is None else gradient
        by_group[group].append(gradient.detach().flatten().float())
    gradients = {
        f"the gradients of {group}": torch.cat(all_)
        for group, all_ in by_group.items()
        if group not in probe.inert
    }
    return {"the loss": loss.detach().double()[None], **gradients}
