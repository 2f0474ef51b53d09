"""Whether "done" is true, and whether a checkpoint may be continued: what a run read and left is
compared with what lies there now."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.tiny_runs import (
    finish,
    killed,
    launch,
    make_config,
    make_model_folder,
    make_texts,
    outcome,
    result,
    run_here,
    run_to_end,
)

from hylorada.comparison.collect import collect
from hylorada.config import DatasetConfig, ModelConfig, RunConfig
from hylorada.data.token_corpus import text_sha256
from hylorada.errors import ConfigError, DataError, DiskError
from hylorada.loading import inputs as module
from hylorada.loading.finished_run import load_run
from hylorada.loading.inputs import Inputs
from hylorada.runner.earlier_attempt import already_done, check_hardware, check_start
from hylorada.runner.evaluate import evaluate_run
from hylorada.runner.evaluate_adapter import evaluate_adapter
from hylorada.runner.measure import Meter
from hylorada.runner.run import run

COMMANDS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Model, text and prompts, and a finished run of them."""
    root = tmp_path_factory.mktemp("standing")
    make_model_folder(root / "model")
    make_texts(root / "texts")
    pairs = [[f"k{i}", f"v{i}"] for i in range(4)]
    row = {"ordered_kv_records": pairs, "key": "k1", "value": "v1"}
    (root / "prompts.jsonl").write_text(json.dumps(row) + "\n")
    run(settings(root), root / "run")
    return root


@pytest.fixture
def root(made, tmp_path):
    """A copy with its times, so that a test may change it; the run is beside it."""
    shutil.copytree(made, tmp_path / "all")
    return tmp_path / "all"


def settings(root, **changes):
    quick = {"train__max_steps": 2, "eval__perplexity__max_blocks": 2, "threads": 1}
    lim = {"enabled": True, "path": str(root / "prompts.jsonl"), "depths": [0.0, 1.0]}
    lim = {f"eval__lost_in_middle__{key}": value for key, value in lim.items()}
    return make_config(root, **quick, **lim, length__max_length=320, **changes)


def rehint(root):
    """The record as if the run had been made in this copy: the hints are those of its files."""
    config, record = settings(root), result(root / "run")
    texts = record["provenance"]["inputs"]["dataset"]["texts"]
    return config, Inputs().describe(config, texts)


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def in_place(path, change):
    """Rewrite a file with as many bytes and the same time of change."""
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


# --- what was read --------------------------------------------------------------------------------


def test_nothing_changed_is_done_whatever_the_times_of_the_files_say(root):
    config = settings(root)
    assert already_done(config, root / "run") == result(root / "run")
    for path in root.rglob("*"):
        os.utime(path, (1, 1))
    assert already_done(config, root / "run") == result(root / "run")
    assert already_done(dataclasses.replace(config, resume="never"), root / "run") is None


def test_files_that_nobody_wrote_to_are_not_read_again(root, monkeypatch):
    config, recorded = rehint(root)
    monkeypatch.setattr(module, "_content", None)
    monkeypatch.setattr("hylorada.data.token_corpus.text_sha256", None)
    assert Inputs().changed(recorded, config) is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("texts/train/3.txt", "its train text has changed"),
        ("texts/test/0.txt", "its test text has changed"),
        ("model/model.safetensors", "model.path="),
        ("model/config.json", "model.path="),
        ("model/tokenizer.json", "model.path="),
        ("prompts.jsonl", "eval.lost_in_middle.path="),
    ],
)
def test_a_change_behind_the_same_path_is_named(root, name, said):
    config, recorded = rehint(root)
    path = root / name
    letter = b"a" if name.startswith("texts") else b"1"
    in_place(path, lambda p: p.write_bytes(p.read_bytes().replace(letter, b"7", 1)))
    reason = Inputs().changed(recorded, config)
    assert reason is not None
    assert said in reason
    assert str(root / name.partition("/")[0]) in reason
    with pytest.raises(DataError, match=r"is done, but .*resume=never") as caught:
        run(config, root / "run")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_that_no_split_of_the_run_holds_may_change(root):
    config, recorded = rehint(root)
    (root / "texts" / "validation" / "0.txt").write_text("another")
    (root / "model" / "README.md").write_text("notes")
    assert Inputs().changed(recorded, config) is None


def test_a_split_that_is_gone_is_named(root):
    config, recorded = rehint(root)
    shutil.rmtree(root / "texts" / "test")
    assert "its test split cannot be read again" in Inputs().changed(recorded, config)


def test_the_standard_library_of_another_python_is_another_text(tmp_path, monkeypatch):
    folder = Path(shutil.copytree(Path(json.__file__).parent, tmp_path / "lib" / "json"))
    shutil.copy(Path(shutil.__file__), tmp_path / "lib")
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path / "lib")})
    config = RunConfig()
    splits = [split for split in ("train", "validation", "test") if has(split)]
    recorded = Inputs().describe(config, {s: text_sha256(config.dataset, s) for s in splits})
    assert Inputs().changed(recorded, config) is None
    for path in folder.glob("*.py"):
        path.write_text(path.read_text() + "\n# of a later version\n")
    recorded["dataset"]["python"] = "3.11.0"
    reason = Inputs().changed(recorded, config)
    assert "which was that of Python 3.11.0: its " in reason


