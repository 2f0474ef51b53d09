"""Reading an adapter that someone has written, and saying in one line why it cannot be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from hylorada.errors import DataError, HyloradaError
from hylorada.methods import load_adapter
from hylorada.runner.ending import is_out_of_memory

WEIGHTS = "adapter_model.safetensors"


def attach_adapter(base_model: nn.Module, folder: Path, base: str) -> Any:
    """The model with the adapter on it, in evaluation mode.

    Args:
        base_model: what it was made for; changed in place.
        folder: holds adapter_config.json and adapter_model.safetensors.
        base: what the user calls the base model.

    Raises:
        DataError: it is damaged, or of another model.
        ConfigError: a component cannot take effect on this model.
    """
    try:
        return load_adapter(base_model, folder).eval()
    except HyloradaError:
        raise
    except SafetensorError as error:
        raise _damaged(folder / WEIGHTS, error) from error
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        raise DataError(
            f"adapter={folder}: does not fit model {base} ({_first(error)}); give the base it was "
            "made for as model=..., or restore the adapter"
        ) from error


def count_numbers(weights: Path) -> int:
    """How many numbers a file of weights holds; only its header is read.

    Raises:
        DataError: it is damaged.
    """
    count = 0
    try:
        with safe_open(str(weights), "pt") as file:
            for key in file.keys():  # noqa: SIM118  (not a mapping)
                size = 1
                for n in file.get_slice(key).get_shape():
                    size *= n
                count += size
    except SafetensorError as error:
        raise _damaged(weights, error) from error
    return count


def _damaged(weights: Path, error: SafetensorError) -> DataError:
    return DataError(
        f"{weights}: damaged ({_first(error)}); restore it from a copy, or train it again"
    )


def _first(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
