"""docs/RELIABILITY.md: each row names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "RELIABILITY.md").read_text(encoding="utf-8")
# A row goes on in the lines below it that have no number.
ROWS = {
    int(found[1]): found[0]
    for found in re.finditer(r"^\| (\d+) \|.*\n(?:\| \|.*\n)*", PAGE, flags=re.MULTILINE)
}


def test_the_rows_are_all_31():
    assert list(ROWS) == list(range(1, 32))


@pytest.mark.parametrize("number", ROWS)
def test_what_proves_a_row_is_there(number):
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", ROWS[number])
    assert named
    for file, name in named:
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in functions, f"{file} has no {name}"
