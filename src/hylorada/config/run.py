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
    """Where the numbers are mirrored; metrics.jsonl is the truth."""

    kind: str = text("offline", "off, or a tracker: a file of tracking/trackers, or of a package")
    project: str = text("hylorada", "of W&B")
    entity: str = text("", "of W&B; empty: the account's own")
    tags: list[str] = several([], "of W&B")


@dataclass
class IntegrityConfig:
    """The gate before training."""

    enabled: bool = flag(True)
    allow_leak: bool = flag(False, "true: a control arm that reads the future may run")
    probe_length: int = number(0, "tokens", least=1, zero="chosen from the method")


@dataclass
class RunConfig:
    """One run. Its fingerprint names its directory."""

    experiment: str = label("main", "the overlay's name")
    group: str = label(
        "",
        "first folder under output_root, and W&B's group; empty: the experiment's name",
        form="optional",
    )
    output_root: str = place("outputs", "folder that holds the runs", changes="nothing")
    seed: int = number(0, "seed", least=0, most=2**32 - 1, changes="arm")
    # On another device precision and dtype follow it, so numbers are others.
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
    # Of this machine, which share each step's micro-batches and each measurement; the same bytes.
    processes: int = number(1, "processes", least=1, changes="nothing", remeasured=True)
    # Of them, that share each sequence in training, which is split over them (docs/SCALING.md).
    sequence_ranks: int = number(1, "processes", least=1, changes="rounding")
    shard_base: bool = flag(
        False, "each process holds a part of the frozen decoder layers; the same bytes",
        changes="nothing",
    )  # fmt: skip
    # auto: continue, or skip if done; must: fail if there is nothing to continue; never: start
    # anew.
    resume: str = choice("auto", "must", "never", changes="nothing")
    # same: a checkpoint of another kind of device, or of another precision, is refused; any: it is
    # continued, which log and record say.
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
