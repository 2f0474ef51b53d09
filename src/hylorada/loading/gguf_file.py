"""A base model in one GGUF file (llama.cpp's format), read by transformers into ordinary weights.

Quantised blocks are unpacked to float32. What transformers passes over in such a file and what
would make another model of it (a scaling of RoPE) is an error here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import mmap
import re
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from tokenizers import pre_tokenizers

from hylorada.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

SUFFIX = ".gguf"
_MAGIC = b"GGUF"
_HEADER = 1 << 26  # bytes in which its keys are looked for
_STRING = 8  # GGUF's number of that type
# A window of attention and the scalings that some makers put around layers, by the end of the key.
_ACTS = (
    "attention.sliding_window", "attention.scale", "attention.clamp_kqv", "logit_scale",
    "residual_scale", "embedding_scale", "expert_weights_scale",
)  # fmt: skip


def refuse_unreadable(file: Path, what: str) -> None:
    """Refuse what is no GGUF file, or cannot be read on this installation.

    Args:
        file: of the model.
        what: how the user named the model, for the messages.

    Raises:
        DataError: not there, or something else.
        ConfigError: the package `gguf` is not installed.
    """
    try:
        with file.open("rb") as opened:
            start = opened.read(len(_MAGIC))
    except OSError as error:
        raise DataError(f"{what}: cannot be read ({error.strerror}); give a GGUF file") from error
    if start != _MAGIC:
        raise DataError(
            f"{what}: does not start as a GGUF file does; give another one, or the folder that "
            "save_pretrained wrote"
        )
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError(
            f"{what}: reading GGUF files needs the package gguf; run: pip install 'hylorada[gguf]'"
        )


@contextlib.contextmanager
def unpacking() -> Iterator[dict[str, Any]]:
    """What `from_pretrained` is given to unpack every block, whatever kernels are installed.

    Inside the block its progress bar is not shown, which nothing else switches off.
    """
    settings = getattr(transformers, "GgufConfig", None)
    with contextlib.redirect_stderr(io.StringIO()):
        yield {} if settings is None else {"quantization_config": settings(dequantize=True)}


def split_as_trained(tokenizer: Any, file: Path) -> None:
    """Cut text into pieces before its merges as the file says, where transformers passes over it.

    Of SmolLM each digit is a piece of its own; transformers cuts as GPT-2 does, and white space
    before digits becomes other tokens.

    Args:
        tokenizer: of transformers, read from the file; changed in place.
        file: the GGUF file.
    """
    if _text_of(file, "tokenizer.ggml.pre") == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )


def _text_of(file: Path, key: str) -> str | None:
    """The text of a key, found without reading the lists of tokens, which takes seconds."""
    named = struct.pack("<Q", len(key)) + key.encode()
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as lies:
        at = lies.find(named, 0, _HEADER)
        if at < 0:
            return None
        kind, length = struct.unpack_from("<IQ", lies, at + len(named))
        start = at + len(named) + struct.calcsize("<IQ")
        return lies[start : start + length].decode() if kind == _STRING else None


def check_read(model: Any, file: Path, what: str) -> str:
    """Refuse a model that transformers read without something that the file says, and free it.

    Args:
        model: what `from_pretrained` returned; afterwards a model like any other, which can be
            saved.
        file: it was read from.
        what: how the user named the model, for the messages.

    Returns:
        What was unpacked, in words; empty if nothing was.

    Raises:
        DataError: the file holds a scaling of RoPE or another setting that the model lacks.
    """
    from gguf import GGUFReader
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    reader = GGUFReader(file)
    architecture = str(reader.fields["general.architecture"].contents())
    read: Any = GGUF_CONFIG_MAPPING.get(architecture)  # None: a newer reader, which knows them
    said = {
        key.removeprefix(f"{architecture}."): field.contents()
        for key, field in reader.fields.items()
        if key.startswith(f"{architecture}.")
    }
    names = [tensor.name for tensor in reader.tensors]
    scaling = said.get("rope.scaling.type")
    lost = [f"{architecture}.rope.scaling.type={scaling}"] if scaling not in (None, "none") else []
    lost += [name for name in names if name.startswith(("rope_freqs", "rope_factors"))]
    if lost and _plain_rope(model.config):
        raise DataError(
            f"{what}: it scales RoPE ({lost[0]}), which transformers does not read from a GGUF "
            "file; give the folder or hub id of the same model in safetensors"
        )
    for end in _ACTS if read is not None else ():
        if said.get(end) and end not in read:
            raise DataError(
                f"{what}: transformers does not read {architecture}.{end}={said[end]} from a GGUF "
                "file; give the folder or hub id of the same model in safetensors"
            )
    here = sum(parameter.numel() for parameter in model.parameters())
    there = sum(int(tensor.n_elements) for tensor in reader.tensors)
    if here != there:
        logger.warning(
            "%s: the file holds %s numbers in %d tensors, but the %s made from it has %s",
            what, f"{there:,}", len(names), type(model).__name__, f"{here:,}",
        )  # fmt: skip
    model.hf_quantizer = None
    model.config.__dict__.pop("_model_name_or_path", None)  # general.name
    return _unpacked(reader.tensors)


def _unpacked(tensors: Any) -> str:
    """As in "4-bit weights (GGUF: Q4_1 79 %, Q8_0 21 %)"; the bits are those of most numbers."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[tensor.tensor_type.name] += int(tensor.n_elements)
    ranked = counts.most_common()
    bits = re.match(r"[IT]?Q(\d)", ranked[0][0])
    shares = ((name, round(100 * count / counts.total())) for name, count in ranked)
    listed = ", ".join(f"{name} {share} %" for name, share in shares if share)
    return f"{bits[1]}-bit weights (GGUF: {listed})" if bits else ""


def _plain_rope(config: Any) -> bool:
    parameters = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    return parameters.get("rope_type", "default") == "default"
