"""Which tokens the conventions score, checked token by token."""

from __future__ import annotations

import itertools

import pytest

from hylorada.errors import ConfigError
from hylorada.evaluation.windows import Window, batches, plan_windows

LENGTHS = [1, 50, 0, 7, 16, 17, 33, 2]


def scored(windows: list[Window]) -> list[tuple[int, int]]:
    """(document, token) of every scored target, with repetitions."""
    return [(w.document, t) for w in windows for t in range(w.first_target, w.end + 1)]


ALL = [(d, t) for d, n in enumerate(LENGTHS) for t in range(1, n)]


@pytest.mark.parametrize("convention", ["blocks", "sliding"])
@pytest.mark.parametrize(
    ("window", "stride"), [(16, 0), (16, 16), (16, 5), (16, 1), (7, 3), (1, 1)]
)
def test_every_token_but_the_first_is_scored_once(convention, window, stride):
    windows = plan_windows(LENGTHS, convention, window, stride=stride)
    assert sorted(scored(windows)) == ALL
    for w in windows:
        assert 0 <= w.start < w.first_target <= w.end < LENGTHS[w.document]
        assert w.length <= window


def test_blocks_do_not_overlap_and_start_at_multiples_of_the_window():
    windows = plan_windows([50], "blocks", 16)
    assert [(w.start, w.end) for w in windows] == [(0, 16), (16, 32), (32, 48), (48, 49)]
    assert all(w.first_target == w.start + 1 for w in windows)


@pytest.mark.parametrize("stride", [1, 5, 8, 16])
def test_sliding_gives_every_token_the_context_it_promises(stride):
    window = 16
    for w in plan_windows(LENGTHS, "sliding", window, stride=stride):
        for target in range(w.first_target, w.end + 1):
            assert target - w.start >= min(target, window - stride + 1)


def test_a_stride_of_zero_is_half_a_window():
    assert plan_windows([99], "sliding", 16) == plan_windows([99], "sliding", 16, stride=8)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_part_is_spread_over_the_split_and_the_same_for_every_arm(count):
    lengths = [160, 160, 3, 160]
    blocks = plan_windows(lengths, "blocks", 16, max_blocks=count)
    assert len(blocks) == count
    whole = plan_windows(lengths, "blocks", 16)
    assert set(blocks) <= set(whole)
    places = [whole.index(b) for b in blocks]
    slices = [(i * len(whole) // count, -(-(i + 1) * len(whole) // count)) for i in range(count)]
    assert all(low <= p < high for p, (low, high) in zip(places, slices, strict=True))
    # Sliding windows and a shorter window score exactly the tokens of these blocks.
    sliding = plan_windows(lengths, "sliding", 16, stride=5, max_blocks=count)
    own = plan_windows(lengths, "sliding", 6, max_blocks=count, cover=16)
    assert sorted(scored(sliding)) == sorted(scored(blocks)) == sorted(scored(own))
    assert max(w.length for w in own) == 6


def test_a_block_in_the_middle_of_a_document_keeps_its_context_when_sliding():
    (block,) = plan_windows([160], "blocks", 16, max_blocks=1)
    assert block.start > 16
    for w in plan_windows([160], "sliding", 16, stride=4, max_blocks=1):
        assert w.length == 16


def test_more_blocks_than_there_are_means_all():
    assert plan_windows(LENGTHS, "blocks", 16, max_blocks=999) == plan_windows(
        LENGTHS, "blocks", 16
    )


def test_windows_slide_on_across_neighbouring_blocks():
    """The whole split cut into blocks of any size gives the plain sliding windows."""
    assert plan_windows([200], "sliding", 16, stride=5, cover=33) == plan_windows(
        [200], "sliding", 16, stride=5
    )


def test_a_batch_has_one_length_and_none_is_lost():
    windows = plan_windows(LENGTHS * 3, "blocks", 16)
    for size in (1, 2, 4, 100):
        groups = batches(windows, size)
        assert all(len({w.length for w in g}) == 1 and len(g) <= size for g in groups)
        key = lambda w: (w.document, w.start)  # noqa: E731
        assert sorted(itertools.chain(*groups), key=key) == sorted(windows, key=key)


@pytest.mark.parametrize(
    ("convention", "window", "stride", "word"),
    [("paper2", 16, 0, "paper2"), ("sliding", 16, 17, "17"), ("sliding", 0, 0, "at least 1")],
)
def test_impossible_settings_are_refused(convention, window, stride, word):
    with pytest.raises(ConfigError, match=word):
        plan_windows([99], convention, window, stride=stride)
