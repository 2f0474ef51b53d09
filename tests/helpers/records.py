"""A small factory of records in the shape that a run writes, with known sums."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
from pathlib import Path

import numpy as np

from hylorada import config as configs
from hylorada.records.result import blank_result
from hylorada.statistics.shares import wilson_interval

DOCUMENTS = 12
# Nats per token that a method takes off the extended base, and where it does so.
GAIN = {"lora": 0.20, "rslora": 0.22, "longlora": 0.24, "hylorada": 0.30}
TRAINABLE = {
    "lora": {"lora": 811_008},
    "rslora": {"lora": 811_008},
    "longlora": {"lora": 811_008, "position_embeddings": 1_048_576, "norms": 6_656},
    "hylorada": {
        "lora": 811_008,
        "position_bias": 65,
        "landmark": 12_545,
        "position_embeddings": 1_048_576,
        "norms": 6_656,
    },
}


def metric(level: float, convention: str, window: int, seed: int = 0, noise: float = 0.01) -> dict:
    """A metric whose sums by document and by position agree with its total."""
    rng = np.random.default_rng([seed, round(level * 1e6), window])
    tokens_D = 500 + 137 * np.arange(DOCUMENTS)
    difficulty_D = np.random.default_rng(0).normal(0, 0.3, DOCUMENTS)
    nll_D = tokens_D * (level + difficulty_D + rng.normal(0, noise, DOCUMENTS))
    total, tokens = float(nll_D.sum()), int(tokens_D.sum())
    shape_K = np.linspace(0.4, -0.25, 8) + 0.12 * np.sin(np.linspace(0, math.pi, 8))
    counts_K = np.full(8, tokens // 8)
    counts_K[0] += tokens - counts_K.sum()
    by_K = total / tokens + shape_K - (shape_K * counts_K).sum() / tokens
    edges = [i * window // 8 for i in range(9)]
    return {
        "value": math.exp(total / tokens),
        "convention": convention,
        "window": window,
        "stride": window // 2 if convention == "sliding" else None,
        "split": "test",
        "sum_nll": total,
        "tokens": tokens,
        "scorable_tokens": tokens,
        "words": 7000,
        "bytes": 40000,
        "by_position": [
            {
                "start": edges[i],
                "end": edges[i + 1],
                "sum_nll": float(by_K[i] * counts_K[i]),
                "tokens": int(counts_K[i]),
                "ppl": math.exp(by_K[i]),
            }
            for i in range(8)
        ],
        "by_document": [
            {"name": f"document-{i}", "sum_nll": float(nll_D[i]), "tokens": int(tokens_D[i])}
            for i in range(DOCUMENTS)
        ],
    }


def metrics(level: float, window: int, seed: int = 0, noise: float = 0.01) -> dict:
    """Both conventions; sliding is a little better."""
    return {
        "eval/ppl": metric(level, "blocks", window, seed, noise),
        "eval/ppl_sliding": metric(level - 0.05, "sliding", window, seed, noise),
    }


def make_record(
    method: str = "lora", seed: int = 0, length: int = 4096, status: str = "ok", **overrides
) -> dict:
    """A record of schema 1. `overrides` of the config are dotted keys with `__` for the dot."""
    config = configs.RunConfig(seed=seed)
    config.method.name = method
    config.method.lora.enabled = method != "baseline"
    config.method.lora.use_rslora = method not in ("lora", "longlora")
    config.length = configs.LengthConfig(name=str(length), max_length=length)
    tree = dataclasses.asdict(config)
    for key, value in overrides.items():
        *path, last = key.split("__")
        node = tree
        for step in path:
            node = node[step]
        assert last in node, key
        node[last] = value
    fingerprint = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:10]
    base_level = 4.1 + 0.1 * math.log2(length / 512)
    extended = metrics(base_level, length)
    own = {"eval/ppl_sliding": metric(3.6, "sliding", 1024)}
    trains = method != "baseline"
    groups = TRAINABLE.get(method, {"lora": 500_000}) if trains else {}
    level = base_level - GAIN.get(method, 0.25)
    record = {
        "schema": 1,
        "status": status,
        "error": None,
        "name": f"{method}-{length}-seed{seed}-{fingerprint}",
        "fingerprint": fingerprint,
        "method": method,
        "length": length,
        "seed": seed,
        "model": "tiny",
        "dataset": "stdlib",
        "metrics": metrics(level, length, seed, noise=0.02) if trains else extended,
        "base": {"extended": extended, "own_window": own},
        "parameters": {
            "total": 7_000_000,
            "trainable": sum(groups.values()),
            "by_group": groups,
        },
        "training": {
            "steps": 40,
            "tokens": 40 * length,
            "seconds": 80.0,
            "tokens_per_second": length / 2.0 + seed,
            "final_loss": level,
            "peak_memory_bytes": (900 + seed) * 2**20,
            "precision": "fp32",
            "device": "cpu",
        }
        if trains
        else None,
        "integrity": {"ok": True},
        "config": tree,
        "provenance": {
            "git": "0123abc",
            "versions": {"torch": "2.13.0", "hylorada": "0.1.0"},
            "device": "cpu",
            "hardware": "A processor, 2 cores",
            "dataset": {"test": "stdlib test, 12 documents", "train": "stdlib train, 90 documents"},
            "dataset_sha256": {"test": "ab" * 32},
            "base_model_sha256": "cd" * 32,
            "time": "2025-11-22T10:00:00+00:00",
        },
    }
    if status != "ok":
        record |= {
            "metrics": {},
            "training": None,
            "error": "training: 3 steps in a row with a non-finite loss; lower train.lr (now 1)",
        }
    return record


def nothing_measured(config: configs.RunConfig) -> dict:
    """The record of a run of these settings that came to its end and measured nothing."""
    parameters = {"total": 1, "trainable": 1, "by_group": {"lora": 1}}
    return blank_result(config) | {"status": "ok", "parameters": parameters}


def with_context(record: dict, lift: float = 0.1, sha: str = "ab" * 32) -> dict:
    """The record with accuracy by depth and context gain, of its base and, lifted, of itself."""

    def measured(lift: float) -> dict:
        depths = (0.0, 0.25, 0.5, 0.75, 1.0)
        shares = [0.42 + lift, 0.2 + lift, 0.12 + 2 * lift, 0.21 + lift, 0.5 + lift]
        by_depth = []
        for depth, share in zip(depths, shares, strict=True):
            low, high = wilson_interval(100 * share, 100)
            by_depth.append(
                {"depth": depth, "prompts": 100, "accuracy": share, "low": low, "high": high}
            )
        gap = (shares[0] + shares[-1]) / 2 - sum(shares[1:-1]) / 3
        contexts = [c for c in (128, 256, 512, 1024, 2048) if c < record["length"]]
        losses = [4.0 - (0.08 + 0.3 * lift) * i for i in range(len(contexts))]
        return {
            "lim/accuracy": {
                "value": sum(shares) / 5, "scoring": "ranked", "chance": 1 / 60,
                "window": record["length"], "prompt_tokens": [3890, 3950], "by_depth": by_depth,
                "prompts": 500, "form": "kv", "source": "generated", "items": 60,
                "prompts_sha256": sha,
            },
            **{f"lim/accuracy@{s['depth']:g}": {"value": s["accuracy"]} for s in by_depth},
            "lim/middle_gap": {"value": gap, "low": gap - 0.05, "high": gap + 0.05},
            "context_gain/gain": {
                "value": losses[0] - losses[-1], "low": losses[0] - losses[-1] - 0.02,
                "high": losses[0] - losses[-1] + 0.02, "context": contexts[-1],
                "shortest_context": contexts[0], "window": record["length"], "targets": 256,
                "places": 64, "split": "test", "text_sha256": sha,
                "by_context": [
                    {"context": c, "sum_nll": 16384 * loss, "tokens": 16384,
                     "gain": losses[0] - loss}
                    for c, loss in zip(contexts, losses, strict=True)
                ],
            },
        }  # fmt: skip

    record = copy.deepcopy(record)
    record["base"]["extended"] |= measured(0.0)
    own = 0.0 if record["method"] == "baseline" else lift + 0.01 * record["seed"]
    record["metrics"] |= measured(own)
    return record


def history(record: dict, steps: int = 40) -> list[dict]:
    """The lines of metrics.jsonl of a record."""
    rng = np.random.default_rng([record["seed"], len(record["method"])])
    return [
        {
            "step": i,
            "train/loss": 3.8 + 0.5 * math.exp(-i / 12) + float(rng.normal(0, 0.1)),
            "train/lr": 2e-4,
            "train/grad_norm": 1.0,
            "train/tokens": i * record["length"],
        }
        for i in range(1, steps + 1)
    ]


def write(folder: Path, *records: dict, with_history: bool = True) -> Path:
    """Write records as runs do: one directory each."""
    for record in records:
        directory = folder / record["name"]
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "result.json").write_text(json.dumps(record, indent=1))
        if with_history and record["training"]:
            lines = "".join(json.dumps(line) + "\n" for line in history(record))
            (directory / "metrics.jsonl").write_text(lines)
    return folder


# Component of the factorial -> its switch, its group if it has one, its parameters, and what it
# takes off the loss, nats per token.
COMPONENTS = {
    "position_bias": ("position_bias.enabled", "position_bias", 65, 0.001),
    "landmark": ("landmark.enabled", "landmark", 12_545, -0.01),
    "s2": ("s2_attn.enabled", "", 0, -0.05),
    "embeddings": ("train_embeddings", "position_embeddings", 1_048_576, 0.12),
    "norms": ("train_norms", "norms", 6_656, 0.02),
}


def factorial(length: int = 4096, seeds: int = 3, noise: float = 0.004) -> list[dict]:
    """rsLoRA, rsLoRA plus each component, HyLoRADA, HyLoRADA less each one."""
    arms = {"rslora": set(), "hylorada": set(COMPONENTS)}
    arms |= {f"rslora_{name}": {name} for name in COMPONENTS}
    arms |= {f"hylorada_no_{name}": set(COMPONENTS) - {name} for name in COMPONENTS}
    records = []
    for seed in range(seeds):
        for arm, on in arms.items():
            switches = {
                f"method__{switch.replace('.', '__')}": str(name in on).lower()
                for name, (switch, _, _, _) in COMPONENTS.items()
            }
            record = make_record(arm, seed, length, **switches)
            groups = {"lora": 811_008}
            groups |= {COMPONENTS[name][1]: COMPONENTS[name][2] for name in on if name != "s2"}
            record["parameters"] = {
                "total": 7_000_000, "trainable": sum(groups.values()), "by_group": groups,
            }  # fmt: skip
            level = 4.2 - sum(COMPONENTS[name][3] for name in on)
            record["metrics"] = metrics(level, length, seed, noise)
            records.append(record)
    return records


def sweep(lengths=(512, 4096), seeds=(0, 1, 2)) -> list[dict]:
    """A sweep with a baseline, four methods, and one that failed."""
    records = []
    for length in lengths:
        records.append(make_record("baseline", 0, length))
        for method in ("lora", "rslora", "longlora", "hylorada"):
            records += [make_record(method, seed, length) for seed in seeds]
    records.append(make_record("dora", 0, lengths[-1], status="diverged"))
    return copy.deepcopy(records)
