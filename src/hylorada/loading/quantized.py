"""A base in 4 bits (``model.quantization=nf4``): what it is read by, and where it is refused.

transformers exchanges the linear layers below the output head for those of bitsandbytes while it
reads the weights (QLoRA, arXiv:2305.14314: NormalFloat, blocks of 64, scales quantised again).
Embeddings, norms and the output head keep the numbers of the files.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import BitsAndBytesConfig
from transformers.utils import is_bitsandbytes_available

from hylorada.config import ModelConfig
from hylorada.errors import ConfigError, DataError
from hylorada.process.device import choose_autocast
from hylorada.records.provenance import config_sha256, tensors_sha256

NONE = "none"
_LEAST = "0.50"  # of bitsandbytes: as the extra `quantized` in pyproject.toml


def refuse_elsewhere(settings: ModelConfig, device: torch.device) -> None:
    """Refuse a 4-bit base where its layers are not computed.

    Raises:
        ConfigError: no GPU, or bitsandbytes is not installed.
    """
    if settings.quantization == NONE:
        return
    what = f"model.quantization={settings.quantization}"
    if device.type != "cuda":
        raise ConfigError(
            f"{what}: 4-bit layers are for CUDA devices here, and this run is on the "
            f"{device.type}; run it on a GPU, or set model.quantization=none"
        )
    if not is_bitsandbytes_available(_LEAST):
        raise ConfigError(
            f"{what} needs the package bitsandbytes, {_LEAST} or later; run: "
            "pip install 'hylorada[quantized]'"
        )


def refuse_quantized_before(settings: ModelConfig, config: Any) -> None:
    """Refuse to quantise a base that is quantised by its own config.json.

    Args:
        settings: which model.
        config: its transformers configuration, as it was read.

    Raises:
        ConfigError: it says how it is quantised.
    """
    own = getattr(config, "quantization_config", None)
    if settings.quantization == NONE or own is None:
        return
    told = own if isinstance(own, dict) else vars(own)
    how = getattr(told.get("quant_method"), "value", told.get("quant_method")) or "unnamed"
    raise ConfigError(
        f"model.path={settings.path}: config.json says that its weights are quantised already "
        f"({how}); set model.quantization=none, or give the model that it was made from"
    )


def quantizing(settings: ModelConfig, device: torch.device, precision: str) -> dict[str, Any]:
    """What `from_pretrained` is given to quantise what it reads; nothing for a base as it is.

    Args:
        settings: which model.
        device: to load it onto.
        precision: of the run (``train.precision``), in which 4-bit layers compute.
    """
    if settings.quantization == NONE:
        return {}
    scheme = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings.quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=choose_autocast(precision, device) or torch.float32,
    )
    return {"quantization_config": scheme, "device_map": {"": device}}


def files_sha256(files: Iterable[Path], quantization: str, what: str) -> str:
    """sha256 over every tensor of the files, before they are quantised, and over how they are.

    So a base has one identity on every GPU, in one shard or five, and another than the same files
    in full precision.

    Args:
        files: of weights, safetensors.
        quantization: ``model.quantization``.
        what: how the user named the model, for the message.

    Raises:
        DataError: a number is not finite; quantised, it would spoil a block in silence.
    """
    with ExitStack() as stack:
        found: dict[str, Any] = {}
        for file in files:
            opened = stack.enter_context(safe_open(str(file), "pt"))
            found |= dict.fromkeys(opened.keys(), opened)

        def tensors() -> Iterator[tuple[str, Tensor]]:
            for name in sorted(found):
                tensor = found[name].get_tensor(name)
                if tensor.is_floating_point() and not tensor.sum(dtype=torch.float64).isfinite():
                    raise DataError(
                        f"{what}: {name} in its weights has numbers that are not finite; the file "
                        "is damaged or its training diverged"
                    )
                yield name, tensor

        return tensors_sha256(tensors(), quantization)


def full_config_sha256(config: Any) -> str:
    """`config_sha256` of a quantised model's settings without those of its quantisation.

    They name the precision that it computes in, which follows the run and the device.
    """
    config = copy.deepcopy(config)
    del config.quantization_config
    return config_sha256(config)
