"""What may be said of arms' perplexities against another one's: verdicts, and notes behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hylorada.comparison.arms import Arm, Comparison, other_draw
from hylorada.comparison.cells import Verdict
from hylorada.comparison.changes import change_parts, ppl_change
from hylorada.comparison.p_values import p_values_by_holm
from hylorada.comparison.subjects import (
    asked_for_perplexity,
    bases,
    shown_arms,
    some_extended,
)
from hylorada.comparison.verdict import ALPHA, Contrast, contrasts, verdict
from hylorada.process.counts import number_of
from hylorada.records.base_rows import is_extended
from hylorada.records.metric_names import COMPARED
from hylorada.statistics.clustered import LEVEL, ONE_SEED, few_seeds
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


def explanations(comparisons: Sequence[Comparison], reference: str) -> list[str]:
    """What the columns of perplexity mean; nothing where none was asked for."""
    if not asked_for_perplexity(comparisons):
        return []
    compared = (
        next((c for c, name in COMPARED.items() if arm.metrics(name)), None)
        for comparison in comparisons
        for arm in shown_arms(comparison)
        if arm.ok
    )
    main = " and ".join(dict.fromkeys(name for name in compared if name)) or "blocks"
    own_window = "The base in its own window is compared in the sliding convention."
    return [
        "PPL: exp(total NLL / scored tokens), pooled over seeds; ± standard deviation between "
        "seeds. Lower is better. Its [interval] reflects sampling of documents and seeds; "
        "methods share documents, so compare them by the changes, not by these intervals.",
        f"Changes: in PPL, {main} convention, over the seeds both methods have; negative is "
        f"better. [Brackets] are {100 * LEVEL:g} % confidence intervals, paired, clustered by "
        "documents and seeds, given for at least three documents or three seeds. One seed: "
        f"{ONE_SEED}; two seeds: it is poorly estimated. p-values are adjusted for multiple "
        "comparisons (Holm), intervals are not, so an interval may exclude 0 without a "
        "significant difference. Minimum detectable effect: what "
        f"{100 * POWER:g} % of such studies would detect at the strictest Holm level.",
        *([own_window] if some_extended(comparisons) else []),
        "Parameters per 1 % gain: trainable parameters beyond those of the method nested in it "
        "(the untrained base, if there is none), per percent of PPL gained over that; not given "
        "where the interval of the gain includes 0.",
        *(
            f"{comparison.heading}: {note}"
            for comparison in comparisons
            if (against := comparison.reference(reference)) is not None
            for note in contrast_notes(comparison, against)
        ),
    ]


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
