"""Rates from finished runs of the same kind below the same folder: better than any probe."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from hylorada.config import RunConfig, TrainConfig, to_dict
from hylorada.errors import DataError
from hylorada.planning.estimate import Rates
from hylorada.process.counts import number_of
from hylorada.records.result import RESULT, read_result

# Of the settings, what a run's seconds depend on beside its budget.
_TRAIN = (
    "task", "retrieval", "micro_batch_size", "gradient_accumulation_steps", "precision",
    "gradient_checkpointing", "gradient_checkpointing_every", "gradient_checkpointing_offload",
    "loss_chunk", "deterministic", "frozen_kernels", "compile", "mix",
)  # fmt: skip
_PARTS = ("model", "dataset", "eval", "integrity", "device", "threads")
_SHARED = {"sequence_ranks": 1, "shard_base": False}  # records of before do not say
_PLAIN = dataclasses.asdict(TrainConfig())  # nor all of these


def kind_of(settings: Mapping[str, Any]) -> str:
    """What runs of one kind have in common, as text; settings as `to_dict` or a record has them."""
    train, method = settings.get("train") or {}, settings.get("method") or {}
    alike = {name: settings.get(name) for name in _PARTS}
    alike |= {name: settings.get(name) or plain for name, plain in _SHARED.items()}
    alike["length"] = (settings.get("length") or {}).get("max_length")
    alike["train"] = {name: train.get(name, _PLAIN[name]) for name in _TRAIN}
    alike["validates"] = bool(train.get("eval_every"))
    alike["method"] = {k: v for k, v in method.items() if k not in ("name", "adapter_seed")}
    return json.dumps(alike, sort_keys=True)


class EarlierRuns:
    """The finished runs below a folder, read once.

    Args:
        output_root: the folder.
        hardware: of this machine, as records say it, and torch's threads in a run.
    """

    def __init__(self, output_root: str, hardware: str, threads: int) -> None:
        self._records: dict[str, list[dict[str, Any]]] = {}
        for path in sorted(Path(output_root).glob(f"*/*/{RESULT}")):
            try:
                record = read_result(path.parent)
            except DataError:
                continue  # damaged, or of another version
            made = (record or {}).get("provenance") or {}
            here = (made.get("hardware"), made.get("threads")) == (hardware, threads)
            if record and here and record["status"] == "ok" and "seconds" in record:
                self._records.setdefault(kind_of(record["config"]), []).append(record)

    def rates(self, config: RunConfig, processes: int) -> Rates | None:
        """What such a run took; None if there is none. A resumed one tells of its last attempt.

        Args:
            config: its settings.
            processes: that it has; the memory of runs with several is that of their first one.
        """
        found = [
            record
            for record in self._records.get(kind_of(to_dict(config)), [])
            if record["provenance"].get("processes", {}).get("world", 1) == processes
        ]
        if not found:
            return None
        each = validation(found) if config.train.eval_every else 0.0
        if each is None:
            return None
        phases = [record["seconds"] for record in found]

        def of(name: str) -> float:
            return mean(seconds.get(name, 0.0) for seconds in phases)

        steps = sum(record["training"]["steps"] for record in found)
        trained = sum(record["training"]["seconds"] for record in found)
        return Rates(
            f"{number_of(len(found), 'finished run')} of this kind",
            step=trained / steps if steps else 0.0,
            start=of("preflight") + of("text") + of("load"),
            gate=of("gate"),
            base=max(seconds.get("base", 0.0) for seconds in phases),
            validation=each,
            evaluation={"evaluation": of("evaluation")} if config.method.trains else {},
            memory=max(record["training"]["peak_memory_bytes"] or 0 for record in found),
            trained=found[0]["parameters"]["by_group"],
            base_measured=True,
            processes=processes,
        )


def validation(records: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds of a validation: what training took beside its steps; None where none tells.

    Of a run that was continued its record has the steps of all attempts, but the time of the last.
    """
    took = []
    for record in records:
        training, train = record["training"], record["config"]["train"]
        count = (training["steps"] - 1) // train["eval_every"] + train.get("keep_best", False)
        beside = record["seconds"]["training"] - training["seconds"]
        if count > 0 and beside > 0.0:
            took.append(beside / count)
    return mean(took) if took else None
