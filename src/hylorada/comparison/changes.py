"""How the perplexity of one arm differs from another's, in the convention that both have."""

from __future__ import annotations

from collections.abc import Sequence

from hylorada.comparison.arms import Arm
from hylorada.comparison.components import Pair
from hylorada.records.metric_names import COMPARED
from hylorada.statistics.paired import Change, mean_change, paired_change


def ppl_change(arm: Arm, against: Arm) -> Change | str:
    """In the first compared convention that the arm was measured in; or why there is none."""
    main = next((name for name in COMPARED.values() if arm.metrics(name)), "")
    return paired_change(arm.metrics(main), against.metrics(main))


def component_change(pairs: Sequence[Pair]) -> Change | str:
    """What a component changes: the mean over pairs that differ by it alone."""
    name = next(
        (
            name
            for name in COMPARED.values()
            if all(pair.with_it.metrics(name) and pair.without.metrics(name) for pair in pairs)
        ),
        "",
    )
    return mean_change([(pair.with_it.metrics(name), pair.without.metrics(name)) for pair in pairs])


def change_words(change: Change) -> str:
    """ "5.0 % worse [3.4, 6.7], one seed"; with signs where the interval reaches 0."""
    size, ends = change_parts(change)
    if not ends:
        return f"{size}, {change.basis}"
    return f"{size} {ends}" + (f", {change.remark}" if change.remark else "")


def change_parts(change: Change) -> tuple[str, str]:
    """Its size in words and its interval, which is empty where there is none.

    "5.0 % worse" and "[3.4, 6.7]"; where the interval reaches 0 "+0.3 %" and "[-0.5, +1.1]".
    """
    digits = _digits(change)
    size = f"{abs(change.percent):.{digits}f} % {'better' if change.percent < 0 else 'worse'}"
    if change.low is None or change.high is None:
        return size, ""
    if change.low * change.high <= 0:
        return f"{change.percent:+.{digits}f} %", _signed_ends(change)
    near, far = sorted((abs(change.low), abs(change.high)))
    return size, f"[{near:.{digits}f}, {far:.{digits}f}]"


def signed(change: Change) -> str:
    """ "+0.3 % [-0.5, +1.1]"."""
    return f"{change.percent:+.{_digits(change)}f} % {_signed_ends(change)}"


def _signed_ends(change: Change) -> str:
    digits = _digits(change)
    return f"[{change.low:+.{digits}f}, {change.high:+.{digits}f}]"


def _digits(change: Change) -> int:
    return 1 if abs(change.percent) >= 1 else 2
