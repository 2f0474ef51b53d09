"""How sure a share is."""

from __future__ import annotations

import math

_Z = 1.959963984540054  # 95 %, two-sided


def wilson_interval(correct: float, total: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927); stays within 0 and 1 and holds at the ends."""
    assert total > 0
    share = correct / total
    centre = share + _Z**2 / (2 * total)
    spread = _Z * math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2))
    scale = 1 + _Z**2 / total
    # At 0 and 1 the ends are exact; rounding must not put the share outside its interval.
    return min(share, max(0.0, (centre - spread) / scale)), max(
        share, min(1.0, (centre + spread) / scale)
    )
