"""Why a base model is not available, in one line; its files from the hub, checked as they come."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from transformers.utils import logging as transformers_logging

from hylorada.config import ModelConfig
from hylorada.data.hub_downloads import read_model
from hylorada.data.hub_faults import cache_error
from hylorada.errors import ConfigError, DataError, HyloradaError, chain

_OFFLINE = "use model=tiny (embedded), or model.path=<local folder> with a copy of it"

T = TypeVar("T")


def named(settings: ModelConfig, where: str) -> str:
    """How the user named the model, for messages."""
    what = f"model.path={settings.path}"
    if where == "hub" and settings.revision:
        what += f" (revision {settings.revision})"
    return what


def downloaded(settings: ModelConfig, where: str, read: Callable[[], T]) -> T:
    """What a function makes of a model's files; those from the hub are checked as they come.

    Args:
        settings: of the model.
        where: "embedded", "folder", "hub" or "gguf".
        read: of transformers; may be called twice.

    Raises:
        DataError: a file from the hub is damaged.
    """
    if where != "hub":
        return read()
    return read_model(settings.path, settings.revision, _OFFLINE, read)


@contextlib.contextmanager
def explained(settings: ModelConfig, where: str) -> Iterator[None]:
    """Turn whatever transformers and the hub raise into one line; without their progress bars.

    Args:
        settings: of the model that is read inside the block.
        where: "embedded", "folder", "hub" or "gguf".
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


def _explain(error: Exception, settings: ModelConfig, where: str) -> HyloradaError:
    """One line for whatever transformers or the hub raised."""
    what = named(settings, where)
    offline = _OFFLINE
    causes = list(chain(error))
    names = {type(e).__name__ for e in causes}
    text = " ".join(str(e) for e in causes)
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        raise error
    if where == "hub" and (full := cache_error(error)) is not None:
        return full
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
    if "scaled_dot_product_attention" in text:
        return ConfigError(
            f"{what}: transformers has no SDPA attention for this architecture; set "
            "model.attn_implementation=eager"
        )
    gone = next((e for e in causes if isinstance(e, FileNotFoundError)), None)
    if gone is not None and where == "folder" and ".safetensors" in str(gone):
        name = Path(str(gone).split()[-1].strip("'\"")).name
        return DataError(
            f"{what}: its index names {name}, which is not there; copy the whole folder again"
        )
    unread = re.search(r"GGUF \w+ (?:with|of) architecture '?([\w.-]+)", text)
    if unread is not None:
        return DataError(
            f"{what}: a GGUF file of architecture {unread[1]}, which transformers does not read; "
            f"{offline}"
        )
    denied = next((e for e in causes if isinstance(e, PermissionError) and e.filename), None)
    if denied is not None:
        return DataError(
            f"{what}: {denied.filename} cannot be read ({denied.strerror}); make it readable"
        )
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return DataError(f"{what}: cannot be loaded ({type(error).__name__}: {first[:200]}); {offline}")


_NETWORK = {
    "ConnectError", "ConnectTimeout", "ReadTimeout", "ConnectionError", "HfHubHTTPError",
    "LocalEntryNotFoundError", "HTTPError", "HTTPStatusError", "RemoteProtocolError", "ReadError",
    "ProxyError", "MaxRetryError", "Timeout", "TimeoutException", "ConnectionRefusedError",
}  # fmt: skip
