from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers.byte_tokenizer import make_byte_tokenizer
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_byte_tokenizer()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; without it a test is skipped."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("HYLORADA_DATA") or beside)
    if not folder.is_dir():
        pytest.skip(f"real data: no folder {folder}; set HYLORADA_DATA")
    return folder
