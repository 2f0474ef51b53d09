"""Text of one's own, as it lies on people's disks."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import logging
import lzma
import re

import pyarrow as pa
import pytest
from helpers.unreadable import no_permission

from hylorada.config import DatasetConfig
from hylorada.data import file_documents, files
from hylorada.data.readers import read_documents
from hylorada.errors import DataError

SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def say_again():
    file_documents.say_once.cache_clear()


def read(path, split="train", **settings):
    return list(read_documents(DatasetConfig(kind="local", path=str(path), **settings), split))


def texts(path, split="train", **settings):
    return [document.text for document in read(path, split, **settings)]


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(path, split="train", **settings):
    with pytest.raises(DataError) as caught:
        read(path, split, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- which files


LITTER = [
    ".ipynb_checkpoints/train-checkpoint.txt", ".git/objects/train.txt", ".cache/train.jsonl",
    "train/.ipynb_checkpoints/a-checkpoint.txt", "__MACOSX/._train.txt", "._train.txt",
    "train/._a.txt", "train/a.txt~", "train/#a.txt#", "train/.#a.txt", "~$train.csv",
    "train/a.txt.bak", "train/a.bak", "train/b.txt.swp", "train/c.tmp", "train/d.txt.part",
    ".hidden.jsonl", "__pycache__/train.txt", "train/.DS_Store",
]  # fmt: skip


def test_what_is_hidden_or_left_behind_is_not_read(tmp_path, caplog):
    put(tmp_path / "train" / "a.txt", "kept")
    put(tmp_path / "test" / "b.txt", "held out")
    for name in LITTER:
        put(tmp_path / name, "litter")
    put(tmp_path / ".DS_Store", b"\0\0Bud1")
    with caplog.at_level(logging.INFO):
        assert texts(tmp_path) == texts(tmp_path) == ["kept"]
        assert texts(tmp_path, "test") == ["held out"]
    said = [r.getMessage() for r in caplog.records if "not read" in r.getMessage()]
    # A folder counts once: what is in it is not looked at.
    assert len(said) == 1
    assert f"not read: {len(LITTER) + 1} hidden or left by a system or an editor" in said[0]
    assert ".DS_Store" in said[0]


def test_a_hidden_place_that_is_asked_for_is_read(tmp_path):
    put(tmp_path / ".corpus" / "train.txt", "asked for")
    assert texts(tmp_path / ".corpus") == ["asked for"]
    assert texts(put(tmp_path / ".train.jsonl", '{"text": "this file"}')) == ["this file"]


def test_a_folder_of_nothing_else_says_so(tmp_path):
    assert "it is empty" in refused(tmp_path)
    put(tmp_path / ".git" / "train.txt", "x")
    put(tmp_path / "book.pdf", "x")
    message = refused(tmp_path)
    assert "1 hidden or left by a system or an editor (.git)" in message
    assert (
        "1 of other forms (book.pdf); to have it read, save it as plain text: book.pdf" in message
    )


def test_files_of_other_forms_are_named_beside_those_that_are_read(tmp_path, caplog):
    put(tmp_path / "train.txt", "x")
    for name in ("README.md", "LICENSE", "more.zip"):
        put(tmp_path / name, "x")
    with caplog.at_level(logging.INFO):
        assert texts(tmp_path) == ["x"]
    assert "3 of other forms (LICENSE, README.md, more.zip)" in caplog.text
    assert "to have it read, unpack it: more.zip" in caplog.text


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("a.zip", "unpack it"), ("a.tar.gz", "unpack it"), ("a.gz", "unpack it"),
        ("data-00000-of-00001.arrow", "to_parquet"), ("a.xlsx", "save it as CSV"),
        ("a.docx", "save it as plain text"), ("a.pkl", "JSON lines"), ("a.weird", "use .parquet"),
    ],
)  # fmt: skip
def test_a_file_of_another_form_is_refused_with_what_to_do(tmp_path, name, cure):
    message = refused(put(tmp_path / name, b"PK\x03\x04"))
    assert str(tmp_path / name) in message
    assert cure in message


def test_linked_folders_are_read_once_each(tmp_path):
    put(tmp_path / "elsewhere" / "a.txt", "linked")
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "train" / "back").symlink_to(tmp_path / "data")
    put(tmp_path / "data" / "train" / "b.txt", "here")
    assert sorted(texts(tmp_path / "data")) == ["here", "linked"]


def test_links_that_lead_nowhere_are_told(tmp_path, caplog):
    (tmp_path / "train.txt").symlink_to(tmp_path / "not-fetched")
    assert "1 links that lead nowhere (train.txt)" in refused(tmp_path)
    put(tmp_path / "train-2.txt", "x")
    with caplog.at_level(logging.INFO):
        assert texts(tmp_path) == ["x"]
    assert "1 links that lead nowhere (train.txt)" in caplog.text


def test_what_git_has_not_fetched_is_no_text(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12\n"
    for name in ("train.txt", "train.jsonl", "train.csv"):
        path = put(tmp_path / name, pointer)
        assert "fetch it with git lfs pull" in refused(path)


def test_a_data_set_saved_as_arrow_is_told_how_to_save_it(tmp_path):
    for name in ("dataset_info.json", "state.json", "data-00000-of-00001.arrow"):
        put(tmp_path / "train" / name, "{}")
    message = refused(tmp_path)
    assert "3 of other forms" in message
    assert "to_parquet(FILE): data-00000-of-00001.arrow" in message


def test_a_file_beside_its_packed_copy_is_not_read_twice(tmp_path):
    put(tmp_path / "train.txt", "x")
    put(tmp_path / "train.txt.gz", gzip.compress(b"x"))
    assert "would be read twice; remove one of them" in refused(tmp_path)


# --- which split


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("wiki.train.raw", "train"), ("wiki.valid.tokens", "validation"),
        ("wiki.test.raw", "test"), ("training/a.txt", "train"), ("val/a.txt", "validation"),
        ("dev/a.txt", "validation"), ("validation/a.txt", "validation"), ("test/a.txt", "test"),
        ("eval/a.txt", "test"), ("evaluation/a.txt", "test"), ("Train/a.txt", "train"),
        ("corpus_train.txt", "train"), ("corpus-dev.jsonl", "validation"),
        ("data.test.en.txt", "test"), ("train2.txt", "train"), ("dev-v1.1.jsonl", "validation"),
        ("train-00000-of-00002.jsonl", "train"), ("my_train_set/a.txt", "train"),
        ("train/test_report.txt", "train"), ("test/train/a.txt", "train"),
        ("deep/val/x/y.jsonl.gz", "validation"), ("TRAIN.TXT", "train"),
        ("val_data/notes_on_testing.txt", "test"),
    ],
)  # fmt: skip
def test_names_of_splits(tmp_path, name, split):
    content = json.dumps({"text": "x"}) if ".json" in name else "x"
    put(tmp_path / name, gzip.compress(content.encode()) if name.endswith(".gz") else content)
    assert texts(tmp_path, split) == ["x"]
    for other in {*SPLITS} - {split}:
        assert f"no file of the {other} split (found {split})" in refused(tmp_path, other)


@pytest.mark.parametrize(
    "name", ["attest.txt", "trainer.txt", "constrain.txt", "validity.txt", "devices.txt"]
)
def test_names_that_only_look_so(tmp_path, name, caplog):
    put(tmp_path / name, "x\n" * 100)
    with caplog.at_level(logging.INFO):
        assert texts(tmp_path)
    assert "no file is named for a split" in caplog.text


def test_names_that_do_not_go_together_are_refused(tmp_path):
    put(tmp_path / "train.txt", "x")
    put(tmp_path / "notes.txt", "x")
    message = refused(tmp_path)
    assert "notes.txt is in no split while train.txt is named for train" in message
    (tmp_path / "notes.txt").unlink()
    both = put(tmp_path / "train_and_test.txt", "x")
    assert "named for train and for test" in refused(tmp_path)
    both.unlink()
    put(tmp_path / "test" / "a.txt", "x")
    assert texts(tmp_path, "test") == ["x"]
    put(tmp_path / "eval" / "a.txt", "x")
    assert "may be one split or two; name the one for tuning validation" in refused(tmp_path)


def test_a_text_alone_is_cut_where_a_line_ends(tmp_path, caplog):
    lines = [f"line {i} of the only text\n" for i in range(200)]
    path = put(tmp_path / "book.txt", "".join(lines))
    with caplog.at_level(logging.INFO):
        parts = {split: texts(path, split) for split in SPLITS}
    assert "its first 90 % are train, then 5 % validation, 5 % test" in caplog.text
    ((train,), (validation,), (test,)) = (parts[split] for split in SPLITS)
    assert train + validation + test == "".join(lines)
    assert [part.count("\n") for part in (train, validation, test)] == [181, 10, 9]
    assert all(part.endswith("\n") for part in (train, validation, test))
    assert texts(tmp_path, "test") == [test]  # its folder is the same text
    words = put(tmp_path / "other" / "words.txt", " ".join(f"w{i}" for i in range(300)))
    for split in SPLITS:
        (part,) = texts(words, split)
        assert part.split()[0] in words.read_text().split()
    assert "leave none for validation" in refused(put(tmp_path / "s.txt", "x"), "validation")


def test_one_file_that_is_named_for_a_split(tmp_path):
    path = put(tmp_path / "train.jsonl", '{"text": "x"}\n')
    put(tmp_path / "test.jsonl", '{"text": "y"}\n')
    assert texts(path) == ["x"]
    message = refused(path, "test")
    assert "named for train, and there is nothing for test" in message
    assert "give a folder" in message
    assert texts(tmp_path, "test") == ["y"]


# --- tables


ROWS = ["plain", "a, comma", 'a "quote"', "two\nlines", "crlf\r\nline", "ünï\u4e16", "y" * 200_000]


@pytest.mark.parametrize("form", ["csv", "tsv"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_tables_as_they_are_written(tmp_path, form, mark):
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter="\t" if form == "tsv" else ",")
    writer.writerows([["id", "text", "more"], *([i, row, "z"] for i, row in enumerate(ROWS))])
    put(tmp_path / f"train.{form}", mark + out.getvalue().encode())
    assert texts(tmp_path) == [row.replace("\r\n", "\n") for row in ROWS]
    names = [document.name for document in read(tmp_path)]
    assert names[:5] == [f"train.{form}:{line}" for line in (2, 3, 4, 5, 7)]


@pytest.mark.parametrize("between", [";", "\t", "|"])
def test_what_stands_between_the_cells_is_found_by_the_column(tmp_path, between):
    put(tmp_path / "train.csv", f'id{between}text\r\n1{between}"one, two"\r\n2{between}three\r\n')
    assert texts(tmp_path) == ["one, two", "three"]


def test_another_column_and_bad_rows_of_a_table(tmp_path, caplog):
    put(tmp_path / "train.csv", b"id,body\n1,good\n2\n\n3,\n4,caf\xe9\n5,last\n")
    assert texts(tmp_path, text_column="body") == ["good", "last"]
    assert "no column body: train.csv row 3" in caplog.text
    assert "empty text: train.csv row 5" in caplog.text
    assert "invalid UTF-8: train.csv row 6" in caplog.text
    message = refused(tmp_path)
    assert "has no column text; it has id, body; set dataset.text_column" in message
    put(tmp_path / "train.csv", "a very long first text without any header " * 9)
    assert len(refused(tmp_path)) < 300
    put(tmp_path / "train.csv", "")
    assert "no rows" in refused(tmp_path)


# --- JSON


OBJECTS = [{"text": "one", "id": 1}, {"text": "two\nlines", "id": {"deep": [1]}}]


@pytest.mark.parametrize("ending", ["json", "jsonl", "ndjson"])
@pytest.mark.parametrize(
    "content",
    [
        json.dumps(OBJECTS), json.dumps(OBJECTS, indent=2), json.dumps(["one", "two\nlines"]),
        json.dumps(["one", "two\nlines"], indent=4), "\n \ufeff".strip() + json.dumps(OBJECTS),
        "\n".join(map(json.dumps, OBJECTS)), "\r\n\r\n".join(map(json.dumps, OBJECTS)),
        "\n".join(json.dumps(each, indent=2) for each in OBJECTS),  # as jq prints them
        ",\n".join(json.dumps(each, indent=2) for each in OBJECTS),
        '"one"\n"two\\nlines"\n', "\n\n" + "\n".join(map(json.dumps, OBJECTS)),
    ],
)  # fmt: skip
def test_json_that_can_mean_one_thing_is_read(tmp_path, content, ending):
    put(tmp_path / f"train.{ending}", content)
    assert texts(tmp_path) == ["one", "two\nlines"]


def test_one_object_over_several_lines_is_one_row(tmp_path):
    put(tmp_path / "train.json", json.dumps({"text": "alone", "tags": ["a"]}, indent=2))
    assert texts(tmp_path) == ["alone"]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    ("content", "what", "made"),
    [
        ({"text": ["a", "b"]}, "the texts under 'text'", "'.text[] | {text: .}'"),
        ({"text": {"0": "a", "1": "b"}, "id": {"0": 1}}, "the texts under 'text'", ".text[]"),
        ({"data": [{"text": "a"}]}, "the rows under 'data'", "'.data[]'"),
        ({"version": 1, "data": [{"text": "a"}]}, "the rows under 'data'", "'.data[]'"),
        ({"train": [{"text": "a"}], "test": []}, "the rows under 'train'", "'.train[]'"),
        ({"rows": ["a", "b"]}, "the rows under 'rows'", "'.rows[]'"),
        ({"meta": {"by": "x"}, "rows": {"1": {"text": "a"}}}, "the rows under 'rows'", "'.rows[]'"),
    ],
)
def test_one_object_with_the_rows_inside_is_refused_with_the_layout(
    tmp_path, content, what, made, indent
):
    put(tmp_path / "train.json", json.dumps(content, indent=indent))
    message = refused(tmp_path)
    assert f"one object with {what}" in message
    assert '{"text": "…"} on each line, or [{"text": "…"}, …]' in message
    assert made in message
    assert "train.json > rows.jsonl" in message


def test_one_object_of_other_fields_is_a_row_without_the_column(tmp_path):
    put(tmp_path / "train.json", json.dumps({"body": "x", "tags": ["a", "b"]}, indent=1))
    assert "columns found: body, tags" in refused(tmp_path)


def test_a_damaged_first_line_is_one_bad_row(tmp_path, caplog):
    put(tmp_path / "train.jsonl", '{"text": "cut off\n{"text": "whole"}\n')
    assert texts(tmp_path) == ["whole"]
    assert "invalid JSON: train.jsonl row 1" in caplog.text
    put(tmp_path / "train.jsonl", '{\n "text": "cut o')
    assert "element 1" in refused(tmp_path)


def test_objects_over_several_lines_are_streamed(tmp_path, monkeypatch):
    monkeypatch.setattr("hylorada.data.json_rows._CHUNK", 50)
    rows = [{"text": f"{i} " + "y" * (700 if i == 7 else 20)} for i in range(300)]
    put(tmp_path / "train.json", "\n".join(json.dumps(row, indent=2) for row in rows))
    assert texts(tmp_path) == [row["text"] for row in rows]
    monkeypatch.setattr("hylorada.data.json_rows.LARGEST", 100)
    assert "element 8 is larger than" in refused(tmp_path)


# --- encodings and compression


TEXT = "first line\nümlaut \u4e16\u754c\nlast"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_encodings_that_say_what_they_are(tmp_path, encoding, newline):
    stored = TEXT.replace("\n", newline)
    put(tmp_path / "train.txt", stored.encode(encoding))
    (document,) = read(tmp_path)
    assert document.text == TEXT
    assert document.bytes == len(stored.encode())
    put(tmp_path / "val.jsonl", (json.dumps({"text": TEXT}) + newline).encode(encoding))
    if newline != "\r":
        assert texts(tmp_path, "validation") == [TEXT]
    put(tmp_path / "test.csv", f"id,text{newline}1,ü{newline}2,b{newline}".encode(encoding))
    assert texts(tmp_path, "test") == ["ü", "b"]


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"])
def test_both_orders_of_utf_16(tmp_path, mark):
    order = "utf-16-le" if mark == b"\xff\xfe" else "utf-16-be"
    long = TEXT * 20_000  # read in pieces, some of which end within a character
    put(tmp_path / "train.txt", mark + long.encode(order))
    assert texts(tmp_path) == [long]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("café".encode("latin-1"), "invalid UTF-8 at byte 3.*iconv -f WINDOWS-1252 -t UTF-8"),
        ("no mark".encode("utf-16-le"), "NUL characters.*iconv -f UTF-16LE -t UTF-8"),
        (b"\x7fELF\0\0\1", "NUL characters, as in a binary file"),
        ("cut".encode("utf-16")[:-1], "begins as UTF-16 and is not"),
        (b"", "empty text"),
        (b" \r\n\t", "empty text"),
    ],
)
def test_what_is_no_text_is_refused_with_what_to_do(tmp_path, content, words):
    put(tmp_path / "train.txt", content)
    message = refused(tmp_path)
    assert re.search(words, message), message
    assert "train.txt" in message


def packed(data, ending):
    if ending == ".zst":
        half = len(data) // 2  # two frames, as parallel compressors write
        return b"".join(
            pa.compress(part, codec="zstd", asbytes=True) for part in (data[:half], data[half:])
        )
    module = {".gz": gzip, ".bz2": bz2, ".xz": lzma}[ending]
    return module.compress(data)


@pytest.mark.parametrize("ending", files.COMPRESSIONS)
def test_compressed_files_hold_what_they_held(tmp_path, ending):
    contents = {
        "train.txt": TEXT.encode("utf-16"),
        "val.jsonl": "".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(3000)).encode(),
        "test.csv": b"text\none\ntwo\n",
    }
    for name, data in contents.items():
        put(tmp_path / "plain" / name, data)
        put(tmp_path / "packed" / f"{name}{ending}", packed(data, ending))
    put(tmp_path / "plain" / "train.json", json.dumps(OBJECTS, indent=1))
    put(
        tmp_path / "packed" / f"train.json{ending}",
        packed(json.dumps(OBJECTS, indent=1).encode(), ending),
    )
    for split in SPLITS:
        found = texts(tmp_path / "packed", split)
        assert found == texts(tmp_path / "plain", split)
        assert found
    for name in (f"train.txt{ending}", f"val.jsonl{ending}"):
        whole = (tmp_path / "packed" / name).read_bytes()
        for content in (whole[:-3], b"no such stream"):
            put(tmp_path / "packed" / name, content)
            message = refused(tmp_path / "packed", "train" if name[0] == "t" else "validation")
            assert f"{name} cannot be read" in message
            assert "replace it with a whole copy" in message


@pytest.mark.parametrize(
    "name", ["a.txt", "a.jsonl", "a.csv", "a.parquet", "a.txt.gz", "a.txt.zst"]
)
def test_a_file_that_may_not_be_read_is_called_that(tmp_path, name):
    put(tmp_path / name, "any content")
    no_permission(tmp_path / name)
    assert re.search(f"{name} cannot be read .*Permission denied.; make it", refused(tmp_path))


def test_a_folder_that_may_not_be_listed_is_called_that(tmp_path):
    put(tmp_path / "texts/train.txt", "any content")
    no_permission(tmp_path / "texts")
    message = refused(tmp_path)
    (tmp_path / "texts").chmod(0o700)
    assert message.endswith("(Permission denied); make it readable")


def test_wikitext_with_unk_is_not_the_raw_text(tmp_path):
    settings = {"name": "wikitext2", "kind": "wikitext", "hub_config": "wikitext-2-raw-v1"}
    put(tmp_path / "wiki.test.tokens", " = A = \n \n inside \n")
    dataset = DatasetConfig(path=str(tmp_path), **settings)
    with pytest.raises(DataError, match=r"wiki\.test\.tokens has <unk> for rare words"):
        list(read_documents(dataset, "test"))
    put(tmp_path / "wiki.test.raw", " = A = \n \n raw \n")
    (article,) = read_documents(dataset, "test")
    assert "raw" in article.text
    tokens = DatasetConfig(path=str(tmp_path / "wiki.test.tokens"), kind="wikitext")
    assert "inside" in next(iter(read_documents(tokens, "test"))).text
