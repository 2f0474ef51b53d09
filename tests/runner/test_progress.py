from io import StringIO

import pytest
from rich.console import Console

from hylorada.runner import progress
from hylorada.runner.progress import Reporter


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def test_in_a_pipe_one_plain_line_every_ten_seconds_and_one_at_the_end(clock):
    out = StringIO()
    with Reporter(Console(file=out)) as reporter:
        reporter.begin("train", 100)
        for step in range(1, 101):
            clock.now += 0.5
            reporter.update(step, f"loss {step}")
    lines = out.getvalue().splitlines()
    assert lines[0] == "train 20/100  loss 20  0:40 left"
    assert [line.split()[1] for line in lines] == [f"{n}/100" for n in (20, 40, 60, 80, 100)]
    assert lines[-1] == "train 100/100  loss 100"


def test_time_left_counts_only_this_attempt(clock):
    out = StringIO()
    with Reporter(Console(file=out)) as reporter:
        reporter.begin("train", 100, done=90)
        clock.now += 20
        reporter.update(95, "")
    assert "0:20 left" in out.getvalue()


def test_on_a_terminal_a_bar_with_the_numbers(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    out = StringIO()
    with Reporter(Console(file=out, force_terminal=True, width=120, highlight=False)) as reporter:
        reporter.begin("train", 4, done=1)
        reporter.update(2, "loss 1.2345  321 tokens/s")
        reporter.say("a line [with brackets]")
    text = out.getvalue()
    assert "a line [with brackets]" in text
    assert "loss 1.2345  321 tokens/s" in text
    assert "2/4" in text
