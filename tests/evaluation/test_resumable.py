"""What an interrupted measurement leaves, and what is made of it."""

from __future__ import annotations

import json
import signal

import pytest

from hylorada.errors import Interrupted
from hylorada.evaluation.resumable import KEEP_SECONDS, Partial
from hylorada.process.signals import Stop

IDENTITY = {"window": 96, "settings": ("a", "tuple")}


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def kept(path):
    return json.loads(path.read_text())["done"]


def test_it_is_kept_every_now_and_then(tmp_path):
    path, clock = tmp_path / "part", Clock()
    partial = Partial(path, IDENTITY, Stop(), clock)
    clock.now += KEEP_SECONDS - 0.1
    partial.boundary(lambda: [1])
    assert not path.exists()
    clock.now += 0.1
    partial.boundary(lambda: [1, 2])
    clock.now += KEEP_SECONDS - 0.1
    partial.boundary(lambda: [1, 2, 3])
    assert kept(path) == [1, 2]
    clock.now += 0.1
    partial.boundary(lambda: [1, 2, 3, 4])
    assert kept(path) == [1, 2, 3, 4]
    assert Partial(path, IDENTITY, Stop()).done == [1, 2, 3, 4]
    partial.remove()
    assert Partial(path, IDENTITY, Stop()).done is None


def test_a_signal_keeps_it_at_once(tmp_path):
    stop = Stop()
    partial = Partial(tmp_path / "part", IDENTITY, stop)
    stop.requested = signal.SIGTERM
    with pytest.raises(Interrupted):
        partial.boundary(lambda: {"a": 1.5})
    assert Partial(tmp_path / "part", IDENTITY, Stop()).done == {"a": 1.5}


def test_another_measurement_or_a_damaged_file_is_nothing(tmp_path):
    path = tmp_path / "part"
    Partial(path, IDENTITY, Stop()).keep([1])
    assert Partial(path, {**IDENTITY, "window": 97}, Stop()).done is None
    for text in (path.read_text()[:-3], '{"blocks": {"plan": "of an earlier version"}}', "[1]"):
        path.write_text(text)
        assert Partial(path, IDENTITY, Stop()).done is None


def test_a_flipped_digit_is_measured_again(tmp_path):
    path = tmp_path / "part"
    Partial(path, IDENTITY, Stop()).keep({"sum_nll": 12.5})
    path.write_text(path.read_text().replace("12.5", "12.4"))
    assert Partial(path, IDENTITY, Stop()).done is None


def test_without_a_path_nothing_is_kept():
    partial = Partial(None, IDENTITY, Stop(), Clock())
    partial.keep([1])
    partial.remove()
    assert partial.done is None