def has(split):
    try:
        return bool(text_sha256(DatasetConfig(), split))
    except DataError:
        return False


def test_a_branch_of_the_hub_that_moved_is_named_without_asking(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refs = [tmp_path / f"{kind}s--org--thing" / "refs" for kind in ("model", "dataset")]
    for folder in refs:
        folder.mkdir(parents=True)
        (folder / "main").write_text("a" * 40)
    config = RunConfig(
        model=ModelConfig("thing", "org/thing"),
        dataset=DatasetConfig("thing", "pg19", hub_id="org/thing"),
    )
    recorded = Inputs().describe(config, {"test": "0" * 64})
    assert recorded["model"] == {"commit": "a" * 40}
    assert Inputs().changed(recorded, config) is None
    for folder, said in zip(refs, ("model.path=org/thing is", "dataset org/thing is"), strict=True):
        (folder / "main").write_text("b" * 40)
        reason = Inputs().changed(recorded, config)
        assert reason == f"{said} at commit {'b' * 40}, was {'a' * 40}"
        shutil.rmtree(folder.parent)  # an empty cache says nothing
        assert Inputs().changed(recorded, config) is None


def test_a_record_without_inputs_is_done_as_before(root):
    record = result(root / "run")
    for key in ("sha256", "files"):
        del record[key]
    del record["provenance"]["inputs"]
    (root / "run" / "result.json").write_text(json.dumps(record))
    flipped(root / "model" / "model.safetensors")
    assert already_done(settings(root), root / "run") == record


def test_an_adapter_measured_on_other_text_is_not_measured_already(root, tmp_path):
    config = settings(root, output_root=str(tmp_path / "out"))
    evaluate_adapter(root / "run" / "adapter", dataclasses.replace(config))
    (root / "texts" / "test" / "0.txt").write_text("beta " * 90)
    with pytest.raises(DataError, match=r"is done, but .* its test text has changed"):
        evaluate_adapter(root / "run" / "adapter", dataclasses.replace(config))


# --- what a checkpoint was made on ----------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that was killed after its first checkpoint, and the bytes it must end with."""
    root = tmp_path_factory.mktemp("interrupted")
    make_model_folder(root / "model")
    make_texts(root / "texts")
    config = make_config(root, train__max_steps=6, integrity__enabled=False)
    assert run_here(config, root / "whole") == 0
    assert killed(finish(launch(config, root / "killed", HYLORADA_FAULT="after_step:5")))
    return root, config, outcome(root / "whole")


@pytest.mark.parametrize("name", ["texts/train/3.txt", "model/model.safetensors"])
def test_a_checkpoint_is_not_continued_on_something_else(interrupted, tmp_path, name):
    root, config, expected = interrupted
    directory = Path(shutil.copytree(root / "killed", tmp_path / "run"))
    whole = (root / name).read_bytes()
    try:
        flipped(root / name)
        assert run_here(config, directory) == 3
    finally:
        (root / name).write_bytes(whole)
    error = result(directory)["error"]
    assert error.startswith("the run's inputs have changed since the checkpoint: ")
    assert "has changed" in error
    assert run_here(config, directory) == 0
    assert outcome(directory) == expected


# --- what was left --------------------------------------------------------------------------------


PRODUCTS = (
    "metrics.jsonl", "integrity.json", "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
)  # fmt: skip


def test_the_record_has_size_and_hash_of_each_product(made):
    assert set(result(made / "run")["files"]) == set(PRODUCTS)


@pytest.mark.parametrize("name", [*PRODUCTS, "result.json"])
def test_a_flipped_bit_is_found_by_all_who_read_it(root, name):
    config = settings(root)
    path = root / "run" / name
    if name == "result.json":  # a digit: the file stays JSON
        path.write_text(path.read_text().replace('"seed": 0', '"seed": 1', 1))
    else:
        flipped(path)
    with pytest.raises(DataError, match=f"{path.name}: damaged") as caught:
        evaluate_run(root / "run", config)
    assert "\n" not in str(caught.value)
    if name.startswith(("adapter", "result")):
        with pytest.raises(DataError, match=f"{path.name}: damaged"):
            load_run(root / "run", device="cpu")
    else:
        load_run(root / "run", device="cpu")
    if path.suffix == ".safetensors":  # whose bytes only those read who use them
        assert len(collect([root / "run"]).records) == 1
        path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match=f"{path.name}: damaged"):
        already_done(config, root / "run")
    shutil.copytree(root / "run", root / "other")
    (root / "other" / "result.json").write_text(json.dumps(without_hashes(root / "run")))
    collection = collect([root / "run", root / "other"])
    assert [record.path.name for record in collection.records] == ["other"]
    (problem,) = collection.problems
    assert "damaged" in problem.reason


