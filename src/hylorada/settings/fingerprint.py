"""What makes two runs the same one: the settings that can change a number, in one spelling each.

A fingerprint is that of the settings which differ from `IMPLIED`, so a key that is added with a
line there renames no directory. The lines never change: where a default is changed in `config`,
runs under the new one are named by it, and none takes the place of one under the old default. The
line of a new key holds the value under which a run does what it did before there was the key.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath, PurePosixPath
from typing import Any

from hylorada.config import RunConfig, to_dict
from hylorada.config.rules import ASIDE_KEYS, HUB_KEYS, LOCAL_KEYS, OPEN_KEYS
from hylorada.process import redaction

IMPLIED: dict[str, Any] = {
    "seed": 0,
    "device": "auto",
    "threads": 0,
    "sequence_ranks": 1,
    "length.max_length": 4096,
    "method.lora.enabled": True,
    "method.lora.r": 8,
    "method.lora.lora_alpha": 16,
    "method.lora.lora_dropout": 0,
    "method.lora.use_rslora": True,
    "method.lora.use_dora": False,
    "method.lora.init": "orthogonal",
    "method.lora.target_modules": ["auto"],
    "method.position_bias.enabled": "auto",
    "method.position_bias.buckets": 64,
    "method.position_bias.bucketing": "log2",
    "method.landmark.enabled": "auto",
    "method.landmark.num_landmarks": 8,
    "method.landmark.pooling": "prefix_mean",
    "method.landmark.position_buckets": 32,
    "method.s2_attn.enabled": "auto",
    "method.s2_attn.group_size": 2048,
    "method.s2_attn.shift": "layers",
    "method.s2_attn.in_evaluation": False,
    "method.s2_attn.full_layers": 0,
    "method.s2_attn.full_heads": 0,
    "method.s2_attn.full_share": 0,
    "method.s2_attn.full_steps": "last",
    "method.s2_attn.largest_group": 0,
    "method.position_range.learned_init": "interpolate",
    "method.position_range.rope_type": "auto",
    "method.position_range.rope_factor": 0,
    "method.skipped_positions.enabled": False,
    "method.train_embeddings": "auto",
    "method.train_norms": "auto",
    "method.adapter_seed": 0,
    "method.placebo": False,
    "method.peft": {},
    "model.name": "tiny",
    "model.path": "embedded",
    "model.revision": "",
    "model.attn_implementation": "sdpa",
    "model.dtype": "auto",
    "model.quantization": "none",
    "model.trained_length": 0,
    "dataset.name": "stdlib",
    "dataset.kind": "stdlib",
    "dataset.hub_id": "",
    "dataset.hub_config": "",
    "dataset.revision": "",
    "dataset.path": "",
    "dataset.text_column": "text",
    "dataset.tasks": [],
    "dataset.packing": "documents",
    "dataset.max_documents": 0,
    "train.task": "text",
    "train.retrieval.sequences": 4096,
    "train.retrieval.items": 0,
    "train.retrieval.key_style": "uuid",
    "train.retrieval.held_out": [0, 0.25, 0.5, 0.75, 1],
    "train.mix": 0,
    "train.epochs": 0,
    "train.max_steps": 40,
    "train.max_tokens": 0,
    "train.max_seconds": 0,
    "train.micro_batch_size": 1,
    "train.gradient_accumulation_steps": 1,
    "train.lr": 0.003,
    "train.lr_scale.lora_A": 1,
    "train.lr_scale.lora_B": 1,
    "train.lr_scale.position_bias": 1,
    "train.lr_scale.landmark": 1,
    "train.lr_scale.embeddings": 1,
    "train.lr_scale.norms": 1,
    "train.lr_scheduler": "cosine",
    "train.min_lr_ratio": 0,
    "train.warmup_ratio": 0.03,
    "train.weight_decay": 0.01,
    "train.adam_beta1": 0.9,
    "train.adam_beta2": 0.999,
    "train.adam_epsilon": 1e-08,
    "train.max_grad_norm": 1,
    "train.precision": "auto",
    "train.gradient_checkpointing": False,
    "train.gradient_checkpointing_every": 1,
    "train.gradient_checkpointing_offload": False,
    "train.max_nonfinite_steps": 3,
    "train.loss_spike": "none",
    "train.loss_spike_deviations": 8,
    "train.eval_every": 0,
    "train.keep_best": False,
    "train.patience": 0,
    "train.loss_chunk": 512,
    "train.deterministic": False,
    "train.compile": "none",
    "train.frozen_kernels": True,
    "eval.perplexity.conventions": ["blocks", "sliding"],
    "eval.perplexity.split": "test",
    "eval.perplexity.stride": 0,
    "eval.perplexity.max_tokens": 500000,
    "eval.perplexity.max_blocks": 0,
    "eval.perplexity.batch_size": 1,
    "eval.perplexity.position_buckets": 8,
    "eval.lost_in_middle.enabled": True,
    "eval.lost_in_middle.form": "kv",
    "eval.lost_in_middle.path": "",
    "eval.lost_in_middle.examples": 40,
    "eval.lost_in_middle.depths": [0, 0.25, 0.5, 0.75, 1],
    "eval.lost_in_middle.items": 0,
    "eval.lost_in_middle.key_style": "uuid",
    "eval.lost_in_middle.scorings": ["ranked"],
    "eval.lost_in_middle.max_new_tokens": 0,
    "eval.lost_in_middle.seed": 0,
    "eval.context_gain.enabled": False,
    "eval.context_gain.contexts": [128, 256, 512, 1024, 2048, 4096, 8192],
    "eval.context_gain.targets": 256,
    "eval.context_gain.places": 64,
    "eval.harness.enabled": False,
    "eval.harness.tasks": ["longbench"],
    "eval.harness.limit": 0,
    "eval.harness.longbench_path": "",
    "eval.harness.longbench_hub_id": "zai-org/LongBench",
    "eval.harness.longbench_revision": "5e628be450b7e67fb7ae6e201bd6d8f7056f7672",
    "eval.measurements": {},
    "integrity.enabled": True,
    "integrity.allow_leak": False,
    "integrity.probe_length": 0,
}


def counted(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that can change a number or what a record proves, by dotted key.

    One spelling each: `a/` and `./a` are `a`, 16.0 is 16. Of a part that is switched off only that
    counts. What is as `IMPLIED` says is left out, so that a record from before a key existed has
    the same ones as a new one.

    Args:
        settings: as `to_dict` or a record has them.
    """

    def walk(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        off = tree.get("enabled") in (False, "false")
        for name, value in {"enabled": tree["enabled"]}.items() if off else tree.items():
            key = f"{prefix}{name}"
            if key in ASIDE_KEYS:
                continue
            if isinstance(value, Mapping):
                yield from walk(value, f"{key}.")
                if not value and key not in OPEN_KEYS:  # an added part with all of its defaults
                    yield key, {}
            elif key in LOCAL_KEYS or key in HUB_KEYS:
                yield key, _one_place(value, key in HUB_KEYS)
            else:
                yield key, _one_number(value)

    missing = object()
    return {k: v for k, v in walk(settings, "") if v != IMPLIED.get(k, missing)}


def _one_place(path: str, hub: bool) -> str:
    """A path without `//`, `/.` and a slash at its end; `..` stays, since `a` may be a link."""
    plain = str(PurePosixPath(re.sub("//+", "/", path))) if path else path
    # `./org/a` is a folder, `org/a` may be on the hub.
    return f"./{plain}" if hub and path.startswith("./") else plain


def _one_number(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_one_number(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def fingerprint(config: RunConfig) -> str:
    """Ten hexadecimal digits of the sha256 of the settings that tell it from a run of defaults."""
    text = json.dumps(counted(to_dict(config)), sort_keys=True, separators=(",", ":"))
    text = redaction.without_accounts(text)  # a name gives nobody a hint at a password
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def run_name(config: RunConfig) -> str:
    """``<method>-<length>-seed<N>-<fingerprint>``."""
    return f"{config.method.name}-{config.length.name}-seed{config.seed}-{fingerprint(config)}"


def group_name(config: RunConfig) -> str:
    """The folder that a run's directory lies in, under output_root."""
    return config.group or config.experiment


def run_dir(config: RunConfig) -> str:
    """``<output_root>/<group>/<run_name>``."""
    return str(PurePath(config.output_root, group_name(config), run_name(config)))
