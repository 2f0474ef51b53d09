"""Rows that cost more than they are worth: each capped, and named by file and number."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from pathlib import Path

import pytest

from hylorada.config import DatasetConfig
from hylorada.data import files, formats, json_rows
from hylorada.data.readers import read_documents
from hylorada.errors import DataError

GOOD = {"text": "a text that is read"}


def read(path: Path) -> list[str]:
    config = DatasetConfig("mine", "local", path=str(path), text_column="text")
    return [document.text for document in read_documents(config, "test")]


def write(path: Path, *rows: str) -> Path:
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


HOSTILE = {
    "digits": ('{"text": ' + "7" * 5000 + "}", "a number of thousands of digits"),
    "arrays": ('{"text": ' + "[" * 100_000, "nested too deeply"),
    "objects": ('{"text": ' + '{"a":' * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize(("row", "said"), HOSTILE.values(), ids=HOSTILE)
def test_a_line_of_json_is_left_out_by_its_number(tmp_path, caplog, row, said):
    good = json.dumps(GOOD)
    path = write(tmp_path / f"test-{len(row)}.jsonl", good, row, good)
    assert read(path) == [GOOD["text"]] * 2
    assert f"1 of 3 rows left out ({said}: {path.name} row 2)" in caplog.text


@pytest.mark.parametrize(("row", "said"), HOSTILE.values(), ids=HOSTILE)
def test_an_element_of_an_array_is_named(tmp_path, row, said):
    path = tmp_path / "test.json"
    path.write_text(f"[{json.dumps(GOOD)}, {row}]")
    with pytest.raises(DataError, match=f"test.json: element 2 is {said}"):
        read(path)


@pytest.fixture
def small_limit(monkeypatch):
    """A MiB as what a row may have, so that the tests need no hundreds of them."""
    for module in (files, formats, json_rows):
        monkeypatch.setattr(module, "LARGEST", 1 << 20)


@pytest.mark.parametrize("form", ["jsonl", "txt.rows"])
def test_a_line_that_is_too_long_is_passed_over_without_being_held(tmp_path, form, small_limit):
    class Counted(io.BytesIO):
        largest = 0

        def readline(self, size=-1):
            line = super().readline(size)
            Counted.largest = max(Counted.largest, len(line))
            return line

    end = b"" if form == "jsonl" else b"\n"  # also where the file ends within it
    found = list(
        files.lines(Counted(b"one\n" + b"x" * (5 << 20) + b"\nthree\n" + b"y" * (2 << 20) + end))
    )
    assert found == [(1, b"one\n"), (2, None), (3, b"three\n"), (4, None)]
    assert Counted.largest <= (1 << 20) + 1
    at_most = b"z" * ((1 << 20) - 1) + b"\n"
    assert list(files.lines(io.BytesIO(at_most))) == [(1, at_most)]


def test_a_row_that_is_too_long_is_named(tmp_path, caplog, small_limit):
    long = json.dumps({"text": "x" * (3 << 20)})
    path = write(tmp_path / "test.jsonl", json.dumps(GOOD), long, json.dumps(GOOD))
    assert read(path) == [GOOD["text"]] * 2
    assert "test.jsonl row 2" in caplog.text
    table = write(tmp_path / "test.csv", "text", "short", "x" * (3 << 20))
    with pytest.raises(DataError, match=r"test\.csv cannot be read"):
        read(table)


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("form", ["txt", "jsonl", "csv"])
def test_a_bomb_is_refused_before_it_is_held(tmp_path, small_limit, packed, form):
    start = {"txt": b"", "jsonl": b'{"text": "', "csv": b"text\n"}[form]
    data = start + bytes(40 << 20).replace(b"\0", b"x")
    path = tmp_path / f"test.{form}{packed}"
    path.write_bytes(PACKERS[packed](data))
    with pytest.raises(DataError, match=rf"test\.{form}\{packed} cannot be read") as refused:
        read(path)
    assert "times its size" in str(refused.value) or form == "csv"


def test_what_a_text_grows_to_is_no_bomb(tmp_path, small_limit):
    rows = [json.dumps({"text": f"row {i} of many that say the same"}) for i in range(60_000)]
    path = tmp_path / "test.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(rows).encode()))
    assert path.stat().st_size * 5 < 60_000 * 40
    assert len(read(path)) == 60_000


@pytest.mark.long
def test_three_megabytes_that_would_be_gigabytes(tmp_path):
    """The limits as they are, in the memory that they promise."""
    import resource
    import subprocess
    import sys

    path = tmp_path / "test.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(b'{"text": "')
        for _ in range(3 << 10):
            file.write(b"x" * (1 << 20))
    assert path.stat().st_size < 4 << 20
    code = f"""
import resource
from hylorada.config import DatasetConfig
from hylorada.data.readers import read_documents
from hylorada.errors import DataError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    list(read_documents(DatasetConfig("mine", "local", path={str(path)!r}), "test"))
except DataError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    assert resource.RLIM_INFINITY  # the module is there
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said, kibibytes = done.stdout.splitlines()
    assert "times its size" in said
    assert int(kibibytes) < 600 << 10