def without_hashes(directory):
    record = result(directory)
    return {key: value for key, value in record.items() if key not in ("sha256", "files")}


def test_a_missing_adapter_is_not_done_and_a_record_alone_may_be_reported(root):
    shutil.rmtree(root / "run" / "adapter")
    with pytest.raises(DataError, match=r"adapter_config\.json: missing"):
        already_done(settings(root), root / "run")
    (root / "alone").mkdir()
    shutil.copy(root / "run" / "result.json", root / "alone")
    assert [record.history for record in collect([root / "alone"]).records] == [[]]


def test_lines_that_no_record_counts_are_neither_drawn_nor_kept(root):
    """A kill between the line and the record of an evaluation leaves one."""
    lines = root / "run" / "metrics.jsonl"
    whole = lines.read_bytes()
    lines.write_bytes(whole + b'{"step": 99}\n')
    (record,) = collect([root / "run"]).records
    assert 99 not in [line["step"] for line in record.history]
    evaluate_run(root / "run", settings(root))
    text = lines.read_text()
    assert text.startswith(whole.decode())
    assert '"step": 99' not in text
    assert already_done(settings(root), root / "run") == result(root / "run")


# --- the commands ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_that_is_done_says_so_without_torch_and_not_once_the_text_changed(made, tmp_path):
    root = Path(shutil.copytree(made, tmp_path / "all", ignore=lambda *_: ["run", "outputs"]))
    words = [
        "-m", f"model={root / 'model'}", "dataset=local", f"dataset.path={root / 'texts'}",
        "length=512", "length.max_length=96", "method=baseline,lora", "train.max_steps=1",
        "eval=quick", "track=off", f"dataset.cache_dir={tmp_path / 'cache'}",
    ]  # fmt: skip

    def command():
        code = (
            f"import sys\nfrom hylorada import cli\ncode = cli.train({words!r})\n"
            "print('torch' in sys.modules)\nsys.exit(code)\n"
        )
        return subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip

    first = command()
    assert first.returncode == 0, first.stderr
    again = command()
    assert "2 cells: 0 run, 2 done already, 0 failed" in again.stderr
    assert again.stdout.split()[-1] == "False"
    for path in (root / "texts" / "train").iterdir():
        path.write_text(path.read_text() + " and more")
    changed = command()  # the baseline reads no training text
    assert changed.returncode == 3
    assert "2 cells: 0 run, 1 done already, 1 failed" in changed.stderr
    assert "its train text has changed" in changed.stderr
    assert changed.stdout.split()[-1] == "False"


CPU, GPU = {"device": "cpu", "precision": "fp32"}, {"device": "cuda", "precision": "bf16"}


@pytest.mark.parametrize("state", [None, {"identity": {}}, {"identity": {"hardware": [CPU]}}])
def test_a_run_goes_on_where_it_was_made_and_old_checkpoints_do_not_say_where(state):
    assert check_hardware(state, CPU, RunConfig()) == [CPU]


@pytest.mark.parametrize("here", [GPU, {**CPU, "precision": "bf16"}, {**GPU, "precision": "fp32"}])
def test_another_device_or_precision_is_refused_or_announced(here, caplog):
    state = {"identity": {"hardware": [CPU]}}
    with pytest.raises(ConfigError, match=r"on cpu in fp32, .*resume_on=any") as refused:
        check_hardware(state, here, RunConfig())
    assert "\n" not in str(refused.value)
    assert check_hardware(state, here, RunConfig(resume_on="any")) == [CPU, here]
    assert "the record has numbers of both" in caplog.text


@pytest.mark.slow
def test_a_run_that_would_go_on_elsewhere(root, tmp_path, monkeypatch):
    """The precision of a checkpoint is its own; `resume_on=any` is said in the record."""
    directory = tmp_path / "run"
    assert killed(run_to_end(make_config(root), directory, HYLORADA_FAULT="after_step:5"))
    state = directory / "checkpoints" / "step-00000004" / "state.json"
    assert json.loads(state.read_text())["identity"]["hardware"] == [CPU]
    monkeypatch.setattr(Meter, "precision", property(lambda self: "bf16"))
    with pytest.raises(
        ConfigError, match="on cpu in fp32, but this run would continue on cpu in bf16"
    ):
        run(make_config(root), directory)
    record = run(make_config(root, resume_on="any"), directory)
    assert record["provenance"]["hardware_in_order"] == [CPU, {**CPU, "precision": "bf16"}]
    assert record["training"]["peak_memory_of"] == "host"


def test_checkpoints_that_cannot_be_written_are_told_before_anything_is_loaded(tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(DiskError, match=r"checkpoints: cannot be written"):
        check_start(RunConfig(), tmp_path)


def test_a_checkpoint_that_cannot_be_read_is_told_before_anything_is_loaded(tmp_path):
    (tmp_path / "checkpoints/step-00000002/state.json").mkdir(parents=True)
    with pytest.raises(DataError, match=r"state\.json: cannot be read \(Is a directory\)"):
        check_start(RunConfig(), tmp_path)
