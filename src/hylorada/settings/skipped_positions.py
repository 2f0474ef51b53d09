"""`method.skipped_positions`: what it cannot stand beside, as far as settings tell."""

from __future__ import annotations

from hylorada.config import RunConfig
from hylorada.errors import ConfigError


def check_skipped_positions(config: RunConfig) -> None:
    """Refuses what would have no effect with rows that are cut short, or would undo them.

    Raises:
        ConfigError: naming the setting.
    """
    if not config.method.skipped_positions.enabled:
        return
    on = "method.skipped_positions.enabled=true"
    if not config.method.trains:
        raise ConfigError(
            f"{on} has no effect with method.lora.enabled=false (nothing trains); set it to false"
        )
    if config.method.s2_attn.enabled != "false":
        raise ConfigError(
            f"{on} trains on rows of the base's own length, which attention sees as a whole; set "
            "method.s2_attn.enabled=false"
        )
    if config.dataset.packing == "reset":
        raise ConfigError(
            f"{on} gives each row positions of its own, and so does dataset.packing=reset; use "
            "dataset.packing=documents"
        )
    if config.train.task != "text":
        raise ConfigError(
            f"{on} would cut the examples of train.task={config.train.task} into pieces; use "
            "train.task=text"
        )
    if config.train.max_tokens:
        raise ConfigError(
            f"train.max_tokens={config.train.max_tokens} counts whole blocks, and {on} scores one "
            "token fewer in each row of them; use train.max_steps or train.epochs"
        )
