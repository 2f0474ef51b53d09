"""Which settings can be chosen on the validation split."""

from __future__ import annotations

from collections.abc import Sequence

from hylorada.command_line.suggest import did_you_mean
from hylorada.config.fields import within
from hylorada.config.rules import FACTS, OPEN_KEYS
from hylorada.errors import ConfigError


def keys_of(words: Sequence[str]) -> tuple[str, ...]:
    """The settings that are named, each checked to be one that can be chosen.

    Args:
        words: keys, several in one separated by commas.

    Raises:
        ConfigError: no key, an unknown one, or one that belongs to no arm.
    """
    keys = tuple(dict.fromkeys(k.strip() for word in words for k in word.split(",") if k.strip()))
    if not keys:
        raise ConfigError("select: name the settings to choose, as in train.lr")
    able = [
        key
        for key, facts in FACTS.items()
        if key.startswith(("train.", "method."))
        and facts.changes in ("numbers", "arm")
        and not any(other.startswith(f"{key}.") for other in FACTS)
        and key not in ("method.name", *OPEN_KEYS)
    ]
    for key in keys:
        if key in FACTS and key not in able:
            raise ConfigError(
                f"{key} cannot be chosen on the validation split; only a setting of train or "
                "method that changes numbers can, as train.lr"
            )
        if key not in able and not within(key, OPEN_KEYS):
            near = did_you_mean(key, able) or "; hylorada-train --cfg job prints all there are"
            raise ConfigError(f"select: there is no setting {key} to choose{near}")
    return keys
