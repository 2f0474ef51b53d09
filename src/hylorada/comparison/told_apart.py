"""What tells settings apart, in words; settings are flat: `lora.r` -> 8."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hylorada.config.fields import within

LR_SCALE = "train.lr_scale"


def differing_keys(trees: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that are not equal in all, in alphabetical order."""
    keys = sorted({key for tree in trees for key in tree})
    return [key for key in keys if len({json.dumps(tree.get(key)) for tree in trees}) > 1]


def differences(trees: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each tree the values of the keys that are not equal in all that have them, as text.

    An adapter that was only measured has no settings of training, and says that in their place.
    """
    keys = [key for key in differing_keys(trees) if key != "train"]  # a group, or null as a whole
    told = [key for key in keys if len({json.dumps(t[key]) for t in trees if key in t}) > 1]
    texts = []
    for tree in trees:
        words = [f"{key}={tree[key]}" for key in told if key in tree]
        texts.append(", ".join([*words, *(["not trained here"] if "train" in tree else [])]))
    return texts


def settings_in_short(trees: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each tree the settings that are not equal in all, as in "r=16 position_bias=false".

    A group's own learning rate is told in any case.
    """
    rates = [key for key in trees[0] if within(key, [LR_SCALE])]
    keys = [key for key in differing_keys(trees) if key not in rates]
    short = {key: key.removesuffix(".enabled").rpartition(".")[2] for key in keys}
    names = list(short.values())
    shown = {key: name if names.count(name) == 1 else key for key, name in short.items()}
    texts = []
    for tree in trees:
        words = [f"{shown[key]}={_value(tree.get(key))}" for key in keys]
        words += [f"{k.removeprefix('train.')}={tree[k]}" for k in rates if tree.get(k, 1) != 1]
        texts.append(" ".join(words))
    return texts


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")
