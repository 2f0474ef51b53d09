"""A finished run as files for others: its adapter, or a plain transformers folder.

Merging is exact up to rounding where all that was trained are weights: low-rank updates, norms,
position embeddings, and the extension of the range, which config.json holds. It is refused where
something depends on the input (position bias, landmarks). Either way what was written is read back
and compared with the run's own model before the folder gets its name.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from hylorada.errors import ConfigError, IntegrityError, in_one_line
from hylorada.loading.adapter import attach_adapter, save_weights
from hylorada.loading.backbone import Backbone
from hylorada.loading.finished_run import load_finished
from hylorada.methods.own_range import adopt_range
from hylorada.methods.peft_settings import kind_of
from hylorada.process.device import choose_device
from hylorada.process.disk import disk_errors, exclusive, make_directory
from hylorada.process.fault_points import fault_point
from hylorada.records.model_card import CARD, base_name, merged_card, model_card
from hylorada.records.result import finished_record
from hylorada.records.run_files import ADAPTER_SETTINGS

TOLERANCE = 1e-4  # of the largest logit, in float32: W + BA rounds otherwise than W x + B A x
_PROBE = 64  # tokens


def export(run_dir: Path, to: Path | None = None, merge: bool = False) -> Path:
    """Write what a finished run trained into a new folder.

    Args:
        run_dir: the run's directory.
        to: the folder; default: `export` or `merged` in the run's directory.
        merge: a whole transformers model instead of an adapter.

    Returns:
        The folder.

    Raises:
        ConfigError: the folder is there already, or the run cannot be merged exactly.
        DataError: see `finished_record`; or its base model is not available.
        IntegrityError: what was written does not compute what the run's model does.
        DiskError: full or read-only.
    """
    record = finished_record(run_dir, "adapter/")
    target = to or run_dir / ("merged" if merge else "export")
    method = record["config"]["method"]
    trained = method["lora"]["enabled"] or bool(method.get("peft"))
    adapter = run_dir / "adapter" if trained else None
    if merge and _quantized(record):
        raise ConfigError(
            f"run={run_dir}: merge=true is not exact for a 4-bit base "
            f"(model.quantization={record['config']['model']['quantization']}), whose weights "
            "would be rounded once more; leave merge out and keep the adapter"
        )
    if merge and adapter is not None:
        _refuse_merge(run_dir, json.loads((adapter / ADAPTER_SETTINGS).read_text(encoding="utf-8")))
    if not merge and adapter is None:
        raise ConfigError(
            f"run={run_dir}: {record['method']} trains no adapter; merge=true writes its base with "
            "the longer range"
        )
    with _new_folder(target) as folder:
        model, backbone = _load(run_dir, record)
        expected = _logits(model, record["length"])
        if merge:
            _write_merged(model, backbone, folder)
            card = merged_card(record, adapter)
            del model, backbone  # a large one has no room beside what is read back
            again = _read_back(folder)
        else:
            # The base by its name: where it lay on this machine helps nobody elsewhere.
            model.active_peft_config.base_model_name_or_path = base_name(record)
            save_weights(model, folder)
            card = model_card(record, folder)
            again = attach_adapter(model.unload(), folder, record["config"]["model"]["path"])
        _compare(expected, _logits(again, record["length"]), TOLERANCE if merge else 0.0)
        (folder / CARD).write_text(card, encoding="utf-8")
    return target


def _refuse_merge(run_dir: Path, settings: dict[str, Any]) -> None:
    """What no weights can hold, by the adapter's configuration."""
    for switch, what in (
        ("position_bias_enabled", "its position bias scales the update of each token"),
        ("landmark_enabled", "its landmarks are added by what each text contains"),
        ("s2_in_evaluation", "it attends in segments in evaluation too"),
    ):
        if settings.get(switch):
            raise ConfigError(
                f"run={run_dir}: merge=true is not exact for this run, because {what}, which the "
                "base's weights cannot express; leave merge out and keep the adapter"
            )


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder that gets its name when the block ends well; what a killed one left is replaced."""
    if target.exists():
        raise ConfigError(
            f"to={target}: already there; nothing is overwritten, name another folder"
        )
    remedy = "choose another folder with to="
    make_directory(target.parent, remedy)
    partial = target.with_name(f".{target.name}.partial")
    with exclusive(partial, remedy), disk_errors(target, remedy=remedy):
        folder = partial / "folder"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
            fault_point("before_export")
            if target.exists():
                raise ConfigError(f"to={target}: has appeared meanwhile; name another folder")
            folder.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _load(run_dir: Path, record: dict[str, Any]) -> tuple[Any, Backbone]:
    """The run's model in float32 on the CPU, whatever it was trained in; in 4 bits on a GPU."""
    record = copy.deepcopy(record)
    record["config"]["model"]["dtype"] = "float32"
    device = choose_device("auto") if _quantized(record) else torch.device("cpu")
    return load_finished(run_dir, record, device, "fp32")


def _quantized(record: dict[str, Any]) -> bool:
    return record["config"]["model"].get("quantization", "none") != "none"


def _write_merged(model: Any, backbone: Backbone, folder: Path) -> None:
    if isinstance(model, PeftModel):
        kind = kind_of(model.active_peft_config)
        try:
            model = model.merge_and_unload()
        except (AttributeError, NotImplementedError, ValueError) as error:
            reason = in_one_line(error, 200)
            raise ConfigError(
                f"merge=true: peft cannot put {kind} into the weights of the base ({reason}); "
                "leave merge out and keep the adapter"
            ) from error
        adopt_range(model)
    with _quiet():
        model.save_pretrained(str(folder))
        backbone.tokenizer.save_pretrained(str(folder))


def _read_back(folder: Path) -> Any:
    with _quiet():
        return AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.float32, trust_remote_code=False, local_files_only=True
        ).eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


@torch.no_grad()
def _logits(model: Any, length: int) -> list[Tensor]:
    """At the first positions, and where the model takes their numbers, at the last ones."""
    embeddings = model.get_input_embeddings().weight
    count = min(_PROBE, length)
    ids_1T = torch.arange(count, device=embeddings.device)[None] * 7 % embeddings.shape[0]
    last_1T = torch.arange(length - count, length, device=embeddings.device)[None]
    found = [model(input_ids=ids_1T, use_cache=False).logits]
    with suppress(TypeError):
        found.append(model(input_ids=ids_1T, position_ids=last_1T, use_cache=False).logits)
    return found


def _compare(expected: list[Tensor], found: list[Tensor], tolerance: float) -> None:
    for before, after in zip(expected, found, strict=True):
        error = float((after - before).abs().max() / before.abs().max())
        if not error <= tolerance:
            raise IntegrityError(
                f"export: the exported model computes different logits (off by {error:.3g} of the "
                "largest), so it was removed; keep the run's own adapter"
            )
