"""A finished run, loaded again: base, extension and adapter, proven to be those of its record."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
import transformers

from hylorada.config import ModelConfig, PositionRangeConfig, python_arguments
from hylorada.errors import ConfigError, DataError
from hylorada.loading.adapter import attach_adapter, is_readable
from hylorada.loading.backbone import Backbone, load_backbone
from hylorada.methods.position_range import RangeReport, extend_range
from hylorada.process.device import choose_device
from hylorada.records import manifest
from hylorada.records.result import finished_record
from hylorada.records.run_files import ADAPTER_WEIGHTS

logger = logging.getLogger(__name__)

Record = dict[str, Any]


def extend(model: Any, length: int, settings: PositionRangeConfig) -> RangeReport:
    """Make the base reach the length, as the settings of a run say."""
    return extend_range(
        model, length, settings.learned_init, settings.rope_type, settings.rope_factor
    )


def load_run(path: Path | str, device: str = "auto") -> Any:
    """The model of a finished run: base, extension and adapter, in evaluation mode.

    Args:
        path: the run's directory.
        device: auto, cpu or cuda.

    Returns:
        A `PeftModel`; for method=baseline the base model with its range extended.

    Raises:
        ConfigError: the path or the device is none.
        DataError: see `finished_record`; or the base model is not available, or is another one.
    """
    directory = python_arguments.path("load_run: path", path)
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"load_run: device is {python_arguments.shown(device)}; use 'auto', 'cpu' or 'cuda'"
        )
    record = finished_record(directory, "adapter/")
    return load_finished(directory, record, choose_device(device))[0]


def load_finished(
    directory: Path, record: Record, device: torch.device, precision: str = ""
) -> tuple[Any, Backbone]:
    """`load_run` for a record that is read already; also the base that the model is built on.

    Args:
        directory: of the run.
        record: its record, as `finished_record` gives it.
        device: auto, cpu or cuda, resolved.
        precision: that it is to run in (``train.precision``); empty: the record's.
    """
    method = record["config"]["method"]
    adapter, of_peft = directory / "adapter", bool(method.get("peft"))
    trained = method["lora"]["enabled"] or of_peft
    if trained and not is_readable(adapter / ADAPTER_WEIGHTS):
        raise DataError(
            f"{directory}: no adapter/{ADAPTER_WEIGHTS}; restore it from a copy, or train it again"
        )
    reason = manifest.damage(directory, record, "adapter/")
    if reason:
        raise DataError(f"{reason}; restore it from a copy, or train it again")
    settings = ModelConfig(**record["config"]["model"])
    precision = precision or record["config"]["train"]["precision"]
    backbone = load_backbone(settings, device, precision)
    _refuse_other_base(directory, record["provenance"], backbone, settings.path)
    if of_peft or not trained:  # our own method's adapter brings its range with it
        position_range = PositionRangeConfig(**method["position_range"])
        extend(backbone.model, record["length"], position_range)
    if not trained:
        return backbone.model.eval(), backbone
    return attach_adapter(backbone.model, adapter, settings.path), backbone


def _refuse_other_base(directory: Path, then: Record, backbone: Backbone, path: str) -> None:
    """A run belongs to the weights and settings of its base; older records do not say which."""
    same_reader = then.get("versions", {}).get("transformers") == transformers.__version__
    for key, what in (
        ("base_model_sha256", "weights"),
        ("base_model_config_sha256", "settings (config.json)"),
    ):
        before, now = then.get(key), backbone.identity[key]
        if before in (None, now):
            continue
        if what != "weights" and not same_reader:
            # Another transformers may complete the same config.json otherwise.
            logger.warning(
                "%s: trained under transformers %s, which read the settings of %s otherwise",
                directory, then.get("versions", {}).get("transformers"), path,
            )  # fmt: skip
            continue
        raise DataError(
            f"{directory}: trained on other {what} of {path} (sha256 {before[:12]}, here "
            f"{now[:12]}); set model.revision or restore the folder"
        )
