"""Loading the frozen base model, and saying in one line why it is not available.

Four sources: `embedded` (shipped in the package, needs nothing), a local folder, a hub id, a GGUF
file. Weights come from safetensors or GGUF alone and no code from a repository is run. Float32
weights in safetensors stay where they lie, mapped into memory.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hylorada.architecture import anatomy
from hylorada.architecture.logits import output_head
from hylorada.config import EMBEDDED, ModelConfig
from hylorada.data.hub import check_model
from hylorada.errors import DataError
from hylorada.kernels import grouped_heads
from hylorada.loading.availability import downloaded, explained, named
from hylorada.loading.fetched_model import verified
from hylorada.loading.gguf_file import SUFFIX as GGUF
from hylorada.loading.gguf_file import check_read, refuse_unreadable, split_as_trained, unpacking
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
from hylorada.settings.fetched_models import fetched

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
        read_from: what its weights were unpacked from, in words; empty if they lay there so.
    """

    model: Any
    tokenizer: Any
    sha256: str
    config_sha256: str
    dtype: torch.dtype
    trained_length: int
    logits: Tensor
    quantization: str = NONE
    read_from: str = ""

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
        if self.read_from:
            told["base_model_read_from"] = self.read_from
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
        refuse_unreadable(Path(source), named(settings, where))
        source, options["gguf_file"] = str(Path(source).parent), Path(source).name
    with explained(settings, where):
        config = downloaded(settings, where, lambda: AutoConfig.from_pretrained(source, **options))
        refuse_other_task(config, named(settings, where))
        refuse_quantized_before(settings, config)
        _without_dropout(config)
        _set_trained_length(config, settings.trained_length)
        tokenizer = downloaded(
            settings, where, lambda: AutoTokenizer.from_pretrained(source, **options)
        )
        if where == "gguf":
            split_as_trained(tokenizer, Path(source) / options["gguf_file"])
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
    stays: bool = False,
) -> Backbone:
    """Load the base model and tokenizer of a run.

    Args:
        settings: which model, and the precision of its weights.
        device: to load it onto.
        precision: that it is to run in (``train.precision``).
        opened: what `open_base` gave for these settings, if it was asked already.
        stays: leave its weights where they were read, in the host's memory.

    Raises:
        DataError: not there, not reachable, gated, damaged, incomplete, made for another task, or
            only as pickle or with own code.
        ConfigError: not a causal language model of transformers, one whose logits are no known
            function of its output head, a precision that does not go with the other, or 4-bit
            layers where they are not computed.
    """
    refuse_elsewhere(settings, device)
    opened = opened or open_base(settings)
    what = named(settings, opened.where)
    grouped_heads.use_here(device)
    gguf = opened.options.get("gguf_file")
    with explained(settings, opened.where), reported_here():
        dtype = choose_dtype(
            settings.dtype, precision, device,
            lambda: downloaded(settings, opened.where, lambda: stored(opened)),
        )  # fmt: skip
        four_bit = quantizing(settings, device, precision)
        way: Any = unpacking() if gguf else contextlib.nullcontext(four_bit)
        with way as more:
            loaded: Any = downloaded(
                settings,
                opened.where,
                lambda: AutoModelForCausalLM.from_pretrained(
                    opened.source,
                    config=opened.config,
                    dtype=dtype,
                    attn_implementation=settings.attn_implementation,
                    use_safetensors=True,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # named and refused by check_loaded
                    **opened.options,
                    **more,
                ),
            )
        model, info = loaded
        read_from = check_read(model, Path(opened.source) / gguf, what) if gguf else ""
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
        if not stays:
            model.to(device)
    output_head(model)  # whether its loss can be computed at all, before anything is measured
    return Backbone(
        model, opened.tokenizer, sha256, config_hash, dtype,
        anatomy.trained_length(model.config), probe_logits(model), settings.quantization,
        _source_in_words(settings, read_from),
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
    if (known := fetched(settings.path)) is not None:
        return str(verified(known)), "gguf"
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


def _source_in_words(settings: ModelConfig, read_from: str) -> str:
    """Where the weights were read, for the record; of a fetched model its name, too."""
    known = fetched(settings.path)
    return f"{read_from} of {known.title}, {known.what}" if known and read_from else read_from


def _set_trained_length(config: Any, configured: int) -> None:
    """The length that the user sets, or to which a merged model was extended, into the config."""
    merged = config.__dict__.pop("hylorada_range", None)
    length = configured or (merged or {}).get("to")
    if length:
        config.hylorada_trained_length = length


def _without_dropout(config: Any) -> None:
    for name, value in vars(config).items():
        if isinstance(value, float) and ("dropout" in name or name.endswith("_pdrop")):
            setattr(config, name, 0.0)


def parameter_count(model: nn.Module) -> int:
    """All parameters of a model, shared ones once; of 4-bit layers as many as they stand for."""
    states = ((p, getattr(p, "quant_state", None)) for p in model.parameters())
    return sum(p.numel() if state is None else math.prod(state.shape) for p, state in states)
