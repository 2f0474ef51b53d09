from __future__ import annotations

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hylorada.config import DatasetConfig, RunConfig
from hylorada.data.kinds.wikitext import count_words
from hylorada.data.readers import describe, read_documents
from hylorada.data.token_corpus import load_token_corpus
from hylorada.errors import ConfigError, DataError
from hylorada.settings.run import check_settings

WIKITEXT2 = {"name": "wikitext2", "kind": "wikitext", "hub_config": "wikitext-2-raw-v1"}
PG19 = {"name": "pg19", "kind": "pg19"}


def read(split: str = "train", **settings):
    return list(read_documents(DatasetConfig(**settings), split))


def write_rows(path, rows, column="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: rows}), path)


# --- WikiText


@pytest.mark.parametrize(("split", "words"), [("test", 245_569), ("validation", 217_646)])
def test_wikitext2_has_its_published_word_count(real_data, split, words):
    """And 60 articles, each with a title, that join to the official file byte for byte."""
    documents = read(split, path=str(real_data), **WIKITEXT2)
    assert sum(d.words for d in documents) == words
    assert len(documents) == 60
    assert all(d.text.lstrip(" \n").startswith(f"= {d.name} = \n") for d in documents)
    folder = real_data / "wikitext" / "wikitext-2-raw-v1"
    rows = pq.read_table(folder / f"{split}.parquet")["text"].to_pylist()
    assert "".join(d.text for d in documents) == "".join(row or " \n" for row in rows)
    if split == "test":
        assert sum(len(d.text.encode()) for d in documents) == 1_290_590  # wiki.test.raw


def test_paragraphs_are_the_long_lines_of_the_rows(real_data, tmp_path, tokenizer):
    rows = pq.read_table(
        real_data / "wikitext" / "wikitext-2-raw-v1" / "validation.parquet"
    )["text"].to_pylist()  # fmt: skip
    expected = [row.strip() for row in rows if len(row.strip()) > 100]
    dataset = DatasetConfig(path=str(real_data), cache_dir=str(tmp_path), **WIKITEXT2)
    found = list(read_documents(dataset, "validation", "paragraphs"))
    assert [d.text for d in found] == expected
    assert len({d.name for d in found}) == len(found)
    corpus = load_token_corpus(dataset, "validation", tokenizer, unit="paragraphs")
    assert len(corpus.documents) == len(expected)
    assert corpus.label == f"wikitext2 validation, {len(expected)} paragraphs"
    whole = load_token_corpus(dataset, "validation", tokenizer)
    assert whole.folder != corpus.folder
    assert len(whole.documents) == 60


def test_only_wikitext_has_paragraphs(tmp_path):
    (tmp_path / "test.txt").write_text("x" * 200)
    with pytest.raises(ConfigError, match="no 'paragraphs' of kind 'local', which has documents"):
        list(read_documents(DatasetConfig(kind="local", path=str(tmp_path)), "test", "paragraphs"))


def test_wikitext_words_reach_the_token_corpus(real_data, tmp_path, tokenizer):
    dataset = DatasetConfig(
        path=str(real_data), cache_dir=str(tmp_path), max_documents=3, **WIKITEXT2
    )
    corpus = load_token_corpus(dataset, "test", tokenizer)
    assert sum(d.words for d in corpus.documents) == sum(
        count_words(d.text) for d in read_documents(dataset, "test")
    )
    assert corpus.label == "wikitext2 test, the first 3 documents"


def test_a_part_of_train_is_not_called_train(real_data):
    with pytest.raises(DataError, match="only a part of the train split"):
        read(path=str(real_data), **WIKITEXT2)
    part = read(path=str(real_data), **WIKITEXT2 | {"name": "wikitext2-partial"})
    assert len(part) == 51


def test_wikitext_titles_stand_between_empty_lines(tmp_path):
    rows = [
        "", " = A = \n", "", " inside \n", " = 1 henry and C = \n", " 1 farad \n", "",
        " = = Part = = \n", "", " = A = \n", "", " again \n", " = Games ; W = \n", "",
    ]  # fmt: skip
    write_rows(tmp_path / "train.parquet", rows)
    documents = read(path=str(tmp_path), kind="wikitext")
    assert [d.name for d in documents] == ["A", "A (2)"]
    assert "".join(d.text for d in documents) == "".join(r or " \n" for r in rows)


def test_wikitext_reads_the_official_text_files_too(tmp_path):
    rows = ["", " = A = \n", "", " one two \n", "", " = B = \n", "", " three \n"]
    write_rows(tmp_path / "rows" / "validation.parquet", rows)
    (tmp_path / "wiki.valid.raw").write_text("".join(r or " \n" for r in rows))
    (tmp_path / "json").mkdir()
    lines = "".join(json.dumps({"text": r}) + "\n" for r in rows)
    (tmp_path / "json" / "validation.jsonl").write_text(lines)
    expected = read("validation", path=str(tmp_path / "rows"), kind="wikitext")
    assert [d.name for d in expected] == ["A", "B"]
    for folder in (tmp_path, tmp_path / "json"):
        assert read("validation", path=str(folder), kind="wikitext") == expected


# --- PG-19


def test_pg19_books_agree_with_the_files(real_data):
    documents = read("validation", path=str(real_data), **PG19)
    file = real_data / "pg19" / "validation-00000-of-00001.parquet"
    rows = pq.read_table(file).to_pylist()
    assert len(documents) == len(rows) == 26
    for document, row in zip(documents, rows, strict=True):
        assert document.bytes == len(row["text"].encode())
        assert len(document.text.split()) == len(row["text"].split())
        assert "\r" not in document.text
        assert document.text.replace("\n", "\r\n") == row["text"]
        assert row["short_book_title"].split()[0] in document.name
    assert len({d.name for d in documents}) == 26
    assert describe(DatasetConfig(**PG19), "validation", 26) == "pg19 validation, 26 of 50 books"


@pytest.mark.parametrize(("books", "words"), [(100, 6_966_499), (99, None)])
def test_the_published_words_belong_to_the_whole_test_split(tmp_path, tokenizer, books, words):
    columns = {
        "short_book_title": [f"Book {i}" for i in range(books)],
        "publication_date": [1900] * books,
        "url": [f"http://www.gutenberg.org/ebooks/{i}" for i in range(books)],
        "text": [f"a tale of {i} things" for i in range(books)],
    }
    pq.write_table(pa.table(columns), tmp_path / "test-00000-of-00001.parquet")
    dataset = DatasetConfig(path=str(tmp_path), cache_dir=str(tmp_path / "cache"), **PG19)
    for _ in range(2):  # made, then from the cache
        corpus = load_token_corpus(dataset, "test", tokenizer)
        assert corpus.official_words == words
        assert sum(d.words for d in corpus.documents) == 5 * books


def test_pg19_train_is_all_its_shards(tmp_path):
    for i in range(3):
        table = pa.table({"short_book_title": [f"B{i}"], "url": ["u/7"], "text": ["some text"]})
        pq.write_table(table, tmp_path / f"train-0000{i}-of-00003.parquet")
    assert [d.name for d in read(path=str(tmp_path), **PG19)] == ["B0 (7)", "B1 (7)", "B2 (7)"]
    (tmp_path / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(DataError, match="2 of 3 files of the train split"):
        read(path=str(tmp_path), **PG19)
    with pytest.raises(DataError, match=r"no file of the test split \(found train-00000"):
        read("test", path=str(tmp_path), **PG19)


# --- text of one's own


def test_local_text_files_are_documents(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "b.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\r\n")
    (tmp_path / "train" / "a.txt").write_text("x" * 10_000_000)
    (tmp_path / "test-1.txt").write_text("held out")
    a, b = read(path=str(tmp_path), kind="local")
    assert (a.name, b.name) == ("train/a.txt", "train/b.txt")
    assert len(a.text) == 10_000_000
    assert b.text == "one\ntwo\nthree\n"  # no BOM, plain newlines
    assert b.bytes == 16  # as stored, without the BOM
    assert [d.text for d in read("test", path=str(tmp_path), kind="local")] == ["held out"]


def test_bad_rows_are_left_out_and_listed(tmp_path, caplog):
    lines = [
        b'\xef\xbb\xbf{"text": "first"}\r\n',
        b"\r\n",
        b"{broken\n",
        b'{"text": ""}\n',
        b'{"text": 7}\n',
        b'{"other": "x"}\n',
        b'{"text": "caf\xe9"}\n',
        b'{"text": "\\ud800"}\n',
        b"[1, 2]\n",
        b'{"text": null}\n',
        b'{"text": "l\\r\\nast"}',
    ]
    (tmp_path / "train.jsonl").write_bytes(b"".join(lines))
    documents = read(path=str(tmp_path), kind="local")
    assert [(d.name, d.text) for d in documents] == [
        ("train.jsonl:1", "first"), ("train.jsonl:11", "l\nast"),
    ]  # fmt: skip
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    for part in (
        "8 of 10 rows left out", "invalid JSON: train.jsonl row 3", "empty text: train.jsonl row 4",
        "text is int, not text: train.jsonl row 5", "no column text: train.jsonl row 6",
        "invalid UTF-8: train.jsonl row 7, 8", "list, not an object: train.jsonl row 9",
        "text is NoneType, not text: train.jsonl row 10",
    ):  # fmt: skip
        assert part in warning, part


def test_many_bad_rows_make_a_short_line(tmp_path, caplog):
    rows = ["good"] + [""] * 1000
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": r}) + "\n" for r in rows))
    read(path=str(tmp_path), kind="local")
    assert "row 2, 3, 4, 5, 6, 7, 8, 9 and 992 more" in caplog.text
    assert len(caplog.text) < 400
    caplog.clear()
    read(path=str(tmp_path), kind="local")  # tokenising reads twice
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train.jsonl", b'{"body": "x", "id": 1}\n', "columns found: body, id"),
        ("train.jsonl", b'{"text": ""}\nnonsense\n', "2 rows, none usable"),
        ("train.jsonl", b"", "no rows"),
        ("train.json", b'[{"text": "a"}, {"te', "element 2.*replace it"),
        ("train.txt", b"\xff\xfe\x00", "begins as UTF-16 and is not"),
        ("train.txt", b"\xff\xff", "invalid UTF-8 at byte 0.*iconv -f"),
        ("train.jsonl.gz", b"\x1f\x8b\x08\x00damaged", "train.jsonl.gz cannot be read"),
        ("train.parquet", b"PAR1 not really PAR1", "train.parquet cannot be read"),
        ("train.csv", b"text\n", "no rows"),
        ("odd.txt", b"", r"no rows|none usable"),
    ],
)
def test_nothing_usable_is_one_line(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read(path=str(tmp_path), kind="local")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_parquet_of_other_columns_lists_them(tmp_path):
    write_rows(tmp_path / "train.parquet", ["x"], column="content")
    with pytest.raises(DataError, match=r"no column text; it has content; set dataset"):
        read(path=str(tmp_path), kind="local")
    assert read(path=str(tmp_path), kind="local", text_column="content")[0].text == "x"
    write_rows(tmp_path / "train.parquet", [], column="text")
    with pytest.raises(DataError, match="no rows"):
        read(path=str(tmp_path), kind="local")


def test_unnamed_files_are_split_by_the_hash_of_the_text(tmp_path):
    texts = [f"text number {i % 150}" for i in range(300)]  # each twice
    (tmp_path / "mine.json").write_text(json.dumps([{"text": t} for t in texts], indent=1))
    split = {s: read(s, path=str(tmp_path / "mine.json"), kind="local")
             for s in ("train", "validation", "test")}  # fmt: skip
    seen = {s: {d.text for d in documents} for s, documents in split.items()}
    assert sum(len(d) for d in split.values()) == 300
    assert sum(len(s) for s in seen.values()) == 150  # no text on two sides
    assert 0 < len(seen["test"]) < 20 < 100 < len(seen["train"])
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.jsonl").write_text('{"text": "a single document"}')
    with pytest.raises(DataError, match=r"its 1 document,.*leave none for"):
        read("test", path=str(tmp_path / "one"), kind="local")


def test_files_named_for_splits_and_others_do_not_mix(tmp_path):
    (tmp_path / "train.txt").write_text("a")
    (tmp_path / "notes.txt").write_text("b")
    with pytest.raises(DataError, match=r"notes\.txt is in no split"):
        read(path=str(tmp_path), kind="local")
    (tmp_path / "notes.txt").unlink()
    with pytest.raises(DataError, match=r"no file of the test split \(found train"):
        read("test", path=str(tmp_path), kind="local")


def test_a_large_json_array_is_read_in_pieces(tmp_path):
    rows = [{"text": f"{i} " + "y" * (3_000_000 if i == 7 else 20)} for i in range(30_000)]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    documents = read(path=str(tmp_path), kind="local")
    assert [d.text for d in documents] == [r["text"] for r in rows]


# --- any kind


@pytest.mark.parametrize("kind", ["wikitext", "pg19", "longbench", "local"])
def test_missing_path_is_one_line(kind):
    with pytest.raises(DataError, match="/nowhere/at/all does not exist"):
        read("test", kind=kind, path="/nowhere/at/all")


def test_unknown_kind_split_and_needless_path_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="unknown kind 'books'"):
        read(kind="books")
    with pytest.raises(ConfigError, match="unknown split 'dev'"):
        read("dev")
    with pytest.raises(ConfigError, match="takes no path"):
        read(path=str(tmp_path))


# --- kinds


def test_every_kind_says_what_it_is_without_torch():
    code = (
        "import sys\n"
        "from hylorada.config import DatasetConfig\n"
        "from hylorada.data.kind import kind_of\n"
        "from hylorada.extensions import DATA_KINDS\n"
        "for name in DATA_KINDS.names():\n"
        "    kind = kind_of(DatasetConfig(kind=name))\n"
        "    print(name, *kind.splits, *kind.units)\n"
        "assert not {'torch', 'transformers', 'datasets', 'pyarrow', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert said["longbench"] == "test"
    assert said["wikitext"] == "train validation test paragraphs"
    assert {"stdlib", "pg19", "local"} <= set(said)


def test_an_unknown_kind_is_refused_with_those_that_there_are():
    with pytest.raises(ConfigError, match=r"unknown kind 'books'; use one of .*longbench"):
        read(kind="books")
    with pytest.raises(ConfigError, match="did you mean wikitext"):
        check_settings(RunConfig(dataset=DatasetConfig(kind="wikitxt")))
