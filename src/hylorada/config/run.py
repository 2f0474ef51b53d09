"""The settings of one run: the parts, and what belongs to none of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hylorada.config.evaluation import EvalConfig
from hylorada.config.fields import choice, flag, label, number, part, place, several, text
from hylorada.config.inputs import DatasetConfig, LengthConfig, ModelConfig
from hylorada.config.method import MethodConfig
from hylorada.config.training import TrainConfig


@dataclass
class TrackConfig:
    """Where the numbers are mirrored; metrics.jsonl is authoritative."""

    kind: str = text(
        "offline", "off, or a tracker: a module of tracking/trackers or of another package"
    )
    project: str = text("hylorada", "W&B project")
    entity: str = text("", "W&B entity; empty: the account's default")
    tags: list[str] = several([], "W&B tags")


@dataclass
class IntegrityConfig:
    """The integrity gate before training."""

    enabled: bool = flag(True)
    allow_leak: bool = flag(False, "true: a control method that reads the future may run")
    probe_length: int = number(0, "tokens", least=1, zero="chosen from the method")


@dataclass
class RunConfig:
    """One run; its directory is named after the method, length, seed and fingerprint."""

    experiment: str = label("main", "name of the experiment file")
    group: str = label(
        "",
        "first folder under output_root, and W&B's group; empty: the experiment's name",
        form="optional",
    )
    output_root: str = place("outputs", "folder that holds the runs", changes="nothing")
    seed: int = number(0, "seed", least=0, most=2**32 - 1, changes="arm")
    # Precision and dtype depend on the device, so numbers do, too.
    device: str = choice("auto", "cpu", "cuda", remeasured=True)
    threads: int = number(
        0,
        "CPU threads",
        least=1,
        most=1024,
        zero="torch's choice",
        changes="rounding",
        remeasured=True,
    )
    # Processes on this machine that share the run's work; the results are the same bytes.
    processes: int = number(1, "processes", least=1, changes="nothing", remeasured=True)
    # Processes over which each training sequence is split (docs/SCALING.md).
    sequence_ranks: int = number(1, "processes", least=1, changes="rounding")
    shard_base: bool = flag(
        False, "true: each process holds a part of the frozen decoder layers; the same bytes",
        changes="nothing",
    )  # fmt: skip
    # auto: resume, or do nothing if finished; must: fail if there is nothing to resume; never:
    # start again.
    resume: str = choice("auto", "must", "never", changes="nothing")
    # same: refuse a checkpoint from another kind of device or in another precision; any: resume
    # it, as noted in log and record.
    resume_on: str = choice("same", "any", changes="nothing")
    length: LengthConfig = part(LengthConfig)
    method: MethodConfig = part(MethodConfig, changes="arm")
    model: ModelConfig = part(ModelConfig)
    dataset: DatasetConfig = part(DatasetConfig)
    train: TrainConfig = part(TrainConfig)
    eval: EvalConfig = part(EvalConfig, remeasured=True)
    track: TrackConfig = part(TrackConfig, changes="nothing", remeasured=True)
    integrity: IntegrityConfig = part(IntegrityConfig, changes="record")


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """The config that `to_dict` made these of."""

    def fill(branch: Any, tree: Mapping[str, Any]) -> Any:
        for name, value in tree.items():
            inner = getattr(branch, name)
            if dataclasses.is_dataclass(inner):
                fill(inner, value)
            else:
                setattr(branch, name, value)
        return branch

    config: RunConfig = fill(RunConfig(), values)
    return config


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The config as plain containers, for records."""
    return dataclasses.asdict(config)
