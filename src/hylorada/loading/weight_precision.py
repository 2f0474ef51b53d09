"""In which precision the weights of a base model lie in their files: headers alone are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_COMPUTED = "rotary_emb.inv_freq"  # in older files; the model computes it


def stored_dtype(source: str, config: Any, **options: Any) -> torch.dtype:
    """The precision in which no number of the files is rounded: theirs, if they have one.

    Args:
        source: folder or hub id; what is not here is downloaded, as loading would.
        config: transformers configuration of the model.
        **options: as for `from_pretrained`.

    Returns:
        float32 where the files mix precisions, or hold none.
    """
    found = {dtype for file in weight_files(source, config, **options) for dtype in _dtypes(file)}
    return found.pop() if len(found) == 1 else torch.float32


def weight_files(source: str, config: Any, **options: Any) -> list[Path]:
    """The safetensors files that `from_pretrained` reads; none if there are none."""
    options = {k: v for k, v in options.items() if k in ("revision", "local_files_only")}
    name = getattr(config, "transformers_weights", None) or SAFE_WEIGHTS_NAME
    whole = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **options)
    if whole is not None:
        return [Path(whole)]
    index = cached_file(
        source, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False, **options
    )
    if index is None:
        return []
    shards, _ = get_checkpoint_shard_files(source, index, **options)
    return [Path(shard) for shard in shards]


def _dtypes(file: Path) -> set[torch.dtype]:
    with safe_open(str(file), "pt") as opened:
        named = {
            opened.get_slice(name).get_dtype()
            for name in opened.keys()  # noqa: SIM118  (not a mapping)
            if not name.endswith(_COMPUTED)
        }
    return {_FLOATS[dtype] for dtype in named if dtype in _FLOATS}
