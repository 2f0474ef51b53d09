"""Small random models of true architectures, each through every method: a pass or a true refusal.

The path is that of a run without its expensive parts (`journey`), at the trained length and at
twice it, with every component on by the rule. Anything but a refusal of ours is a failure.
"""

from __future__ import annotations

import pytest
from helpers import family_rows as rows
from helpers.architectures import ALL, TRAINED, make_zoo_model
from helpers.journey import outcome
from helpers.marks import LONG, SLOW, thinned

from hylorada.methods import adaptive_rule

FAST = ("llama",)


@pytest.fixture(autouse=True)
def short_thresholds(monkeypatch):
    monkeypatch.setattr(adaptive_rule, "LONG_CONTEXT", TRAINED)
    monkeypatch.setattr(adaptive_rule, "VERY_LONG_CONTEXT", TRAINED)


@pytest.mark.parametrize("family", FAST)
def test_a_row_of_the_page(family):
    assert rows.row(family) == rows.rows_of_page()[family]


@pytest.mark.parametrize(
    "family", thinned([f for f in rows.ROWS if f not in FAST], 6, often=SLOW, seldom=LONG)
)
def test_every_other_row_of_the_page(family):
    assert rows.row(family) == rows.rows_of_page()[family]


@pytest.mark.parametrize(
    "family", thinned([f for f in ALL if f not in rows.ROWS], 4, often=SLOW, seldom=LONG)
)
def test_the_variations_pass_or_are_refused_in_one_line(family):
    text, _ = outcome(make_zoo_model(family), "hylorada", 2 * TRAINED)
    assert "\n" not in text


def test_the_page_has_every_row_and_explains_every_word():
    page = rows.rows_of_page()
    assert tuple(page) == rows.ROWS
    assert len(page) >= 40
    text = rows.PAGE.read_text()
    assert all(f"* **{word}**" in text for word in rows.REASONS)
