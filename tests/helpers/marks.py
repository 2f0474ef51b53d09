"""Which of many like cases run when: by default, in CI (`slow`), or on request (`long`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest

SLOW, LONG = pytest.mark.slow, pytest.mark.long


def thinned(
    cases: Iterable[Any], kept: int | Collection[Any], *, often: Any = (), seldom: Any = SLOW
) -> list[Any]:
    """The cases as parameters, most of them with a mark of what runs seldom.

    Args:
        cases: values of one parameter, or tuples of several.
        kept: every how many-th runs often, or those that do.
        often: the mark of these; default: none, so that they run by default.
        seldom: the mark of all others.
    """
    found = []
    for number, case in enumerate(cases):
        runs_often = number % kept == 0 if isinstance(kept, int) else case in kept
        values = case if isinstance(case, tuple) else (case,)
        found.append(pytest.param(*values, marks=often if runs_often else seldom))
    return found


def slow(*cases: Any) -> list[Any]:
    """Cases that CI runs."""
    return [pytest.param(case, marks=SLOW) for case in cases]


def on_request(*cases: Any) -> list[Any]:
    """Cases that `pytest -m long` runs."""
    return [pytest.param(case, marks=LONG) for case in cases]
