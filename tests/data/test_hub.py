"""The hub's own clients against a server on this machine, with and without faults."""

from __future__ import annotations

import io
import json
import re
import shutil
import socket
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers.byte_tokenizer import make_byte_tokenizer
from helpers.families import make_model
from helpers.hub_jobs import ANSWERING, parquet, run_jobs
from helpers.hub_server import Hub, Repository
from helpers.marks import slow
from helpers.mounts import need_mounts

from hylorada.process.device import cpu_has_bf16

WIKITEXT_README = """---
configs:
- config_name: wikitext-103-raw-v1
  data_files:
  - {split: train, path: wikitext-103-raw-v1/train-*}
  - {split: test, path: wikitext-103-raw-v1/test-*}
- config_name: wikitext-2-raw-v1
  data_files:
  - {split: train, path: wikitext-2-raw-v1/train-*}
  - {split: validation, path: wikitext-2-raw-v1/validation-*}
  - {split: test, path: wikitext-2-raw-v1/test-*}
---
# WikiText
"""


def article(title: str) -> list[str]:
    return [
        "",
        f" = {title} = \n",
        "",
        f" Text about {title} . \n",
        " = = Part = = \n",
        " More . \n",
    ]


def wikitext_files() -> dict[str, bytes]:
    two, more = "wikitext-2-raw-v1", "wikitext-103-raw-v1"
    return {
        "README.md": WIKITEXT_README.encode(),
        f"{two}/train-00000-of-00002.parquet": parquet({"text": article("A") + article("B")}),
        f"{two}/train-00001-of-00002.parquet": parquet({"text": article("C")}),
        f"{two}/validation-00000-of-00001.parquet": parquet({"text": article("V")}),
        f"{two}/test-00000-of-00001.parquet": parquet({"text": article("T")}),
        f"{more}/train-00000-of-00001.parquet": parquet({"text": article("Long")}),
        f"{more}/test-00000-of-00001.parquet": parquet({"text": article("Long T")}),
    }


def pg19_files() -> dict[str, bytes]:
    def books(*names: str) -> bytes:
        return parquet(
            {
                "short_book_title": list(names),
                "publication_date": [1900] * len(names),
                "url": [f"http://www.gutenberg.org/ebooks/{i}" for i, _ in enumerate(names)],
                "text": [f"The book {name}.\n" * 3 for name in names],
            }
        )

    return {  # no configurations in the card: found by the names of the files
        "README.md": b"---\nlicense: apache-2.0\n---\n# PG-19\n",
        "data/train-00000-of-00001-0123456789abcdef.parquet": books("One", "Two"),
        "data/validation-00000-of-00001-0f92e2337f79aeac.parquet": books("Three"),
        "data/test-00000-of-00001-29a571947c0b5ccc.parquet": books("Four"),
    }


def longbench_zip() -> bytes:
    row = {
        "input": "Who?", "context": "A long text.", "answers": ["I"], "length": 3,
        "dataset": "qasper", "language": "en", "all_classes": None, "_id": "0a",
    }  # fmt: skip
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data/qasper.jsonl", json.dumps(row) + "\n")
        archive.writestr("data/qasper_e.jsonl", json.dumps(row | {"_id": "0e"}) + "\n")
    return buffer.getvalue()


def model_files(folder: Path, **options) -> dict[str, bytes]:
    model = make_model("gpt2").to(options.pop("dtype", torch.float32))
    model.save_pretrained(folder, **options)
    make_byte_tokenizer().save_pretrained(folder)
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def without_a_tensor(files: dict[str, bytes]) -> dict[str, bytes]:
    tensors = safetensors.torch.load(files["model.safetensors"])
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    return {**files, "model.safetensors": safetensors.torch.save(tensors, {"format": "pt"})}


FAULTS = ("missing", "gated", "503", "429", "truncated", "short", "garbage", "garbage-once")
DEADLINE = 25.0  # seconds, for asking what a repository holds
SLOW_FAULTS = ("files-503", "hang", "stall")  # the clients wait and try again


def wikitext(hub_id: str, **more) -> dict:
    return {"name": "wikitext2", "kind": "wikitext", "hub_id": hub_id,
            "hub_config": "wikitext-2-raw-v1"} | more  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hf")


