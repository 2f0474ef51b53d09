"""Loading the frozen base model, and saying in one line why it is not available.

Four sources: `embedded` (shipped in the package, needs nothing), a local folder, a hub id, a GGUF
file. Weights come from safetensors or GGUF alone and no code from a repository is run. Float32
weights in safetensors stay where they lie, mapped into memory.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from hylorada.architecture import anatomy
from hylorada.architecture.logits import output_head
from hylorada.config import EMBEDDED, ModelConfig
from hylorada.data.hub import check_model
from hylorada.errors import ConfigError, DataError, HyloradaError
from hylorada.kernels import grouped_heads
from hylorada.loading.gguf_file import SUFFIX as GGUF
from hylorada.loading.gguf_file import check_read, refuse_unreadable, unpacking
from hylorada.loading.quantized import (
    NONE,
    files_sha256,
    full_config_sha256,
    quantizing,
    refuse_elsewhere,
    refuse_quantized_before,
)
from hylorada.loading.weight_precision import stored_dtype, weight_files
from hylorada.loading.whole_weights import check_loaded, refuse_other_task, reported_here
from hylorada.process.device import choose_dtype
from hylorada.records.provenance import config_sha256, name_of, weights_sha256

_PROBED = 8  # tokens


@dataclass
class Backbone:
    """The untouched base model and its tokenizer.

    Attributes:
        model: in evaluation mode, dropout 0, no parameter trains.
        tokenizer: its tokenizer.
        sha256: of its weights as loaded (see `provenance.weights_sha256`).
        config_sha256: of its settings as loaded (see `provenance.config_sha256`).
        dtype: of its weights, float32 or bfloat16; bfloat16 is to be run under bf16 autocast.
        trained_length: in tokens, as the user or its config says.
        logits: its `probe_logits` when it was loaded.
        quantization: of its linear layers, as ``model.quantization`` says. If there is one, the two
            hashes are of what the files hold, and `dtype` is of the other weights.
    """

    model: Any
    tokenizer: Any
    sha256: str
    config_sha256: str
    dtype: torch.dtype
    trained_length: int
    logits: Tensor
    quantization: str = NONE

    @property
    def identity(self) -> dict[str, Any]:
        """What the provenance of a record says of it."""
        told: dict[str, Any] = {
            "base_model_sha256": self.sha256,
            "base_model_config_sha256": self.config_sha256,
            "base_model_dtype": name_of(self.dtype),
            "base_model_trained_length": self.trained_length,
        }
        if self.quantization != NONE:
            told["base_model_quantization"] = self.quantization
        return told


@dataclass
class Blueprint:
    """A base model of which no weights were read yet.

    Attributes:
        source: the folder or hub id that it lies in.
        where: "embedded", "folder", "hub" or "gguf".
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
        ConfigError: not a causal language model of transformers, the package that reads the file is
            not installed, or it is to be quantised and is so already.
    """
    source, where = _locate(settings)
    options: dict[str, Any] = {"trust_remote_code": False}
    if where == "hub":
        check_model(source, settings.revision)
        options["revision"] = settings.revision or "main"
    else:
        options["local_files_only"] = True
    if where == "gguf":
        refuse_unreadable(Path(source), _named(settings, where))
        source, options["gguf_file"] = str(Path(source).parent), Path(source).name
    with explained(settings, where):
        config = AutoConfig.from_pretrained(source, **options)
        refuse_other_task(config, _named(settings, where))
        refuse_quantized_before(settings, config)
        _without_dropout(config)
        _tell_trained_length(config, settings.trained_length)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    return Blueprint(source, where, config, tokenizer, options)


def stored(opened: Blueprint) -> torch.dtype:
    """The precision of the weights in their files; float32 for what a GGUF file unpacks to."""
    if opened.where == "gguf":
        return torch.float32
    return stored_dtype(opened.source, opened.config, **opened.options)


def load_backbone(
    settings: ModelConfig,
    device: torch.device,
    precision: str = "auto",
    opened: Blueprint | None = None,
) -> Backbone:
    """Load the base model and tokenizer of a run.

    Args:
        settings: which model, and the precision of its weights.
        device: to load it onto.
        precision: that it is to run in (``train.precision``).
        opened: what `open_base` gave for these settings, if it was asked already.

    Raises:
        DataError: not there, not reachable, gated, damaged, incomplete, made for another task, or
            only as pickle or with own code.
        ConfigError: not a causal language model of transformers, one whose logits are no known
            function of its output head, a precision that does not go with the other, or 4-bit
            layers where they are not computed.
    """
    refuse_elsewhere(settings, device)
    opened = opened or open_base(settings)
    what = _named(settings, opened.where)
    grouped_heads.use_here(device)
    gguf = opened.options.get("gguf_file")
    with explained(settings, opened.where), reported_here():
        dtype = choose_dtype(settings.dtype, precision, device, lambda: stored(opened))
        four_bit = quantizing(settings, device, precision)
        way: Any = unpacking() if gguf else contextlib.nullcontext(four_bit)
        with way as more:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                opened.source,
                config=opened.config,
                dtype=dtype,
                attn_implementation=settings.attn_implementation,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # named and refused by check_loaded, with the others
                **opened.options,
                **more,
            )
        model, info = loaded
        if gguf:
            check_read(model, Path(opened.source) / gguf, what)
    check_loaded(model, info, what)
    # What PEFT writes into an adapter as its base: as the user named it, not where it lay here.
    model.name_or_path = settings.path
    model.requires_grad_(False)
    model.eval()
    if four_bit:
        files = weight_files(opened.source, opened.config, **opened.options)
        sha256 = files_sha256(files, settings.quantization, what)
        config_hash = full_config_sha256(model.config)
    else:
        sha256 = weights_sha256(model)  # where it was read: from a GPU all of it would come back
        config_hash = config_sha256(model.config)
        model.to(device)
    output_head(model)  # whether its loss can be computed at all, before anything is measured
    return Backbone(
        model, opened.tokenizer, sha256, config_hash, dtype,
        anatomy.trained_length(model.config), probe_logits(model), settings.quantization,
    )  # fmt: skip


@torch.no_grad()
def probe_logits(model: nn.Module) -> Tensor:
    """The logits of a few tokens from the middle of the vocabulary, by the model itself, [1, T, V].

    Args:
        model: in evaluation mode.
    """
    lm = anatomy.causal_lm(model)
    weight = lm.get_input_embeddings().weight
    count = min(_PROBED, anatomy.trained_length(lm.config))
    ids_T = (torch.arange(count, device=weight.device) * 5 + weight.shape[0] // 2) % weight.shape[0]
    return lm(input_ids=ids_T[None], use_cache=False).logits


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


def _locate(settings: ModelConfig) -> tuple[str, str]:
    """The path or hub id to load from, and which of embedded, folder, hub, gguf it is."""
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
    if folder.is_file() or folder.suffix == GGUF:
        if folder.suffix != GGUF:
            raise DataError(
                f"model.path={settings.path}: a file; give the folder that save_pretrained wrote, "
                "or a GGUF file"
            )
        return str(folder), "gguf"
    if settings.path.startswith((".", "/", "~")) or settings.path.count("/") > 1:
        raise DataError(
            f"model.path={settings.path}: no such folder; give a local folder, a hub id such as "
            "gpt2, or use model=tiny (embedded)"
        )
    return settings.path, "hub"


def _tell_trained_length(config: Any, told: int) -> None:
    """What the user says; or of a model that was merged, the length that it was extended to."""
    merged = config.__dict__.pop("hylorada_range", None)
    length = told or (merged or {}).get("to")
    if length:
        config.hylorada_trained_length = length


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
    """All parameters of a model, shared ones once; of 4-bit layers as many as they stand for."""
    states = ((p, getattr(p, "quant_state", None)) for p in model.parameters())
    return sum(p.numel() if state is None else math.prod(state.shape) for p, state in states)
