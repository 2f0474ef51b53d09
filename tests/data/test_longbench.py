from __future__ import annotations

import json
import stat
import zipfile

import pytest

from hylorada.config import DatasetConfig
from hylorada.data.kinds import longbench
from hylorada.data.kinds.longbench import TASKS, read_tasks
from hylorada.data.readers import read_documents
from hylorada.errors import ConfigError, DataError

ROW = {
    "input": "Who?", "context": "A long text.", "answers": ["I"], "length": 3, "dataset": "qasper",
    "language": "en", "all_classes": None, "_id": "0a",
}  # fmt: skip


def line(**changes) -> str:
    return json.dumps(ROW | changes) + "\n"


def make_zip(path, members: dict[str, str]):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


def config(path, **settings) -> DatasetConfig:
    return DatasetConfig(name="longbench", kind="longbench", path=str(path), **settings)


def test_there_are_21_tasks_and_13_even_ones():
    assert len(TASKS) == len(set(TASKS)) == 34
    assert sum(task.endswith("_e") for task in TASKS) == 13


def test_real_archive_gives_200_rows_a_task(real_data):
    rows = list(read_tasks(config(real_data)))
    tasks = [r.task for r in rows]
    assert {t: tasks.count(t) for t in tasks} == {
        "multi_news": 200, "multifieldqa_zh": 200, "passage_retrieval_zh": 200,
    }  # fmt: skip
    archive = zipfile.ZipFile(real_data / "longbench" / "data.zip")
    first = json.loads(archive.open("data/multifieldqa_zh.jsonl").readline())
    row = next(r for r in rows if r.task == "multifieldqa_zh")
    assert (row.id, row.input, row.context, list(row.answers), row.length, row.language) == tuple(
        first[k] for k in ("_id", "input", "context", "answers", "length", "language")
    )
    documents = list(read_documents(config(real_data, tasks=["passage_retrieval_zh"]), "test"))
    assert len(documents) == 200
    assert documents[0].text == next(r for r in rows if r.task == "passage_retrieval_zh").context


def test_a_folder_of_task_files_reads_as_the_archive(tmp_path):
    (tmp_path / "data").mkdir()
    members = {"qasper": line() + line(_id="1"), "trec_e": line(all_classes=["a", "b"])}
    for task, text in members.items():
        (tmp_path / "data" / f"{task}.jsonl").write_text(text)
    archive = make_zip(
        tmp_path / "other.zip",
        {"data/": "", **{f"data/{t}.jsonl": x for t, x in members.items()},
         "__MACOSX/data/._qasper.jsonl": "x", "data/.DS_Store": "x"},
    )  # fmt: skip
    rows = list(read_tasks(config(tmp_path)))
    assert rows == list(read_tasks(config(archive)))
    assert [(r.task, r.id) for r in rows] == [("qasper", "0a"), ("qasper", "1"), ("trec_e", "0a")]
    assert rows[2].all_classes == ("a", "b")
    assert [r.task for r in read_tasks(config(archive), ["trec_e"])] == ["trec_e"]


def test_tasks_that_are_not_there_are_named(tmp_path):
    archive = make_zip(tmp_path / "data.zip", {"data/qasper.jsonl": line()})
    with pytest.raises(ConfigError, match="LongBench has no qaspr; it has qasper"):
        list(read_tasks(config(archive, tasks=["qaspr"])))
    with pytest.raises(DataError, match="no trec in it; it has qasper"):
        list(read_tasks(config(archive, tasks=["trec"])))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_it_is_a_test_set(tmp_path, split):
    archive = make_zip(tmp_path / "data.zip", {"data/qasper.jsonl": line()})
    with pytest.raises(DataError, match=f"has no {split} split"):
        list(read_documents(config(archive), split))


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        ("../evil.jsonl", "leaves the archive"),
        ("data/../../evil.jsonl", "leaves the archive"),
        ("/etc/evil.jsonl", "leaves the archive"),
        ("data\\..\\evil.jsonl", "leaves the archive"),
        ("C:/evil.jsonl", "leaves the archive"),
        ("data/unknown_task.jsonl", "not one of LongBench's files"),
        ("data/setup.py", "not one of LongBench's files"),
        ("qasper.jsonl", "not one of LongBench's files"),
    ],
)
def test_hostile_and_foreign_members_are_refused(tmp_path, member, reason):
    archive = make_zip(tmp_path / "data.zip", {"data/qasper.jsonl": line(), member: line()})
    with pytest.raises(DataError, match=f"is refused.*{reason}; nothing was read") as caught:
        list(read_tasks(config(archive)))
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.zip"]  # nothing was unpacked