@pytest.fixture(scope="module")
def repositories(tmp_path_factory) -> dict[str, Repository]:
    gpt2 = model_files(tmp_path_factory.mktemp("model"))
    owned = [
        Repository("datasets", "Salesforce/wikitext", wikitext_files()),
        Repository("datasets", "emozilla/pg19", pg19_files()),
        Repository("datasets", "zai-org/LongBench", {"data.zip": longbench_zip()}),
        Repository("datasets", "deepmind/pg19", {"README.md": b"# PG-19", "pg19.py": b"raise"}),
        Repository("models", "tiny/gpt2", gpt2),
        Repository(
            "models",
            "tiny/shards",
            model_files(
                tmp_path_factory.mktemp("shards"), dtype=torch.bfloat16, max_shard_size="20KB"
            ),
        ),
        Repository(
            "models", "tiny/half", without_a_tensor(model_files(tmp_path_factory.mktemp("half")))
        ),
        *(
            Repository("datasets", f"fault/{f}", wikitext_files(), f)
            for f in (*FAULTS, *SLOW_FAULTS)
        ),
        Repository("datasets", "fault/bad-zip", {"data.zip": longbench_zip()[:-30]}),
        *(
            Repository("models", f"fault/model-{fault}", gpt2, fault)
            for fault in ("garbage", "garbage-once", "stall", "all-garbage")
        ),
        Repository("models", "fault/model-503", {"config.json": b"{}"}, "503"),
        Repository("models", "fault/model-gated", {"config.json": b"{}"}, "gated"),
    ]
    return {r.name: r for r in owned}


@pytest.fixture(scope="module")
def online(home, repositories) -> dict:
    """What became of every job against the server, in one process."""
    pinned = repositories["Salesforce/wikitext"].commit
    pg19 = {"name": "pg19", "kind": "pg19", "hub_id": "emozilla/pg19"}
    longbench = {"name": "longbench", "kind": "longbench", "hub_id": "zai-org/LongBench"}
    jobs = {
        "train": {"dataset": wikitext("Salesforce/wikitext"), "split": "train"},
        "pinned": {"dataset": wikitext("Salesforce/wikitext", revision=pinned), "split": "test"},
        "no revision": {
            "dataset": wikitext("Salesforce/wikitext", revision="0" * 40), "split": "test"},
        "no config": {
            "dataset": wikitext("Salesforce/wikitext", hub_config="wikitext-3"), "split": "test"},
        "no split": {
            "dataset": wikitext("Salesforce/wikitext", hub_config="wikitext-103-raw-v1"),
            "split": "validation"},
        "pg19": {"dataset": pg19, "split": "test"},
        "longbench": {"dataset": longbench | {"tasks": ["qasper"]}, "split": "test"},
        "longbench train": {"dataset": longbench, "split": "train"},
        "script": {"dataset": pg19 | {"hub_id": "deepmind/pg19"}, "split": "test"},
        "bad zip": {"dataset": longbench | {"hub_id": "fault/bad-zip"}, "split": "test"},
        "no zip": {"dataset": longbench | {"hub_id": "emozilla/pg19"}, "split": "test"},
        "model": {"model": {"name": "gpt2", "path": "tiny/gpt2"}},
        "model of a revision": {"model": {
            "name": "s", "path": "tiny/shards", "dtype": "file", "trained_length": 48,
            "revision": repositories["tiny/shards"].commit}},
        "model half": {"model": {"name": "h", "path": "tiny/half"}},
        "model missing": {"model": {"name": "x", "path": "tiny/nothing"}},
        "check missing": {"check": "tiny/nothing"},
        "check 503": {"check": "fault/model-503"},
        "check gated": {"check": "fault/model-gated"},
        "check": {"check": "tiny/gpt2"},
        "model gated": {"model": {"name": "x", "path": "fault/model-gated"}},
        "model garbage": {"model": {"name": "x", "path": "fault/model-garbage"}},
        "model garbage-once": {"model": {"name": "x", "path": "fault/model-garbage-once"}},
        "model all-garbage": {"model": {"name": "x", "path": "fault/model-all-garbage"}},
    }  # fmt: skip
    jobs |= {f: {"dataset": wikitext(f"fault/{f}"), "split": "test"} for f in FAULTS}
    with Hub(list(repositories.values())) as hub:
        return run_jobs(jobs, home, hub.url, **ANSWERING)


def test_wikitext_comes_in_order_from_all_its_shards(online):
    result = online["train"]
    assert result["names"] == ["A", "B", "C"]
    assert result["texts"][0] == (
        " \n = A = \n \n Text about A . \n = = Part = = \n More . \n \n"
    )  # the empty line before B's title is A's last
    assert online["pinned"]["names"] == ["T"]


