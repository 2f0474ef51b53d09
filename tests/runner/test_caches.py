"""Caches that cannot be written, are damaged, or are all that there is: never the run's fault."""

from __future__ import annotations

import json
import shutil

import pytest
from helpers.commands import Into, run_command, words_of_a_run
from helpers.marks import thinned
from helpers.mounts import mount_read_only, need_mounts, own_mounts
from helpers.tiny_runs import make_model_folder, make_texts

from hylorada import cli


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("caches")
    make_model_folder(folder / "model")
    make_texts(folder / "texts")
    return folder


@pytest.fixture(scope="module")
def whole(root):
    """A run that fills the caches; its record."""
    assert cli.train(words_of_a_run(root, "group=whole")) == 0
    return only(root, "whole")


def only(root, group):
    (path,) = (root / "outputs" / group).glob("lora-*/result.json")
    return json.loads(path.read_text())


class ReadOnly(Into):
    """Streams into a file, and folders that can only be read."""

    def __init__(self, error, *folders) -> None:
        super().__init__(error, error)
        self.folders = folders

    def __call__(self) -> None:
        own_mounts()
        for folder in self.folders:
            mount_read_only(folder)
        super().__call__()


CACHES = {
    "tokens": ("cache", "set dataset.cache_dir to another folder"),
    "user": ("user", "set dataset.cache_dir to another folder"),
    "base": ("outputs/.cache", "choose another output_root"),
}


def words_with(root, name):
    words = words_of_a_run(root, f"group={name}")
    return [*words, "dataset.cache_dir=''"] if name == "user" else words


@pytest.mark.parametrize("name", thinned(CACHES, ("tokens", "base")))
def test_one_that_cannot_be_written_is_named_itself(root, name, tmp_path):
    need_mounts()
    place, cure = CACHES[name]
    for folder in ("cache", "user", "outputs/.cache/base"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("model", "texts"):
        (tmp_path / folder).symlink_to(root / folder)
    streams = ReadOnly(tmp_path / "err", tmp_path / place)
    environment = {"XDG_CACHE_HOME": str(tmp_path / "user")}
    assert run_command("train", words_with(tmp_path, name), streams, **environment) == 6
    said = (tmp_path / "err").read_text().splitlines()[-1]
    assert said.startswith(f"hylorada-train: error: {tmp_path / place}"), said
    assert "Read-only file system" in said
    assert f"{cure} (its record: " in said
    assert f"outputs/{name}/" not in said.partition(" (its record")[0]


def test_a_whole_one_need_not_be_written(root, whole):
    need_mounts()
    streams = ReadOnly(root / "err", root / "cache", root / "outputs" / ".cache")
    assert run_command("train", words_of_a_run(root, "group=read"), streams) == 0
    assert only(root, "read")["base"] == whole["base"]


DAMAGED = {
    "a list": b"[1]",
    "brackets": b"[" * 100_000,
    "digits": b'{"value": ' + b"7" * 5000 + b"}",
    "no text": b"\xff\xfe\x00",
    "nothing": b"",
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_one_is_made_again(root, whole, damage, tmp_path):
    """The base's measurements and the tokens; in this process, as it writes them."""
    from hylorada.data.token_corpus import TokenCorpus, _open
    from hylorada.process.ranks import ALONE
    from hylorada.runner.base_model import _CacheEntry

    bases = list((root / "outputs" / ".cache" / "base").glob("*.json"))
    assert bases
    (tmp_path / "base").mkdir()
    key = json.loads(bases[0].read_text())["key"]
    with _CacheEntry(tmp_path / "base", key, ALONE) as entry:
        entry.value = {"a": {"value": 1.0}}
    (path,) = (tmp_path / "base").glob("*.json")
    path.write_bytes(DAMAGED[damage])
    with _CacheEntry(tmp_path / "base", key, ALONE) as entry:
        assert entry.value is None
        entry.value = {"a": {"value": 2.0}}
    with _CacheEntry(tmp_path / "base", key, ALONE) as entry:
        assert entry.value == {"a": {"value": 2.0}}

    source = next(p for p in (root / "cache").iterdir() if p.is_dir())
    folder = shutil.copytree(source, tmp_path / source.name)
    assert isinstance(_open(folder, "texts train", None), TokenCorpus)
    (folder / "meta.json").write_bytes(DAMAGED[damage])
    assert _open(folder, "texts train", None) is None
    meta = json.loads((source / "meta.json").read_text())
    for wrong in ({"files": [1]}, {"files": {"tokens.bin": 5}}, {"dtype": "x"}):
        (folder / "meta.json").write_text(json.dumps(meta | wrong))
        assert _open(folder, "texts train", None) is None
