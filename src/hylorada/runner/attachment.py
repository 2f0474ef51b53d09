"""The model of a run: the base with its range extended, and what the settings put on it."""

from __future__ import annotations

from typing import Any

from hylorada.config import RunConfig
from hylorada.loading.finished_run import extend
from hylorada.methods import adapt
from hylorada.methods.adaptive_rule import from_method
from hylorada.methods.peft_methods import attach_peft_method
from hylorada.methods.position_range import RangeReport


def attach(config: RunConfig, model: Any) -> tuple[Any, RangeReport, dict[str, str]]:
    """Extend the range of a base and attach the adapter, in place.

    Args:
        config: the run's settings.
        model: the base, as it was loaded.

    Returns:
        The model, how it came to reach the window, and the components that it has no place for,
        each with the reason.

    Raises:
        ConfigError: the method does not fit the model.
    """
    length, seed = config.length.max_length, config.seed + config.method.adapter_seed
    if config.method.peft:
        attached = attach_peft_method(model, config.method, length, seed=seed)
        return attached.model, attached.range_report, dict(attached.left_out)
    method = from_method(config.method, length, model.config)
    if method is None:
        return model, extend(model, length, config.method.position_range), {}
    adapted: Any = adapt(model, method, length, seed=seed)
    left_out = dict(adapted.peft_config["default"].left_out)
    return adapted, adapted.base_model.range_report, left_out
