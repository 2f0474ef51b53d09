"""Models that come with their RoPE scaled already, scaled once more.

Their configs are written in two ways: `max_position_embeddings` counts the positions before the
scaling or after it, and nothing tells which. So the user says how long the texts of the training
were (``model.trained_length``, T tokens), and max_length L is reached from there:

* trained as it stands, scaling included: the scaling's own factor is multiplied by ceil(L / T). For
  ``linear`` the frequencies are divided by both factors; ``yarn`` (arXiv:2309.00071, section 4.2,
  which goes from 16 to 32 in this way) and ``llama3`` keep the length that they start from, and
  blend the same dimensions; ``dynamic`` grows from the same length, by the larger factor.
* T is not above the length at which the scaling sets in: the model was trained before it was
  scaled. The scaling is taken away and replaced by one from T, of any type.

``longrope`` has a factor for each dimension, found by search, so only the second way is open to it.
"""

from __future__ import annotations

from typing import Any

from hylorada.errors import ConfigError

_BY_FACTOR = ("linear", "yarn", "llama3", "dynamic")
_OF_A_SCALING = {
    "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
    "mscale", "mscale_all_dim", "truncate", "low_freq_factor", "high_freq_factor", "long_factor",
    "short_factor",
}  # fmt: skip


def starts_at(own: dict[str, Any], count: int) -> int:
    """The length up to which the scaling leaves a model as it was trained before; 0 if unknown.

    Args:
        own: the settings of a table, as `rope_parameters` has them.
        count: positions, by the config.
    """
    if own.get("rope_type") == "dynamic":  # which does nothing below
        return count
    return int(own.get("original_max_position_embeddings") or 0)


def unscaled(own: dict[str, Any]) -> dict[str, Any]:
    """The settings without the scaling."""
    return {
        **{key: value for key, value in own.items() if key not in _OF_A_SCALING},
        "rope_type": "default",
    }


def scaled_further(
    kind: str, own: dict[str, Any], wanted: str, factor: float, length: int
) -> dict[str, Any]:
    """The settings of a model that was trained with its scaling.

    Args:
        kind: of the model, for messages.
        own: the settings of a table.
        wanted: rope_type of the extension.
        factor: of the extension.
        length: to be reached, in tokens.

    Raises:
        ConfigError: its scaling has no factor, or another type is wanted.
    """
    comes = str(own["rope_type"])
    if comes not in _BY_FACTOR or not own.get("factor"):
        raise ConfigError(
            f"position_range: {kind} comes with rope_type={comes}, which has no factor that could "
            f"be multiplied, and cannot be rescaled to {length}; use rope_type=none, or a length "
            "that it was trained on"
        )
    if wanted not in ("auto", comes):
        raise ConfigError(
            f"position_range.rope_type={wanted}: {kind} was trained with rope_type={comes} and can "
            "only be scaled further in that way; use rope_type=auto"
        )
    return {**own, "factor": own["factor"] * factor}


def readings(own: dict[str, Any], count: int) -> tuple[int, int]:
    """How long the texts of the training were: before it was scaled, or with the scaling.

    Where the scaling does not say from which length it starts, the first is the reading in which
    the config counts the positions after the scaling.

    Args:
        own: the settings of a table.
        count: positions, by the config.
    """
    start, factor = starts_at(own, count), own.get("factor") or 1.0
    if start == 0:
        return count, int(count * factor)
    return start, count if count > start else int(start * factor)


def ask(kind: str, own: dict[str, Any], count: int, length: int) -> ConfigError:
    """The error that names both readings, and the key to choose one by."""
    first, second = readings(own, count)
    scaling = f"rope_type={own['rope_type']}"
    if own.get("factor"):
        scaling += f", factor {own['factor']:g}"
    if starts_at(own, count):
        how = f"trained on {first} tokens and scaled since, or on {second} with the scaling"
    else:
        how = (
            f"trained on {first} tokens, if its {count} positions are counted after the scaling, "
            f"or on {second}, if before"
        )
    return ConfigError(
        f"position_range: {kind} comes scaled already ({scaling}, {count} positions), so how to "
        f"reach {length} is ambiguous: it was {how}; say which by model.trained_length={first} or "
        f"model.trained_length={second}, or use rope_type=none"
    )
