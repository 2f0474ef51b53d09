"""What a run reads, so that "done" and "continue" can be told from text or weights that changed.

Each input has a hint (sizes and times of its files), which is compared first and costs nothing, and
a hash, which is compared only where the hint differs: of the files of a model or of prompts, of the
text itself for a data set, so that a copied or touched file is no other text. What lies on the hub
is known by its commit, from the local cache alone. No torch, no network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hylorada
from hylorada.config import EMBEDDED, DatasetConfig, ModelConfig, RunConfig
from hylorada.data.kind import kind_of
from hylorada.errors import DataError
from hylorada.settings.fetched_models import fetched

# Of a model's folder: weights, settings, tokenizer; not what people write beside them.
_MODEL_FILES = ("*.safetensors", "*.json", "*.gguf", "*.model", "*.txt", "*.tiktoken", "*.jinja")

Described = dict[str, Any]


class Inputs:
    """Looks at what lies there; at the same thing once, however many runs ask for it."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}

    def describe(self, config: RunConfig, texts: Mapping[str, str]) -> Described:
        """What a run of these settings reads, for its record and its checkpoints.

        Args:
            config: the run's settings.
            texts: sha256 of the text of each split that was read, see `TokenCorpus.sha256`.
        """
        found = {name: self._now(name, config) for name in _names(config)}
        for name, entry in found.items():
            if name == "dataset":
                entry["texts"] = dict(texts)
            elif "hint" in entry:
                entry["sha256"] = self._hash(name, config)
        return found

    def changed(self, recorded: Mapping[str, Any], config: RunConfig) -> str | None:
        """What is no longer as it was, in words: the first such input; None if all is.

        Args:
            recorded: what `describe` gave; empty for records from before there was one.
            config: the settings of the same run.
        """
        for name in _names(config):
            before = recorded.get(name)
            if not before:
                continue
            now, what = self._now(name, config), _called(name, config)
            if "commit" in before:
                if now.get("commit") not in (None, before["commit"]):
                    return f"{what} is at commit {now['commit']}, was {before['commit']}"
            elif now.get("hint") == before.get("hint"):
                continue
            elif name != "dataset":
                sha256 = self._hash(name, config)
                if sha256 != before["sha256"]:
                    return f"{what} has changed (sha256 {sha256[:12]}, was {before['sha256'][:12]})"
            else:
                for split, sha256 in before["texts"].items():
                    reason = self._other_text(config.dataset, split, sha256)
                    if reason:
                        python = before.get("python")
                        then = f", which was that of Python {python}" if python else ""
                        return f"{what}{then}: {reason}"
        return None

    def _other_text(self, dataset: DatasetConfig, split: str, before: str) -> str | None:
        from hylorada.data.token_corpus import text_sha256

        def read() -> str | DataError:
            try:
                return text_sha256(dataset, split)
            except DataError as error:
                return error

        now = self._once(["text", vars(dataset), split], read)
        if isinstance(now, DataError):
            return f"its {split} split cannot be read again ({now})"
        if now == before:
            return None
        return f"its {split} text has changed (sha256 {now[:12]}, was {before[:12]})"

    def _now(self, name: str, config: RunConfig) -> Described:
        """Hint or commit of an input as it lies there."""
        if name == "model":
            model = config.model
            return dict(self._once([name, vars(model)], lambda: _model(model)))
        if name == "dataset":
            dataset = config.dataset
            return dict(self._once([name, vars(dataset)], lambda: _dataset(dataset)))
        path = _path(name, config)
        return dict(self._once([name, str(path)], lambda: {"hint": _hint(_files(path))}))

    def _hash(self, name: str, config: RunConfig) -> str:
        path = _path(name, config)
        files = _model_files(path) if name == "model" else _files(path)
        return self._once(["sha256", name, str(path)], lambda: _content(files))

    def _once(self, what: list[Any], look: Callable[[], Any]) -> Any:
        key = json.dumps(what, sort_keys=True)
        if key not in self._known:
            self._known[key] = look()
        return self._known[key]


def _names(config: RunConfig) -> list[str]:
    """The inputs that a run of these settings reads."""
    names, ev = ["model", "dataset"], config.eval
    if ev.lost_in_middle.enabled and ev.lost_in_middle.path:
        names.append("eval.lost_in_middle.path")
    if ev.harness.enabled and ev.harness.longbench_path:
        names.append("eval.harness.longbench_path")
    return names


def _called(name: str, config: RunConfig) -> str:
    """How the user named an input."""
    if name == "model":
        return f"model.path={config.model.path}"
    if name == "dataset":
        dataset = config.dataset
        if (own := kind_of(dataset).own) is not None:
            return own.called
        if dataset.path:
            return f"dataset.path={dataset.path}"
        return f"dataset {dataset.hub_id or dataset.name}"
    return f"{name}={_path(name, config)}"


def _path(name: str, config: RunConfig) -> Path:
    if name == "model":
        if config.model.path == EMBEDDED:
            return Path(hylorada.__file__).parent / "assets" / "tiny"
        if (known := fetched(config.model.path)) is not None:
            return known.file
        return Path(config.model.path).expanduser()
    if name == "eval.lost_in_middle.path":
        return Path(config.eval.lost_in_middle.path).expanduser()
    return Path(config.eval.harness.longbench_path).expanduser()


def _model(model: ModelConfig) -> Described:
    path = _path("model", RunConfig(model=model))
    if path.exists():
        return {"hint": _hint(_model_files(path))}
    from hylorada.data.hub import cached_commit

    commit = cached_commit(model.path, model.revision, "model")
    return {"commit": commit} if commit else {}


def _dataset(dataset: DatasetConfig) -> Described:
    if (own := kind_of(dataset).own) is not None:
        return {"hint": _hint(own.files()), **own.facts}
    if dataset.path:
        return {"hint": _hint(_files(Path(dataset.path).expanduser()))}
    from hylorada.data.hub import cached_commit

    asked = dataset.hub_id  # none where a kind makes its text
    commit = cached_commit(asked, dataset.revision, "dataset") if asked else None
    return {"commit": commit} if commit else {}


def _files(path: Path) -> list[Path]:
    """A file, or all files below a folder; hidden ones too, since only their text decides."""
    if path.is_file():
        return [path]
    return sorted(p for p in path.rglob("*") if p.is_file())


def _model_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted({p for pattern in _MODEL_FILES for p in path.glob(pattern) if p.is_file()})


def _hint(files: list[Path]) -> str:
    """The same while nobody wrote to the files: names, sizes, times of content and of entry."""
    digest = hashlib.sha256()
    for path in files:
        try:
            stat = path.stat()
        except OSError:  # gone since it was listed
            continue
        digest.update(f"{path}\0{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _content(files: list[Path]) -> str:
    """sha256 over names and contents, wherever the files lie."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            inner = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name}\0{inner}\n".encode())
    return digest.hexdigest()
