"""What may be said of arms' perplexities against another one's: verdicts, and notes behind them."""

from __future__ import annotations

import math

from hylorada.comparison.arms import Arm, Comparison, other_draw
from hylorada.comparison.cells import Verdict
from hylorada.comparison.changes import change_parts, ppl_change
from hylorada.comparison.p_values import p_values_by_holm
from hylorada.comparison.subjects import bases, shown_arms
from hylorada.comparison.verdict import ALPHA, Contrast, contrasts, verdict
from hylorada.process.counts import number_of
from hylorada.records.base_rows import is_extended
from hylorada.records.metric_names import COMPARED
from hylorada.statistics.clustered import few_seeds
from hylorada.statistics.contrasts import MARGIN, POWER, minimum_detectable
from hylorada.statistics.paired import Change, paired_change, pooled_ppl


def verdicts(comparison: Comparison, against: Arm | None) -> list[Verdict]:
    """A sentence for each arm against one, and one for the base in its own window if it is ahead.

    Args:
        comparison: whose arms they are.
        against: the arm that the others are compared with; None: it is not there.
    """
    found = []
    if against is not None:
        found = [
            verdict(contrast, against.label, comparison.words)
            for contrast in perplexity_contrasts(comparison, against)
        ]
    return [*found, *_own_window_ahead(comparison)]


def perplexity_contrasts(comparison: Comparison, against: Arm) -> list[Contrast]:
    """Every finished arm against one, as a family; none where no arm's perplexity was measured."""
    if not any(arm.metrics(name) for arm in comparison.arms for name in COMPARED.values()):
        return []
    return contrasts(
        [
            (arm.label, ppl_change(arm, against))
            for arm in shown_arms(comparison)
            if arm.ok and arm is not against
        ]
    )


def contrast_notes(comparison: Comparison, against: Arm) -> list[str]:
    """The family's p-values, those of single seeds too, who matches, and what could be found."""
    tested = [each for each in perplexity_contrasts(comparison, against) if each.p is not None]
    notes = []
    if tested:
        p_values = [
            (each.label, p, each.change.seeds)
            for each in tested
            if isinstance(each.change, Change) and each.change.log_ratio is not None
            if (p := each.change.log_ratio.p_value()) is not None
        ]
        notes.append(
            f"PPL vs {against.label}, Holm-adjusted p-values "
            f"({number_of(len(tested), 'comparison')}): {p_values_by_holm(p_values)}."
        )
        matching = [e.label for e in tested if e.outside is not None and e.outside < ALPHA]
        notes.append(
            f"PPL equivalent to {against.label} within {100 * MARGIN:g} % (two one-sided tests, "
            f"TOST; Holm-adjusted p < 0.05): {', '.join(matching) or 'none'}."
        )
    return [*notes, *_noise_floors(comparison)]


def _own_window_ahead(comparison: Comparison) -> list[Verdict]:
    """Stretching the positions costs; where no method has won that back, it must be said."""
    name = COMPARED["sliding"]
    arms = [arm for arm in shown_arms(comparison) if arm.metrics(name)]
    own = next((b for b in bases(comparison, "own_window") if b.values(name)), None)
    if own is None or not arms or not is_extended(own.runs[0].data):
        return []
    (base,) = own.values(name)
    best = min(arms, key=lambda arm: pooled_ppl(list(arm.metrics(name).values())))
    measured = best.metrics(name)
    change = paired_change(measured, dict.fromkeys(measured, base))
    if isinstance(change, str) or change.low is None or change.low <= 0:
        return []
    few = few_seeds(change.seeds)
    return [
        Verdict(
            f"{comparison.words}, the unmodified base in its own window of {base['window']:,} is "
            f"ahead of every method: PPL (sliding) {pooled_ppl([base]):.2f} vs "
            f"{pooled_ppl(list(measured.values())):.2f} for the best of them, {best.label}, which "
            f"is {' '.join(change_parts(change))}, "
            + (f"{few}: no result yet." if few else f"{change.seeds} seeds."),
            "no result" if few else "worse",
        )
    ]


def _noise_floors(comparison: Comparison) -> list[str]:
    """Of each pair of arms between which nothing differs but the draw of the adapter."""
    notes = []
    arms = [arm for arm in comparison.arms if arm.ok]
    for arm in arms:
        for other in arms:
            if not other_draw(arm, other):
                continue
            change = ppl_change(arm, other)
            if isinstance(change, str) or change.low is None or change.log_ratio is None:
                continue
            smallest = minimum_detectable(change.log_ratio)
            assert smallest is not None  # there is an interval
            notes.append(
                f"noise floor: {arm.label} is {other.label} with another adapter seed; "
                f"its PPL differs by {change.percent:+.2f} % [{change.low:+.2f}, "
                f"{change.high:+.2f}]" + (f", {change.remark}" if change.remark else "") + ". "
                f"Minimum detectable effect: {100 * math.expm1(smallest):.2f} % "
                f"({100 * POWER:g} % power)."
            )
    return notes
