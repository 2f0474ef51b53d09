"""Does a token read only its own past: not the future, another document, or another row?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from hylorada.methods.integrity.first_difference import Places, culprit
from hylorada.methods.integrity.probe import Probe
from hylorada.methods.integrity.report import Check, skipped
from hylorada.methods.integrity.rounding import Movement, movement

EVERYTHING = slice(None)


def causality(probe: Probe, allow_leak: bool) -> Check:
    """Changing the tokens from t on leaves the logits before t exactly as they are.

    In training and evaluation mode, at several t, at a length that no group divides and, with
    shifted sparse attention, at one that it does.
    """
    name = "causality"
    with probe.s2_groups(probe.group_size):
        moved, effect, case = _leak(probe)
        part = _who_leaks(probe, case, moved.routed) if moved.leak > 0 and case else ""
    if effect == 0.0:
        detail = "changed tokens change no logit at all; the model does not read its input"
        return Check(name, False, moved.leak, 0.0, detail)
    if moved.leak == 0.0:
        detail = f"logits do not move when later tokens change{rounding_note(moved)}"
        return Check(name, True, 0.0, 0.0, detail)
    detail = (
        f"{part} reads the future: past logits move by {moved.leak:.3g} when later tokens change"
    )
    if allow_leak:
        return Check(name, True, moved.leak, 0.0, f"{detail} (allowed as a control arm)")
    return Check(name, False, moved.leak, 0.0, f"{detail}; {cure(part)}")


def cure(part: str) -> str:
    """What to do about a part that reads the future."""
    if part == "landmark":
        return (
            "use method=hylorada (method.landmark.pooling=prefix_mean; landmark_pooling in "
            "Python), or integrity.allow_leak=true to run it as a control arm"
        )
    return "it must not see later tokens; switch it off"


def rounding_note(moved: Movement) -> str:
    """Said where products of the experts' sizes were rounded otherwise."""
    if not moved.rounding:
        return ""
    return (
        f" (by {moved.rounding:.3g} where the sizes of products follow the text; by nothing once "
        "these are computed row by row)"
    )


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
    changed_1T = probe.ids_1T.clone()
    changed_1T[:, :cut] = (changed_1T[:, :cut] + 1) % probe.vocabulary

    def second(ids_1T: Tensor, training: bool) -> Tensor:
        return probe.logits(ids_1T, training, positions_1T)[cut:]

    with probe.s2_groups(probe.group_size):
        found = [
            movement(partial(second, probe.ids_1T, training), partial(second, changed_1T, training))
            for training in (True, False)
        ]
    worst = max(found, key=lambda moved: (moved.leak, moved.rounding))
    if not worst.leak > 0.0:
        detail = f"a document does not read the one packed before it{rounding_note(worst)}"
        return Check(name, True, worst.leak, 0.0, detail)
    detail = (
        f"{type(probe.lm).__name__} reads the document packed before its own: logits move by "
        f"{worst.leak:.3g}; set dataset.packing=documents"
    )
    return Check(name, False, worst.leak, 0.0, detail)


def rows(probe: Probe) -> Check:
    """A row of a batch does not read the other rows, in training and in evaluation mode."""
    name = "rows"
    one_1T, other_1T = probe.another_text(), probe.another_text()
    worst = Movement(0.0)
    for training in (True, False):
        for row in (0, 1):
            before_BT, after_BT = (
                torch.cat([probe.ids_1T, text] if row == 0 else [text, probe.ids_1T])
                for text in (one_1T, other_1T)
            )

            before = partial(probe.logits, before_BT, training, row=row)
            after = partial(probe.logits, after_BT, training, row=row)
            with probe.s2_groups(probe.group_size):
                moved = movement(before, after)
                if moved.leak > 0.0:
                    places = (slice(row, row + 1), EVERYTHING)
                    part = culprit(
                        probe.model, before, after, (2, probe.length), places, routed=moved.routed
                    )
                    detail = (
                        f"{part} lets the rows of a batch see each other: logits move by "
                        f"{moved.leak:.3g} when another row changes; it must treat each row alone"
                    )
                    return Check(name, False, moved.leak, 0.0, detail)
            worst = max(worst, moved, key=lambda moved: moved.rounding)
    detail = f"a row does not read the others of its batch{rounding_note(worst)}"
    return Check(name, True, 0.0, 0.0, detail)


Case = tuple[Tensor, Tensor, int, bool]  # a text, the same with another end, from where, training


def _leak(probe: Probe) -> tuple[Movement, float, Case | None]:
    """The largest change before a cut, the largest after one, and where the first one was seen."""
    n = probe.length
    lengths = [n]
    if probe.s2_configs and n % probe.group_size:
        lengths.append(n - n % probe.group_size)
    worst, effect, where = Movement(0.0), 0.0, None
    for training in (True, False):
        for length in lengths if training else lengths[:1]:
            ids_1T = probe.ids_1T[:, :length]
            before_TV = probe.logits(ids_1T, training)
            for cut in sorted({max(1, length // 3), length // 2 + 1, length - 1}):
                case = (ids_1T, probe.other_tokens(cut, length), cut, training)
                after_TV = probe.logits(case[1], training)
                moved_T = (after_TV - before_TV).abs().amax(1)
                if not moved_T.isfinite().all():
                    return Movement(float("inf")), 1.0, case
                effect = max(effect, moved_T[cut:].max().item())
                if moved_T[:cut].any():
                    moved = movement(*_both(probe, case))
                    if moved.leak > 0.0 and where is None:
                        where = case
                    worst = max(worst, moved, key=lambda m: (m.leak, m.rounding))
    return worst, effect, where


def _both(probe: Probe, case: Case) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """The two computations that should agree before the cut."""
    ids_1T, changed_1T, cut, training = case
    return (
        lambda: probe.logits(ids_1T, training)[:cut],
        lambda: probe.logits(changed_1T, training)[:cut],
    )


def _who_leaks(probe: Probe, case: Case, routed: bool) -> str:
    """The part that reads the future."""
    with probe.s2_groups(probe.length):
        if probe.s2_configs and movement(*_both(probe, case)).leak == 0.0:
            return "s2 attention"
    ids_1T, _, cut, _ = case
    places: Places = (EVERYTHING, slice(0, cut))
    shape = (1, ids_1T.shape[1])
    return culprit(probe.model, *_both(probe, case), shape, places, routed=routed)