def test_pg19_and_longbench_come_from_their_true_layouts(online):
    assert online["pg19"]["names"] == ["Four (0)"]
    assert online["longbench"]["names"] == ["qasper/0a"]


def test_a_model_id_goes_through_the_same_hub(online):
    result = online["model"]["model"]
    model = make_model("gpt2")
    assert result["type"] == "GPT2LMHeadModel"
    assert result["sum"] == pytest.approx(
        float(sum(p.detach().double().abs().sum() for p in model.parameters())), rel=1e-12
    )
    assert result["ids"] == make_byte_tokenizer()("ab")["input_ids"]
    assert "error" not in online["check"]


def test_the_precision_of_a_model_on_the_hub_is_that_of_its_shards(online):
    result = online["model of a revision"]
    if cpu_has_bf16():
        assert (result["model"]["dtype"], result["model"]["trained_length"]) == ("bfloat16", 48)
    else:
        assert "the weights are bfloat16, and this cpu has no bf16" in result["message"]


def assert_one_line(result: dict, words: str) -> None:
    assert result.get("error") == "DataError", result
    assert result["code"] == 3
    assert "\n" not in result["message"]
    assert re.search(words, result["message"]), result["message"]
    assert result["limits"] in ([], [DEADLINE])  # asked once, and not for longer


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ("missing", "no such repository"),
        ("gated", "gated: ask for access"),
        ("503", "answers 503"),
        ("429", "answers 429"),
        ("truncated", "cannot be reached|cannot be loaded"),
        ("short", "should be of size"),
        ("garbage", "downloaded twice and is damaged; delete .*/snapshots/.*parquet"),
        ("no revision", "no revision 0000"),
        ("no config", "wikitext-2-raw-v1"),  # lists what there is
        ("no split", "no validation split; it has test, train"),
        ("script", r"loading script \(pg19.py\), which is never run; use emozilla/pg19"),
        ("bad zip", r"data\.zip cannot be read"),
        ("no zip", "no data.zip in the repository"),
        ("longbench train", "test set and has no train split"),
        ("model half", "lack 1 tensor of GPT2LMHeadModel, first transformer.h.1.mlp.c_fc.weight"),
        ("model missing", "model.path=tiny/nothing: no such repository"),
        ("check missing", "model.path=tiny/nothing: no such repository"),
        ("check 503", "model.path=fault/model-503: the hub .* answers 503"),
        ("check gated", "model.path=fault/model-gated: gated"),
        ("model gated", "gated"),
        (
            "model garbage",
            r"fault/model-garbage: model\.safetensors was downloaded twice and is damaged; "
            r"delete /.*/blobs/[0-9a-f]{64} and try later, or use model=tiny",
        ),
        (
            "model all-garbage",
            r"config\.json was downloaded twice and is damaged; delete /",
        ),
    ],
)
def test_faults_end_in_one_line(online, job, words):
    """Each names the repository and what to do, and exits with 3."""
    assert_one_line(online[job], words)
    if job in FAULTS:
        assert f"fault/{job}" in online[job]["message"]
        assert "dataset.path" in online[job]["message"]


@pytest.mark.long
def test_a_hub_that_does_not_answer_is_given_up(tmp_path, repositories):
    """Each in a process of its own: the patience of a download is the process's."""
    jobs = {f: {"dataset": wikitext(f"fault/{f}"), "split": "test"} for f in SLOW_FAULTS}
    for fault in ("503", "stall"):
        jobs[f"model {fault}"] = {"model": {"name": "x", "path": f"fault/model-{fault}"}}
    with Hub(list(repositories.values())) as hub, ThreadPoolExecutor(len(jobs)) as pool:
        started = {j: pool.submit(run_jobs, {j: jobs[j]}, tmp_path / j, hub.url) for j in jobs}
        for job, running in started.items():
            assert_one_line(running.result()[job], "answers 503|cannot be reached")


def test_damaged_download_is_tried_again(online):
    assert online["garbage-once"]["names"] == ["T"]


def test_a_model_that_came_damaged_once_is_what_it_would_have_been(online):
    assert online["model garbage-once"]["model"] == online["model"]["model"]


