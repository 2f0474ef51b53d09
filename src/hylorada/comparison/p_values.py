"""P-values in words, those of a family of contrasts adjusted by Holm's method."""

from __future__ import annotations

from collections.abc import Sequence

from hylorada.statistics.clustered import ONE_SEED
from hylorada.statistics.contrasts import holm


def p_values_by_holm(contrasts: Sequence[tuple[str, float, int]]) -> str:
    """The contrasts of a family with their adjusted p-values: "a 0.41; b < 0.001".

    Args:
        contrasts: label, p-value and number of seeds of each.
    """
    adjusted = holm([p for _, p, _ in contrasts])
    listed = "; ".join(
        f"{label} {p_text(p)}" for (label, _, _), p in zip(contrasts, adjusted, strict=True)
    )
    single = [label for label, _, seeds in contrasts if seeds == 1]
    if not single:
        return listed
    who = "" if len(single) == len(contrasts) else f" of {', '.join(single)}"
    return f"{listed} (one seed{who}: {ONE_SEED})"


def p_text(p: float) -> str:
    """A p-value with two digits, or that it is below 0.001."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.0995 else f"{p:.2f}"
