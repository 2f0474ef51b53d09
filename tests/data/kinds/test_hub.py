"""`dataset=hub`: any text in the hub's layout, through the real clients and from folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.hub_jobs import ANSWERING, parquet, run_jobs
from helpers.hub_server import Hub, Repository

from hylorada.config import DatasetConfig, RunConfig
from hylorada.data.readers import read_documents
from hylorada.data.splits import split_of_text
from hylorada.errors import ConfigError, DataError
from hylorada.settings.run import check_settings

CARD = """---
configs:
- config_name: english
  data_files:
  - {split: train, path: some/first*.jsonl}
  - {split: dev, path: some/second.jsonl}
- config_name: other
  data_files: more/*.csv
---
"""
TEXTS = [f"This is the text number {number}." for number in range(80)]


def lines(*texts: str, column: str = "text") -> bytes:
    return "".join(json.dumps({column: text, "id": 1}) + "\n" for text in texts).encode()


CARDED = {
    "README.md": CARD.encode(),
    "some/first-1.jsonl": lines("one", "two"),
    "some/first-2.jsonl": lines("three"),
    "some/second.jsonl": lines("four"),
    "more/train.csv": b"id,text\n1,five\n2,six\n",
    "code.py": b"raise SystemExit('run')",
}
NAMED = {
    "data/train-00000-of-00002.parquet": parquet({"story": ["a", "b"], "n": [1, 2]}),
    "data/train-00001-of-00002.parquet": parquet({"story": ["c"], "n": [3]}),
    "data/test-00000-of-00001.parquet": parquet({"story": ["d"], "n": [4]}),
}
ALONE = {"train.jsonl": lines(*TEXTS)}
REPOSITORIES = {"a/carded": CARDED, "a/named": NAMED, "a/alone": ALONE}


def wanted(hub_id: str, split: str, **more: str) -> dict:
    return {"dataset": {"kind": "hub", "hub_id": hub_id} | more, "split": split}


JOBS = {
    "card": wanted("a/carded", "train", hub_config="english"),
    "card dev": wanted("a/carded", "validation", hub_config="english"),
    "card test": wanted("a/carded", "test", hub_config="english"),
    "table": wanted("a/carded", "train", hub_config="other"),
    "no config": wanted("a/carded", "train"),
    "named": wanted("a/named", "train", text_column="story"),
    "named test": wanted("a/named", "test", text_column="story"),
    "no validation": wanted("a/named", "validation", text_column="story"),
    "no column": wanted("a/named", "test"),
    "no column in lines": wanted("a/alone", "train", text_column="body"),
    "no text": wanted("a/named", "test", text_column="n"),
    **{split: wanted("a/alone", split) for split in ("train", "validation", "test")},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hf")


@pytest.fixture(scope="module")
def online(home: Path) -> dict:
    repositories = [Repository("datasets", name, files) for name, files in REPOSITORIES.items()]
    with Hub(repositories) as hub:
        return run_jobs(JOBS, home, hub.url, **ANSWERING)


def test_splits_are_those_of_the_card_or_of_the_names(online):
    assert online["card"]["texts"] == ["one", "two", "three"]
    assert online["card"]["names"] == [
        "some/first-1.jsonl:1", "some/first-1.jsonl:2", "some/first-2.jsonl:1",
    ]  # fmt: skip
    assert online["card dev"]["texts"] == ["four"]
    assert set(online["table"]["texts"]) <= {"five", "six"}
    assert online["named"]["texts"] == ["a", "b", "c"]
    assert online["named test"]["texts"] == ["d"]


def test_a_set_with_a_train_split_alone_is_split_by_its_texts(online):
    for split in ("train", "validation", "test"):
        assert online[split]["texts"] == [text for text in TEXTS if split_of_text(text) == split]
        assert online[split]["texts"]


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ("no config", "'english', 'other'"),
        ("card test", "dataset a/carded: no test split; it has train, dev; measure on another"),
        ("no validation", "no validation split; it has train, test; set train.eval_every=0"),
        ("no column", "has no column text; it has story; set dataset.text_column"),
        ("no column in lines", "columns found: id, text (of text: text)"),
        ("no text", "n is int, not text: test-00000-of-00001.parquet row 1)"),
    ],
)
def test_what_is_not_there_is_one_line_that_names_what_is(online, job, words):
    assert online[job]["error"] == "DataError"
    assert "\n" not in online[job]["message"]
    assert words in online[job]["message"]


def test_the_cache_serves_without_a_network_what_it_holds_whole(online, home):
    again = run_jobs(JOBS, home, "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    whole = [job for job in JOBS if "texts" in online[job]]
    assert {job: again[job].get("texts") for job in whole} == {
        job: online[job]["texts"] for job in whole
    }
    assert again["no validation"]["message"] == online["no validation"]["message"]


def write(folder: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return str(folder)


@pytest.mark.parametrize("job", JOBS)
def test_a_folder_in_the_same_layout_reads_alike(online, tmp_path, job):
    asked = JOBS[job]["dataset"]
    path = write(tmp_path, REPOSITORIES[asked["hub_id"]])
    dataset = DatasetConfig(**asked | {"hub_id": "", "path": path})
    if "texts" in online[job]:
        found = list(read_documents(dataset, JOBS[job]["split"]))
        assert [document.text for document in found] == online[job]["texts"]
        assert [document.name for document in found] == online[job]["names"]
    else:
        with pytest.raises(DataError) as caught:
            list(read_documents(dataset, JOBS[job]["split"]))
        assert "\n" not in str(caught.value)


def test_a_copy_of_a_published_set_gives_its_rows(real_data):
    folder = real_data / "wikitext" / "wikitext-2-raw-v1"
    dataset = DatasetConfig(kind="hub", path=str(folder / "validation.parquet"))
    assert sum(len(document.text.split()) for document in read_documents(dataset, "validation"))


def test_code_is_never_run_and_a_card_leads_nowhere_else(tmp_path):
    script = {f"{tmp_path.name}.py": b"raise SystemExit('run')", "train.jsonl": lines("one")}
    outside = b"---\nconfigs:\n- {config_name: a, data_files: ../secret.jsonl}\n---\n"
    (tmp_path.parent / "secret.jsonl").write_bytes(lines("secret"))
    for files in (script, {"README.md": outside, "train.jsonl": lines("one")}):
        folder = tmp_path / str(len(files["train.jsonl"]) + len(files)) / tmp_path.name
        with pytest.raises(DataError):
            list(read_documents(DatasetConfig(kind="hub", path=write(folder, files)), "train"))


def test_settings_that_contradict_each_other_are_refused(tmp_path):
    for words, dataset in (
        ("needs dataset.hub_id or dataset.path", DatasetConfig(kind="hub")),
        ("hub_id=a/b has no effect", DatasetConfig(kind="hub", hub_id="a/b", path=str(tmp_path))),
    ):
        with pytest.raises(ConfigError, match=words):
            check_settings(RunConfig(dataset=dataset))
