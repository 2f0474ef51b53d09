"""Loading the frozen base model, and saying in one line why it cannot be had.

Three sources: `embedded` (shipped in the package, needs nothing), a local folder, a hub id. Weights
come from safetensors alone and no code from a repository is run.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from hylorada.config import ModelConfig
from hylorada.data.hub import check_model
from hylorada.errors import ConfigError, DataError, HyloradaError
from hylorada.logits import output_head
from hylorada.runner.base_weights import check_loaded, refuse_other_task, reported_here
from hylorada.runner.provenance import config_sha256, weights_sha256

EMBEDDED = "embedded"


@dataclass
class Backbone:
    """The untouched base model and its tokenizer.

    Attributes:
        model: float32, in evaluation mode, dropout 0, no parameter trains.
        tokenizer: its tokenizer.
        sha256: of its weights as loaded (see `provenance.weights_sha256`).
        config_sha256: of its settings as loaded (see `provenance.config_sha256`).
    """

    model: Any
    tokenizer: Any
    sha256: str
    config_sha256: str

    @property
    def identity(self) -> dict[str, str]:
        """What the provenance of a record says of it."""
        return {
            "base_model_sha256": self.sha256,
            "base_model_config_sha256": self.config_sha256,
        }


@dataclass
class Blueprint:
    """A base model of which no weights were read yet.

    Attributes:
        source: the folder or hub id that it lies in.
        where: "embedded", "folder" or "hub".
        config: its transformers configuration, dropout 0.
        tokenizer: its tokenizer.
        options: what `from_pretrained` is given beside these.
    """

    source: str
    where: str
    config: Any
    tokenizer: Any
    options: dict[str, Any]


def open_base(settings: ModelConfig) -> Blueprint:
    """Read config.json and the tokenizer of a base model, and nothing of its weights.

    Dropout of the base is 0: it is frozen, and with dropout SDPA on a CPU leaves its fast path.

    Raises:
        DataError: not there, not reachable, gated, damaged, made for another task, or only with
            own code.
        ConfigError: not a causal language model of transformers.
    """
    source, where = _locate(settings)
    options: dict[str, Any] = {"trust_remote_code": False}
    if where == "hub":
        check_model(source, settings.revision)
        options["revision"] = settings.revision or "main"
    else:
        options["local_files_only"] = True
    with explained(settings, where):
        config = AutoConfig.from_pretrained(source, **options)
        refuse_other_task(config, _named(settings, where))
        _without_dropout(config)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    return Blueprint(source, where, config, tokenizer, options)


def load_backbone(settings: ModelConfig, device: torch.device) -> Backbone:
    """Load the base model and tokenizer of a run.

    Raises:
        DataError: not there, not reachable, gated, damaged, incomplete, made for another task, or
            only as pickle or with own code.
        ConfigError: not a causal language model of transformers, or one whose logits are no known
            function of its output head.
    """
    opened = open_base(settings)
    with explained(settings, opened.where), reported_here():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            opened.source,
            config=opened.config,
            dtype=torch.float32,
            attn_implementation=settings.attn_implementation,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # named and refused by check_loaded, with the others
            **opened.options,
        )
    model, info = loaded
    check_loaded(model, info, _named(settings, opened.where))
    # What PEFT writes into an adapter as its base: as the user named it, not where it lay here.
    model.name_or_path = settings.path
    model.requires_grad_(False)
    model.eval().to(device)
    output_head(model)  # whether its loss can be computed at all, before anything is measured
    sha256 = weights_sha256(model)
    return Backbone(model, opened.tokenizer, sha256, config_sha256(model.config))


@contextlib.contextmanager
def explained(settings: ModelConfig, where: str) -> Iterator[None]:
    """Turn whatever transformers and the hub raise into one line; without their progress bars.

    Args:
        settings: of the model that is read inside the block.
        where: "embedded", "folder" or "hub".
    """
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # "Loading weights", for every shard
    try:
        yield
    except HyloradaError:  # a signal
        raise
    except Exception as error:  # transformers and the hub raise some twenty kinds
        raise _explain(error, settings, where) from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


def _locate(settings: ModelConfig) -> tuple[str, str]:
    """The path or hub id to load from, and which of embedded, folder, hub it is."""
    if settings.path == EMBEDDED:
        folder = Path(__file__).resolve().parents[1] / "assets" / "tiny"
        if not (folder / "config.json").is_file():
            raise DataError(
                f"model.path=embedded: {folder} holds no model; reinstall hylorada, or choose a "
                "hub id or a local folder"
            )
        return str(folder), EMBEDDED
    folder = Path(settings.path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise DataError(
                f"model.path={settings.path}: no config.json in this folder; give the folder that "
                "save_pretrained wrote"
            )
        if (folder / "adapter_config.json").is_file():  # transformers would put it on the model
            raise DataError(
                f"model.path={settings.path}: this folder holds an adapter beside the model; move "
                "it out and measure it by hylorada-eval adapter=FOLDER, or merge it first"
            )
        return str(folder), "folder"
    if settings.path.startswith((".", "/", "~")) or settings.path.count("/") > 1:
        raise DataError(
            f"model.path={settings.path}: no such folder; give a local folder, a hub id such as "
            "gpt2, or use model=tiny (embedded)"
        )
    return settings.path, "hub"


def _without_dropout(config: Any) -> None:
    for name, value in vars(config).items():
        if isinstance(value, float) and ("dropout" in name or name.endswith("_pdrop")):
            setattr(config, name, 0.0)


def _named(settings: ModelConfig, where: str) -> str:
    """How the user named the model, for messages."""
    what = f"model.path={settings.path}"
    if where == "hub" and settings.revision:
        what += f" (revision {settings.revision})"
    return what


def _explain(error: Exception, settings: ModelConfig, where: str) -> DataError | ConfigError:
    """One line for whatever transformers or the hub raised."""
    what = _named(settings, where)
    offline = "use model=tiny (embedded), or model.path=<local folder> with a copy of it"
    causes = _chain(error)
    names = {type(e).__name__ for e in causes}
    text = " ".join(str(e) for e in causes)
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        raise error
    if "GatedRepoError" in names:
        return DataError(
            f"{what}: gated on the hub; ask for access on its page and set HF_TOKEN, or {offline}"
        )
    if names & {"RepositoryNotFoundError", "RevisionNotFoundError"}:
        return DataError(
            f"{what}: the hub has no such model or revision (or it is private and HF_TOKEN is not "
            f"set); check the spelling, or {offline}"
        )
    if "trust_remote_code" in text:
        return DataError(
            f"{what}: this model needs code from its repository, which is never run here; choose "
            "an architecture that transformers itself has"
        )
    if "safetensors" in text and ("pytorch_model.bin" in text or "no file named" in text):
        return DataError(
            f"{what}: no safetensors weights; pickled weights are not loaded, so convert them "
            "(save_pretrained writes safetensors) or choose another revision"
        )
    offline_mode = os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true")
    if "OfflineModeIsEnabled" in names or (where == "hub" and offline_mode):
        return DataError(f"{what}: not in the local hub cache and HF_HUB_OFFLINE is set; {offline}")
    if where == "hub" and names & _NETWORK:
        return DataError(f"{what}: the hub cannot be reached; try again later, or {offline}")
    if "Unrecognized" in text and "configuration class" in text:
        return ConfigError(f"{what}: not a causal language model that transformers knows")
    gone = next((e for e in causes if isinstance(e, FileNotFoundError)), None)
    if gone is not None and where == "folder" and ".safetensors" in str(gone):
        name = Path(str(gone).split()[-1].strip("'\"")).name
        return DataError(
            f"{what}: its index names {name}, which is not there; copy the whole folder again"
        )
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return DataError(f"{what}: cannot be loaded ({type(error).__name__}: {first[:200]}); {offline}")


_NETWORK = {
    "ConnectError", "ConnectTimeout", "ReadTimeout", "ConnectionError", "HfHubHTTPError",
    "LocalEntryNotFoundError", "HTTPError", "HTTPStatusError", "RemoteProtocolError", "ReadError",
    "ProxyError", "MaxRetryError", "Timeout", "TimeoutException", "ConnectionRefusedError",
}  # fmt: skip


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


def parameter_count(model: nn.Module) -> int:
    """All parameters of a model, shared ones once."""
    return sum(p.numel() for p in model.parameters())
