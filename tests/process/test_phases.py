"""Time in words, and when the last of several ends."""

from __future__ import annotations

import pytest

from hylorada.process.phases import duration, side_by_side, timed


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min"),
        (200, "3 min 20 s"), (3599.7, "1 h"), (6000, "1 h 40 min"), (2 * 86400, "2 d"),
        (3 * 86400 + 3600 * 5, "3 d 5 h"),
    ],
)  # fmt: skip
def test_durations_in_words(seconds, said):
    assert duration(seconds) == said


def test_places_are_taken_as_soon_as_they_are_free():
    assert side_by_side([3, 1, 1, 5], 1) == 10
    assert side_by_side([3, 1, 1, 5], 2) == 7  # 3 | 1 1 5
    assert side_by_side([], 2) == 0


def test_a_phase_that_fails_counts_too():
    phases: dict[str, float] = {}
    for _ in range(2):
        with pytest.raises(KeyError), timed(phases, "gate"):
            raise KeyError
    assert phases["gate"] > 0
