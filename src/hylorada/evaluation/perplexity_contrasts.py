"""What may be said of an arm's perplexity against another one's, in sentences below the table."""

from __future__ import annotations

import math

from hylorada.comparison.arms import Arm, Comparison, other_draw
from hylorada.comparison.family import family
from hylorada.comparison.subjects import shown_arms
from hylorada.records.metric_names import COMPARED
from hylorada.statistics.contrasts import MARGIN, POWER, equivalence_p, minimum_detectable
from hylorada.statistics.paired import Change, paired_change


def contrast_notes(comparison: Comparison, against: Arm) -> list[str]:
    """The family of contrasts, who matches, and what could have been found."""
    known = [
        (arm, change, p)
        for arm in shown_arms(comparison)
        if arm.ok and arm is not against
        if isinstance(change := _change(arm, against), Change) and change.log_ratio is not None
        if (p := change.log_ratio.p_value()) is not None
    ]
    notes = []
    if known:
        contrasts = [(arm.label, p, change.seeds) for arm, change, p in known]
        notes.append(
            f"PPL against {against.label}, p-values of {len(known)} "
            f"contrast{'s' if len(known) > 1 else ''} by Holm: {family(contrasts)}."
        )
        matching = [
            arm.label
            for arm, change, _ in known
            if change.log_ratio is not None
            and (outside := equivalence_p(change.log_ratio)) is not None
            and outside < 0.05
        ]
        notes.append(
            f"shown to match {against.label} within {MARGIN:.1%} of PPL (two one-sided tests, "
            f"p < 0.05 each): {', '.join(matching) or 'none'}."
        )
    return [*notes, *_noise_floors(comparison)]


def _change(arm: Arm, against: Arm) -> Change | str:
    main = next((name for name in COMPARED.values() if arm.metrics(name)), "")
    return paired_change(arm.metrics(main), against.metrics(main))


def _noise_floors(comparison: Comparison) -> list[str]:
    """Of each pair of arms between which nothing differs but the draw of the adapter."""
    notes = []
    arms = [arm for arm in comparison.arms if arm.ok]
    for arm in arms:
        for other in arms:
            if not other_draw(arm, other):
                continue
            change = _change(arm, other)
            if isinstance(change, str) or change.low is None or change.log_ratio is None:
                continue
            smallest = minimum_detectable(change.log_ratio)
            assert smallest is not None  # there is an interval
            notes.append(
                f"noise floor: {arm.label} is {other.label} with another draw of the adapter, and "
                f"its PPL differs by {change.percent:+.2f} % [{change.low:+.2f}, "
                f"{change.high:+.2f}]" + (f", {change.remark}" if change.remark else "") + ". A "
                f"change of {100 * math.expm1(smallest):.2f} % would be found by {POWER:.0%} of "
                "studies like this one."
            )
    return notes