def test_link_duplicate_and_bomb_are_refused(tmp_path):
    link = zipfile.ZipInfo("data/qasper.jsonl")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="a link"):
        list(read_tasks(config(tmp_path / "link.zip")))
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("data/qasper.jsonl", line())
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("data/qasper.jsonl", line())
    with pytest.raises(DataError, match="there twice"):
        list(read_tasks(config(tmp_path / "twice.zip")))
    make_zip(tmp_path / "bomb.zip", {"data/qasper.jsonl": "0" * 30_000_000})
    with pytest.raises(DataError, match=r"29 MiB unpacked, [0-9]+ times packed"):
        list(read_tasks(config(tmp_path / "bomb.zip")))


def test_a_size_that_lies_gives_no_more_than_it_says(tmp_path):
    """The directory promises few bytes, the stream holds many: at most the promise is read."""
    path = make_zip(tmp_path / "data.zip", {"data/qasper.jsonl": line() + "0" * 20_000})
    data = bytearray(path.read_bytes())
    central = data.rindex(b"PK\x01\x02")
    data[central + 24 : central + 28] = (10).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"data\.zip"):
        list(read_tasks(config(path)))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "not a zip"])
def test_damaged_archive_is_one_line(tmp_path, damage):
    path = make_zip(tmp_path / "data.zip", {"data/qasper.jsonl": line() * 50})
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        data = data[:-40]
    elif damage == "flipped":
        data[60] ^= 0xFF
    else:
        data = bytearray(b"<html>busy</html>")
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"data\.zip cannot be read") as caught:
        list(read_tasks(config(path)))
    assert "\n" not in str(caught.value)


CENTRAL = b"PK\x01\x02"  # begins a member's entry in the directory at the archive's end


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (6, 99, "zip file version 9.9"),  # zipfile raises NotImplementedError
        (8, 0x20, "compressed patched data"),  # and here, when the member is opened
        (8, 0x01, "encrypted"),
        (10, 99, r"compressed in another way \(type 99\)"),
        (10, zipfile.ZIP_LZMA, r"compressed in another way \(type 14\)"),
        (46, 0, "without a name"),
    ],
)
def test_what_zipfile_cannot_read_is_one_line(tmp_path, offset, value, reason):
    path = make_zip(tmp_path / "data.zip", {"data/qasper.jsonl": line()})
    data = bytearray(path.read_bytes())
    data[data.rindex(CENTRAL) + offset] = value
    path.write_bytes(data)
    with pytest.raises(DataError, match=reason) as caught:
        list(read_tasks(config(path)))
    assert "\n" not in str(caught.value)


def test_a_member_whose_name_is_no_text_is_one_line(tmp_path):
    path = make_zip(tmp_path / "data.zip", {"data/qasper.jsonl": line(), "__MACOSX/é": "x"})
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xff"))
    with pytest.raises(DataError, match=r"data\.zip cannot be read.*utf-8"):
        list(read_tasks(config(path)))


def test_an_error_of_our_own_is_not_taken_for_damage(tmp_path, monkeypatch):
    def bug(*_):
        raise ValueError("a bug")

    monkeypatch.setattr(longbench, "_question", bug)
    path = make_zip(tmp_path / "data.zip", {"data/qasper.jsonl": line()})
    with pytest.raises(ValueError, match=r"^a bug$"):
        list(read_tasks(config(path)))


def test_bad_rows_are_left_out_and_listed(tmp_path, caplog):
    text = line() + line(answers="I") + "x\n" + line(context="") + line(length="3") + line(_id="z")
    archive = make_zip(tmp_path / "data.zip", {"data/qasper.jsonl": text})
    assert [r.id for r in read_tasks(config(archive))] == ["0a", "z"]
    for part in ("4 of 6 rows left out", "answers missing or of the wrong type: qasper.jsonl row 2",
                 "invalid JSON: qasper.jsonl row 3", "empty text: qasper.jsonl row 4"):  # fmt: skip
        assert part in caplog.text
    make_zip(archive, {"data/qasper.jsonl": '{"question": "?"}\n'})
    with pytest.raises(DataError, match=r"none usable.*columns found: question"):
        list(read_tasks(config(archive)))


def test_v2_is_read_from_its_one_file(tmp_path):
    row = {
        "_id": "66f", "domain": "QA", "sub_domain": "law", "difficulty": "hard", "length": "short",
        "question": "Which?", "choice_A": "a", "choice_B": "b", "choice_C": "c", "choice_D": "d",
        "answer": "B", "context": "Long é text.",
    }  # fmt: skip
    rows = [row, row | {"_id": "670", "answer": "E"}, row | {"_id": "671"}]
    with (tmp_path / "data.json").open("w", encoding="utf-8") as file:
        json.dump(rows, file, ensure_ascii=False, indent=2)
    documents = list(read_documents(config(tmp_path), "test"))
    assert [(d.name, d.text) for d in documents] == [
        ("longbench-v2/66f", "Long é text."), ("longbench-v2/671", "Long é text."),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="has no tasks"):
        list(read_documents(config(tmp_path, tasks=["qasper"]), "test"))
