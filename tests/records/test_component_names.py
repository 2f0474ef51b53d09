"""One home for what the components are called: records, tables and cards agree."""

from __future__ import annotations

from pathlib import Path

import hylorada
from hylorada.records.component_names import COMPONENTS, component_words

SOURCE = Path(hylorada.__file__).parent


def test_a_component_that_is_not_known_is_called_as_its_record_calls_it() -> None:
    assert component_words("landmark") == "landmarks"
    assert component_words("vera") == "vera"


def test_no_other_file_spells_the_names_out() -> None:
    """Two of the words side by side as values would be a second list."""
    second = [
        path.name
        for path in SOURCE.rglob("*.py")
        if sum(f'": "{words}"' in path.read_text() for words in COMPONENTS.values()) > 1
    ]
    assert second == ["component_names.py"]
