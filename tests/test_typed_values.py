"""A value becomes what OmegaConf makes of it for its field, and what it refuses is refused."""

from __future__ import annotations

import functools
import math
from operator import attrgetter
from typing import Any

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hylorada import compose
from hylorada.config import (
    ContextGainConfig,
    DatasetConfig,
    LostInMiddleConfig,
    MethodConfig,
    RunConfig,
    TrainConfig,
)
from hylorada.config.rules import OPEN_KEYS
from hylorada.errors import ConfigError

OF_EACH_TYPE = {
    "seed": RunConfig, "train.lr": TrainConfig, "train.frozen_kernels": TrainConfig,
    "dataset.text_column": DatasetConfig, "dataset.tasks": DatasetConfig,
    "eval.context_gain.contexts": ContextGainConfig,
    "eval.lost_in_middle.depths": LostInMiddleConfig,
    "method.peft": MethodConfig,
}  # fmt: skip
VALUES = [
    0, 3, -1, 2.5, math.inf, True, "7", "2.0", "1e-3", "a", "", "yes", "???", None, [], [1], [0.5],
    [1, 0.5], ["a"], [None], {}, {"r": 3, "a": [1, {"b": "2"}]},
]  # fmt: skip


@pytest.mark.parametrize("key", OF_EACH_TYPE)
def test_a_value_becomes_what_omegaconf_makes_of_it_or_is_refused(key: str) -> None:
    name = key.rpartition(".")[2]
    for value in VALUES:
        own = value if not isinstance(value, dict) or key in OPEN_KEYS else {"x": 1}
        tree: Any = functools.reduce(lambda inner, k: {k: inner}, reversed(key.split(".")), own)
        try:
            schema = OmegaConf.structured(OF_EACH_TYPE[key])
            OmegaConf.update(schema, name, own, merge=False)
            expected = getattr(OmegaConf.to_object(schema), name)
        except OmegaConfBaseException:
            with pytest.raises(ConfigError, match=f"{key} is .*; it must be|one value, not a"):
                compose.to_typed(tree)
            continue
        found = attrgetter(key)(compose.to_typed(tree))
        assert found == expected
        assert repr(found) == repr(expected)  # 1 is no 1.0
