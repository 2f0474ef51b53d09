"""`train.lr_scale`: what can be said without the model of learning rates that have no effect."""

from __future__ import annotations

import dataclasses

from hylorada.config import RunConfig
from hylorada.errors import ConfigError


def check_rates(config: RunConfig) -> None:
    """Refuses a learning rate of its own for a component that is switched off.

    What "auto" comes to is known with the model (`training.group_rates`). The baseline, which
    trains nothing, carries these settings unused, as it does `train.lr`: it is an arm of sweeps.

    Raises:
        ConfigError: naming the setting.
    """
    method = config.method
    if not method.trains:
        return
    off = {
        "position_bias": ("method.position_bias.enabled", method.position_bias.enabled),
        "landmark": ("method.landmark.enabled", method.landmark.enabled),
    }
    if method.peft:
        kind = method.peft.get("peft_type")
        off = dict.fromkeys(off, (f"method.peft ({kind})", "false"))
    else:  # other methods of peft may train these by settings of their own
        off["embeddings"] = ("method.train_embeddings", method.train_embeddings)
        off["norms"] = ("method.train_norms", method.train_norms)
    for name, scale in dataclasses.asdict(config.train.lr_scale).items():
        key, switch = off.get(name, ("", ""))
        if scale == 1 or switch != "false":
            continue
        why = f"with {key}" if method.peft else f"with {key}=false"
        also = "" if method.peft else f", or {key} to true"
        raise ConfigError(
            f"train.lr_scale.{name}={scale:g} has no effect {why}: nothing of that group trains; "
            f"set it to 1{also}"
        )
