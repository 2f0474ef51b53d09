"""One sentence for each comparison, made from its numbers: better, worse, matches, or not known.

The rule is one for all that compares perplexities. Fewer than three seeds, or no interval: no
result yet, whatever the numbers. Shown to lie within the margin (two one-sided tests): matches.
Otherwise a difference that stands in its family: better or worse. Otherwise none is shown, which is
no match, and the sentence says how large a difference could have been missed. Both kinds of
p-values are adjusted by Holm over the arms that are compared with the same one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hylorada.comparison.cells import Verdict
from hylorada.comparison.changes import change_parts, signed
from hylorada.comparison.p_values import p_text
from hylorada.statistics.clustered import LEVEL, few_seeds
from hylorada.statistics.contrasts import MARGIN, POWER, equivalence_p, holm, minimum_detectable
from hylorada.statistics.paired import Change

ALPHA = 1 - LEVEL


@dataclass(frozen=True)
class Contrast:
    """An arm against another one, as one of a family.

    Attributes:
        label: of the arm.
        change: of its perplexity, or in words why there is none.
        p: of no difference, by Holm; None without an interval.
        outside: of a difference outside of the margin, by Holm; None as well.
        smallest: percent that 80 % of studies like this one would find; None as well.
        family: contrasts with a p-value.
    """

    label: str
    change: Change | str
    p: float | None = None
    outside: float | None = None
    smallest: float | None = None
    family: int = 0


def contrasts(changes: Sequence[tuple[str, Change | str]]) -> list[Contrast]:
    """The family of some arms against one, in the order given.

    Args:
        changes: label and change of each.
    """
    tested = []
    for place, (_, change) in enumerate(changes):
        log_ratio = None if isinstance(change, str) else change.log_ratio
        p = None if log_ratio is None else log_ratio.p_value()
        outside = None if log_ratio is None else equivalence_p(log_ratio)
        if log_ratio is not None and p is not None and outside is not None:
            tested.append((place, log_ratio, p, outside))
    p_values = holm([p for _, _, p, _ in tested])
    outsides = holm([outside for _, _, _, outside in tested])
    found = [Contrast(label, change) for label, change in changes]
    for (place, log_ratio, _, _), p, outside in zip(tested, p_values, outsides, strict=True):
        # The strictest step of Holm's: what it finds is found at every place in the family.
        smallest = minimum_detectable(log_ratio, level=1 - ALPHA / len(tested))
        assert smallest is not None  # there is a p-value
        found[place] = Contrast(
            *changes[place], p, outside, 100 * math.expm1(min(smallest, 700)), len(tested)
        )
    return found


def verdict(contrast: Contrast, other: str, where: str) -> Verdict:
    """The sentence of one contrast.

    Args:
        contrast: of a family.
        other: label of the arm that it is compared with.
        where: how the sentence begins: "At 4,096 tokens".
    """
    label, change = contrast.label, contrast.change
    if isinstance(change, str):
        return Verdict(f"{where}, {label} is not compared with {other}: {change}.", "no result")
    size, ends = change_parts(change)
    crosses = change.low is not None and change.high is not None and change.low * change.high <= 0
    differs = f"differs from {other} by {size}" if crosses else f"is {size} than {other}"
    if not ends:
        return Verdict(f"{where}, {label} {differs}, {change.basis}: no result yet.", "no result")
    few = few_seeds(change.seeds)
    if few or contrast.p is None or contrast.outside is None:
        return Verdict(f"{where}, {label} {differs} {ends}, {few}: no result yet.", "no result")
    seeds = f"{change.seeds} seeds"
    if contrast.outside < ALPHA:
        return Verdict(
            f"{where}, {label} is equivalent to {other} within {100 * MARGIN:g} %: "
            f"{signed(change)}, {seeds}, {p_words(contrast.outside, contrast.family, 'TOST')}.",
            "matches",
        )
    if contrast.p < ALPHA:
        return Verdict(
            f"{where}, {label} {differs} {ends}, {seeds}, {p_words(contrast.p, contrast.family)}.",
            "better" if change.percent < 0 else "worse",
        )
    return Verdict(
        f"{where}, {label} does not differ significantly from {other}: {signed(change)}, "
        f"{seeds}, {p_words(contrast.p, contrast.family)}; minimum detectable effect "
        f"{contrast.smallest:.1f} % ({100 * POWER:g} % power).",
        "none shown",
    )


def p_words(p: float, family: int, test: str = "") -> str:
    """ "p = 0.045 (Holm, 4 comparisons)"; "p < 0.001 (TOST)" with a test and no family."""
    shown = p_text(p)
    how = [test] if test else []
    if family > 1:
        how.append(f"Holm, {family} comparisons")
    remark = f" ({'; '.join(how)})" if how else ""
    return (f"p {shown}" if shown.startswith("<") else f"p = {shown}") + remark
