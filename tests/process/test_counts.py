from __future__ import annotations

from hylorada.process.counts import number_of


def test_a_count_has_the_noun_that_fits_it() -> None:
    assert [number_of(n, "run") for n in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]
    assert number_of(2048, "token") == "2,048 tokens"
    assert number_of(1, "cell is", "cells are") == "1 cell is"
    assert number_of(3, "cell is", "cells are") == "3 cells are"
