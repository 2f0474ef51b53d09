"""Time that passes: seconds of a phase, seconds in words, when the last of several ends."""

from __future__ import annotations

import contextlib
import heapq
import time
from collections.abc import Iterable, Iterator


@contextlib.contextmanager
def timed(phases: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds that the block takes to those of its phase, however it ends."""
    started = time.perf_counter()
    try:
        yield
    finally:
        phases[name] = phases.get(name, 0.0) + time.perf_counter() - started


def duration(seconds: float) -> str:
    """Seconds in words: 42 s, 3 min 20 s, 1 h 40 min, 3 d 4 h."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    for larger, smaller, unit, limit in (
        ("min", "s", 1, 3600), ("h", "min", 60, 2 * 86400), ("d", "h", 3600, float("inf")),
    ):  # fmt: skip
        count = round(seconds / unit)
        if count * unit < limit:
            whole, rest = divmod(count, 24 if larger == "d" else 60)
            said = [f"{whole} {larger}"] * bool(whole) + [f"{rest} {smaller}"] * bool(rest)
            return " ".join(said)
    raise AssertionError(seconds)


def side_by_side(seconds: Iterable[float], places: int) -> float:
    """When the last one ends, if each begins, in order, as soon as one of the places is free."""
    ends = [0.0] * places
    for took in seconds:
        heapq.heappush(ends, heapq.heappop(ends) + took)
    return max(ends)
