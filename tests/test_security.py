"""What is read is never run, and nobody is told anything."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.tiny_runs import make_model_folder

import hylorada
from hylorada.errors import DataError
from hylorada.loading.adapter import read_settings
from hylorada.training.checkpoint import Damaged, load_newest, read_checkpoint

SOURCE = Path(hylorada.__file__).parent


class Payload:
    """What a pickle does to who loads it."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return (Path.touch, (self.place,))


@pytest.fixture
def hostile(tmp_path):
    """A pickle that touches a file when it is loaded; the file."""
    touched = tmp_path / "touched"
    data = pickle.dumps(Payload(touched))
    pickle.loads(data)
    assert touched.exists()  # it would
    touched.unlink()
    return data, touched


ADAPTER = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "target_modules": ["c_attn"]}


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.safetensors"])
def test_an_adapter_that_is_a_pickle_is_refused_unread(tmp_path, hostile, name):
    from hylorada.config import ModelConfig
    from hylorada.loading.adapter import attach_adapter
    from hylorada.loading.backbone import load_backbone

    data, touched = hostile
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
    (folder / name).write_bytes(data)
    model = make_model_folder(tmp_path / "model")
    base = load_backbone(ModelConfig("m", str(model)), torch.device("cpu")).model
    if name.endswith("bin"):
        with pytest.raises(DataError, match=r"with adapter_model\.safetensors here"):
            read_settings(folder)
    else:
        with pytest.raises(DataError, match="damaged"):
            attach_adapter(base, folder, "m")
    assert not touched.exists()


@pytest.mark.parametrize("name", ["trainables.safetensors", "optimizer.safetensors", "state.json"])
def test_a_checkpoint_that_is_a_pickle_is_set_aside_unread(tmp_path, hostile, name):
    """Also one whose manifest was written for it."""
    data, touched = hostile
    folder = tmp_path / "checkpoints" / "step-00000004"
    folder.mkdir(parents=True)
    empty = b"\x02\0\0\0\0\0\0\0{}"
    files = {
        "trainables.safetensors": empty, "optimizer.safetensors": empty,
        "state.json": b'{"format": 1, "step": 4}', name: data,
    }  # fmt: skip
    for file, content in files.items():
        (folder / file).write_bytes(content)
    manifest = {
        file: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for file, content in files.items()
    }
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(Damaged):
        read_checkpoint(folder)
    with pytest.raises(DataError, match="no usable checkpoint"):
        load_newest(tmp_path / "checkpoints")
    assert not touched.exists()


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Place and name of every call in the package."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                place = f"{path.relative_to(SOURCE)}:{node.lineno}"
                yield place, ast.unparse(node.func), node


FORBIDDEN = {
    "eval", "exec", "compile", "torch.load", "pickle.load", "pickle.loads", "os.system",
    "np.fromregex", "shutil.unpack_archive", "joblib.load", "dill.load",
}  # fmt: skip


def test_no_line_loads_a_pickle_runs_a_text_or_extracts_an_archive():
    for place, name, node in calls():
        assert name not in FORBIDDEN, place
        assert name.rpartition(".")[2] not in ("extractall", "extract"), place
        options = {option.arg: ast.unparse(option.value) for option in node.keywords}
        assert options.get("shell", "False") == "False", place
        assert options.get("allow_pickle", "False") == "False", place
        assert options.get("trust_remote_code", "False") == "False", place
        if name == "yaml.load":  # its loader is one of plain values
            loader = options.get("Loader") or ast.unparse(node.args[1])
            source = (SOURCE / place.partition(":")[0]).read_text(encoding="utf-8")
            assert f"class {loader}(yaml.SafeLoader)" in source, place


def test_no_module_of_pickles_is_imported():
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {"pickle", "dill", "cloudpickle", "marshal", "shelve"} & set(names), path


@pytest.mark.parametrize(
    ("said", "tells"), [({}, False), ({"HF_HUB_DISABLE_TELEMETRY": "0"}, True)]
)
def test_the_hub_is_told_nothing_of_this_machine_unless_the_user_says_so(said, tells):
    code = (
        "import hylorada\n"
        "from huggingface_hub.utils import build_hf_headers\n"
        "print(build_hf_headers(library_name='x')['user-agent'])"
    )
    environment = {k: v for k, v in os.environ.items() if "TELEMETRY" not in k} | said
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert ("torch/" in done.stdout) is tells
