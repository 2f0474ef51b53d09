"""The corpus `stdlib`: what it reads, what it leaves out, and that its splits never touch."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hylorada.config import SPLITS
from hylorada.data.kinds.stdlib import PRETRAIN_HELDOUT, group_name, read_stdlib, split_of
from hylorada.errors import DataError

ALL = (*SPLITS, PRETRAIN_HELDOUT)


@pytest.fixture(scope="module")
def documents() -> dict[str, dict[str, str]]:
    return {split: {d.name: d.text for d in read_stdlib(split)} for split in ALL}


def test_every_split_has_text_of_its_own(documents: dict[str, dict[str, str]]) -> None:
    names = [name for split in ALL for name in documents[split]]
    assert len(names) == len(set(names)) > 300
    texts = [text for split in ALL for text in documents[split].values() if len(text) > 500]
    assert len(texts) == len(set(texts))
    assert all(list(documents[split]) == sorted(documents[split]) for split in ALL)


def test_sizes_and_long_documents(documents: dict[str, dict[str, str]]) -> None:
    sizes = {split: sum(map(len, documents[split].values())) for split in ALL}
    share = {split: size / sum(sizes.values()) for split, size in sizes.items()}
    assert share["train"] > 0.75
    assert 0.04 < share["test"] < 0.12
    assert 0.02 < share["validation"] < 0.10
    assert 0.02 < share[PRETRAIN_HELDOUT] < 0.08
    for split in ("test", "validation"):
        lengths = sorted(map(len, documents[split].values()), reverse=True)
        assert lengths[0] > 110_000, "no document of about 32K tokens"
        assert lengths[3] > 30_000


def test_no_tests_tables_or_packages(documents: dict[str, dict[str, str]]) -> None:
    names = [name for split in ALL for name in documents[split]]
    unwanted = r"(^|/)(tests?|idle_test|site-packages|__pycache__)/|pydoc_data|_sysconfigdata"
    assert not [name for name in names if re.search(unwanted, name)]
    assert not {"encodings/cp1252.py", "encodings/iso8859_15.py"}.intersection(names)
    assert "encodings/utf_8_sig.py" in names


def test_texts_are_whole_with_plain_newlines(documents: dict[str, dict[str, str]]) -> None:
    for split in ALL:
        for name, text in documents[split].items():
            assert text.strip(), name
            assert "\r" not in text, name
            assert not text.startswith("\ufeff"), name


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("_pydecimal.py", "decimal"),
        ("decimal.py", "decimal"),
        ("_pyio.py", "io"),
        ("_strptime.py", "strptime"),
        ("json/decoder.py", "json"),
        ("re/_parser.py", "re"),
        ("sre_parse.py", "re"),  # where re/_parser.py was before Python 3.11
        ("pathlib/_local.py", "pathlib"),  # a package since Python 3.13, a module before
        ("posixpath.py", "path"),
        ("ntpath.py", "path"),
        ("__future__.py", "__future__"),
        ("_pydatetime.py", "datetime"),
    ],
)
def test_a_module_keeps_its_group_in_every_version(path: str, group: str) -> None:
    assert group_name(Path(path)) == group


def test_the_split_never_changes() -> None:
    # The shipped weights were trained on this split: a change here makes their held-out text lie.
    names = ["decimal", "http", "typing", "tkinter", "unittest", "asyncio", "argparse", "pathlib"]
    assert {name: split_of(name) for name in names} == {
        "decimal": "validation",
        "http": "validation",
        "typing": "test",
        "tkinter": "test",
        "unittest": PRETRAIN_HELDOUT,
        "asyncio": "train",
        "argparse": "train",
        "pathlib": "train",
    }


def test_encodings_line_ends_and_bad_files(tmp_path: Path) -> None:
    (tmp_path / "argparse.py").write_bytes(b"\xef\xbb\xbfone = 1\r\ntwo = 2\r")
    (tmp_path / "asyncio").mkdir()
    (tmp_path / "asyncio" / "old.py").write_bytes(b"# -*- coding: latin-1 -*-\nname = '\xe9'\n")
    (tmp_path / "asyncio" / "bad.py").write_bytes(b"# \xff not utf-8\n")
    (tmp_path / "asyncio" / "empty.py").write_bytes(b"\n")
    (tmp_path / "asyncio" / "notes.txt").write_text("no")
    read = {d.name: d.text for d in read_stdlib("train", tmp_path)}
    assert read == {
        "argparse.py": "one = 1\ntwo = 2\n",
        "asyncio/old.py": "# -*- coding: latin-1 -*-\nname = 'é'\n",
    }


@pytest.mark.parametrize("make", [False, True])
def test_a_missing_or_zipped_library_is_one_clear_line(tmp_path: Path, make: bool) -> None:
    root = tmp_path / "python3.11"
    if make:
        root.mkdir()
        (tmp_path / "python311.zip").touch()
    with pytest.raises(DataError) as error:
        read_stdlib("train", root)  # at the call, not at the first document
    message = str(error.value)
    assert "\n" not in message
    assert str(root) in message
    assert "dataset=local" in message


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        read_stdlib("dev")
