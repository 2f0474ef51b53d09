"""What only a GPU shows: `pytest -m cuda`. Without one, and without that mark, all are skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch


def pytest_collection_modifyitems(items: list[Any]) -> None:
    missing = pytest.mark.skip(reason="no GPU, or not asked for by -m cuda")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("cuda")
            if not torch.cuda.is_available():
                item.add_marker(missing)


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())