@pytest.mark.parametrize("name", slow("model.safetensors", "tokenizer.json"))
def test_a_file_of_a_model_that_was_damaged_in_the_cache_is_named(
    online, home, repositories, name, tmp_path
):
    """Nothing is downloaded, so nothing is looked at, until reading fails."""
    place = "hub/models--tiny--gpt2"
    hub = shutil.copytree(home / place, tmp_path / place, symlinks=True)
    (path,) = hub.glob(f"snapshots/*/{name}")
    blob = path.resolve()
    blob.write_bytes(blob.read_bytes()[:-40] if name.endswith("json") else b"\xff" * 50)
    job = {"model": {"model": {"name": "gpt2", "path": "tiny/gpt2"}}}
    with Hub([repositories["tiny/gpt2"]]) as server:
        result = run_jobs(job, tmp_path, server.url, **ANSWERING)["model"]
    assert_one_line(result, f"{name} in the hub's cache is damaged; delete {blob}, so that")


@pytest.mark.long
def test_a_cache_that_cannot_be_written_is_named_and_what_it_holds_is_read(
    online, home, repositories
):
    need_mounts()
    pinned = repositories["Salesforce/wikitext"].commit
    jobs = {
        "there": {"dataset": wikitext("Salesforce/wikitext", revision=pinned), "split": "test"},
        "data": {"dataset": wikitext("Salesforce/wikitext"), "split": "validation"},
        "model": {"model": {"name": "s", "path": "tiny/read-only"}},
    }  # fmt: skip
    fresh = Repository("models", "tiny/read-only", repositories["tiny/gpt2"].files)
    with Hub([*repositories.values(), fresh]) as hub:
        result = run_jobs(jobs, home, hub.url, TEST_READ_ONLY=str(home), **ANSWERING)
    assert result["there"]["names"] == ["T"]
    for job in ("data", "model"):
        assert result[job]["error"] == "DiskError", result[job]
        place, _, said = result[job]["message"].partition(": ")
        assert place in (str(home), f"{home}/hub")
        assert said == "cannot be written (Read-only file system); set HF_HOME to another place"


def test_cache_serves_without_a_network(online, home, repositories):
    """Offline: what was downloaded is there, for what was not nobody is asked."""
    pinned = repositories["Salesforce/wikitext"].commit
    jobs = {
        "main": {"dataset": wikitext("Salesforce/wikitext"), "split": "train"},
        "pinned": {"dataset": wikitext("Salesforce/wikitext", revision=pinned), "split": "test"},
        "not loaded": {"dataset": wikitext("Salesforce/wikitext"), "split": "validation"},
        "never seen": {"dataset": wikitext("nobody/nothing"), "split": "test"},
        "model": {"model": {"name": "gpt2", "path": "tiny/gpt2"}},
    }
    before = [repository.requests.copy() for repository in repositories.values()]
    with Hub(list(repositories.values())) as hub:
        result = run_jobs(jobs, home, hub.url, HF_HUB_OFFLINE="1")
    assert [repository.requests for repository in repositories.values()] == before
    assert result["main"]["names"] == ["A", "B", "C"]
    assert result["pinned"]["names"] == ["T"]
    assert result["model"]["model"] == online["model"]["model"]
    for job in ("not loaded", "never seen"):
        assert result[job]["error"] == "DataError"
        assert "HF_HUB_OFFLINE" in result[job]["message"]
        assert "dataset.path" in result[job]["message"]


def test_closed_port_is_one_line_and_a_pinned_cache_needs_no_network(online, home, repositories):
    pinned = repositories["Salesforce/wikitext"].commit
    jobs = {
        "pinned": {"dataset": wikitext("Salesforce/wikitext", revision=pinned), "split": "test"},
        "main": {"dataset": wikitext("Salesforce/wikitext"), "split": "test"},
        "not there": {"dataset": wikitext("Salesforce/wikitext"), "split": "validation"},
        "check": {"check": "nobody/model"},
        "check cached": {"check": "tiny/gpt2"},
    }
    with socket.socket() as closed:  # taken, so that nobody else listens there
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        result = run_jobs(jobs, home, f"http://127.0.0.1:{port}")
    assert result["pinned"]["names"] == ["T"]
    assert result["main"]["names"] == ["T"]  # as it last was, with a warning
    assert "error" not in result["check cached"]
    for job in ("not there", "check"):
        assert result[job]["error"] == "DataError"
        assert "cannot be reached" in result[job]["message"]
        assert str(port) in result[job]["message"]
        assert result[job]["limits"] == [DEADLINE]
