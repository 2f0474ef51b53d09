"""Adapters as files: saved whole, read back, or one line that says why they are not available.

Every measurement asks the transformers model inside peft's wrapper for hidden states. So an adapter
of which a part lives in the wrapper's own forward pass would be measured without that part.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hylorada.architecture import anatomy
from hylorada.architecture.logits import TOLERANCE, output_head
from hylorada.errors import ConfigError, DataError, HyloradaError, in_one_line
from hylorada.methods import load_adapter
from hylorada.methods.peft_settings import IN_THE_WRAPPER, INSTEAD, kind_of, not_measurable
from hylorada.process.disk import disk_errors, read_errors
from hylorada.records.outcome import is_out_of_memory
from hylorada.records.run_files import ADAPTER_SETTINGS, ADAPTER_WEIGHTS

_PROBE = 12  # tokens


def is_readable(path: Path) -> bool:
    """Whether a file is there; safetensors says of one that may not be read that it is not.

    Raises:
        DataError: it is there and cannot be read.
    """
    with read_errors(path, "make it readable"):
        if path.is_file():
            path.open("rb").close()
            return True
    return False


def read_settings(folder: Path) -> PeftConfig:
    """The configuration of an adapter that can be measured.

    Raises:
        DataError: no adapter is there, or it cannot be read, or its configuration is damaged or of
            an unknown kind.
        ConfigError: an adapter of a kind that cannot be measured.
    """
    if not all(is_readable(folder / name) for name in (ADAPTER_SETTINGS, ADAPTER_WEIGHTS)):
        inner = folder / "adapter"
        give = "give the folder that PEFT's save_pretrained wrote"
        if (inner / ADAPTER_SETTINGS).is_file():
            give = f"this is a run: give its adapter={inner}, or measure it again by run={folder}"
        raise DataError(
            f"adapter={folder}: no {ADAPTER_SETTINGS} with {ADAPTER_WEIGHTS} here; {give}"
        )
    try:
        settings = PeftConfig.from_pretrained(str(folder))
    except KeyError as error:
        raise DataError(
            f"adapter={folder}: {ADAPTER_SETTINGS} names {error}, which is no method that this "
            "peft knows; update peft, or restore the file"
        ) from error
    except Exception as error:  # peft raises what its parsing meets
        raise DataError(
            f"adapter={folder}: {ADAPTER_SETTINGS} cannot be read ({in_one_line(error, 200)})"
        ) from error
    _refuse_kind(settings, folder)
    return settings


def _refuse_kind(settings: PeftConfig, folder: Path) -> None:
    """Kinds whose part in the wrapper the probe would not meet, or which need it to run at all."""
    reason = not_measurable(settings)
    if reason:
        raise ConfigError(f"adapter={folder}: {reason}; {INSTEAD}")


def attach_adapter(base_model: nn.Module, folder: Path, base: str) -> Any:
    """The model with the adapter on it, in evaluation mode.

    Args:
        base_model: what it was made for; changed in place.
        folder: holds adapter_config.json and adapter_model.safetensors.
        base: what the user calls the base model.

    Raises:
        DataError: it cannot be read, is damaged, or of another model.
        ConfigError: a component cannot take effect on this model, or would not be measured.
    """
    for name in (ADAPTER_SETTINGS, ADAPTER_WEIGHTS):
        if not is_readable(folder / name):
            raise DataError(f"{folder}: no {name}; restore it from a copy, or train it again")
    try:
        model = load_adapter(base_model, folder).eval()
        _refuse_kind(model.active_peft_config, folder)
        _check_measurable(model, folder)
        return model
    except HyloradaError:
        raise
    except SafetensorError as error:
        raise _damaged(folder / ADAPTER_WEIGHTS, error) from error
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        raise DataError(
            f"adapter={folder}: does not fit model {base} ({in_one_line(error, 200)}); "
            "give the base it was made for as model=..., or restore the adapter"
        ) from error


def save_adapter(model: PeftModel, directory: Path) -> None:
    """`adapter/` in a run's directory, as PEFT writes it; whole under its name.

    Raises:
        DiskError: full or read-only.
    """
    final, partial = directory / "adapter", directory / ".adapter.partial"
    with disk_errors(final):
        shutil.rmtree(partial, ignore_errors=True)
        save_weights(model, partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)


def save_weights(model: PeftModel, folder: Path) -> None:
    """Configuration and weights of an adapter, without PEFT's card, which would be empty.

    Lists that peft keeps as sets are sorted, so that the same adapter is the same file.
    """
    for config in model.peft_config.values():
        for name, value in vars(config).items():
            if isinstance(value, set):
                setattr(config, name, sorted(value))
    # The base's size of vocabulary is not looked up on the hub: it never changes here.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink()


@torch.no_grad()
def _check_measurable(model: Any, folder: Path) -> None:
    """Hidden states and head, as they are measured, against the logits of peft's wrapper."""
    rows = model.get_input_embeddings().weight
    ids_1T = torch.arange(_PROBE, device=rows.device)[None] * 7 % rows.shape[0]
    own = model(input_ids=ids_1T, use_cache=False).logits
    model(input_ids=ids_1T.flip(1), use_cache=False)  # what the wrapper left in the model is gone
    hidden = anatomy.backbone(model)(input_ids=ids_1T, use_cache=False).last_hidden_state
    measured = output_head(model)(hidden)
    error = _largest(measured.double() - own.double()) / max(_largest(own), 1e-30)
    if not error <= TOLERANCE[own.dtype]:
        kind = kind_of(model.active_peft_config)
        raise ConfigError(
            f"adapter={folder}: a part of {kind} lives {IN_THE_WRAPPER} (their logits are off by "
            f"{error:.3g}); {INSTEAD}"
        )


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max())


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
        f"{weights}: damaged ({in_one_line(error, 200)}); restore it from a copy, or train it again"
    )
