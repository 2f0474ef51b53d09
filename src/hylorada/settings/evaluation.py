"""Checks of `eval`: the settings of what is measured."""

from __future__ import annotations

from hylorada.config import RunConfig
from hylorada.errors import ConfigError
from hylorada.settings.measurements import check_slot, declared


def check_eval(config: RunConfig) -> None:
    """Refuses evaluations that are wrong by themselves or together.

    Args:
        config: the run's settings; each measurement checks its own among them.

    Raises:
        ConfigError: a setting out of its range, not among its choices, or without effect.
        DataError: a local path that does not exist.
    """
    check_slot(config.eval)
    there = declared()
    for measurement in there:
        measurement.check(config)
    if not any(measurement.enabled(config.eval) for measurement in there):
        ways = ", ".join(dict.fromkeys(measurement.switch for measurement in there))
        raise ConfigError(f"eval measures nothing; set one of {ways}")
