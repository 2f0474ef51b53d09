"""How many processes a run may have. Without torch."""

from __future__ import annotations

from hylorada.config import RunConfig
from hylorada.errors import ConfigError
from hylorada.process.counts import number_of


def check_world(config: RunConfig, processes: int) -> None:
    """Refuse a number of processes that does not fit the settings.

    Args:
        config: the run's settings.
        processes: of the run, whoever starts them.

    Raises:
        ConfigError: some would have no micro-batch, or no part of a sequence or of the base.
    """
    shared = config.sequence_ranks
    if processes % shared:
        raise ConfigError(
            f"sequence_ranks={shared} does not divide the number of processes, {processes}; use a "
            f"multiple of {shared}, as in processes={shared}"
        )
    if config.shard_base and processes == 1:
        raise ConfigError(
            "shard_base=true has no effect on one process; set processes=N, or shard_base=false"
        )
    check_share(config, processes)


def check_share(config: RunConfig, processes: int) -> None:
    """Refuse more processes than a training step has micro-batches.

    Args:
        config: the run's settings.
        processes: of the run.

    Raises:
        ConfigError: some would never have one.
    """
    accumulated, shared = config.train.gradient_accumulation_steps, config.sequence_ranks
    if processes > 1 and config.method.trains and processes // shared > accumulated:
        sequences = number_of(config.train.micro_batch_size * accumulated, "sequence")
        micro_batches = number_of(accumulated, "micro-batch", "micro-batches")
        groups = f" in groups of {shared}" if shared > 1 else ""
        raise ConfigError(
            f"{processes} processes{groups}, but a step has {micro_batches} "
            "(train.gradient_accumulation_steps) for them to share; use fewer processes, or divide "
            f"the step's {sequences} into more micro-batches: lower train.micro_batch_size and "
            "raise train.gradient_accumulation_steps"
        )


def check_dropout(config: RunConfig) -> None:
    """Refuse dropout where each process would draw its own.

    Raises:
        ConfigError: naming it.
    """
    dropout = config.method.lora.lora_dropout
    if config.processes > 1 and config.method.trains and dropout:
        raise ConfigError(
            f"method.lora.lora_dropout={dropout:g} with processes={config.processes}: each process "
            "would draw its own random numbers; set lora_dropout=0 or processes=1"
        )


def check_parts(config: RunConfig) -> None:
    """Refuse settings that exclude sequences split over processes, or a base shared out over them.

    What only a model tells, `methods.split_limits` finds.

    Raises:
        ConfigError: naming both settings.
    """
    shared, length = config.sequence_ranks, config.length.max_length
    if shared > 1:
        what, back = f"sequence_ranks={shared}", "or sequence_ranks=1"
        if not config.method.trains:
            raise ConfigError(
                f"{what} has no effect on method={config.method.name}, which trains nothing; set "
                "sequence_ranks=1"
            )
        if length % shared:
            raise ConfigError(
                f"{what} does not divide length.max_length={length}; use another length {back}"
            )
        if config.method.skipped_positions.enabled:
            raise ConfigError(
                f"{what} and method.skipped_positions.enabled=true exclude each other (its "
                f"training rows are short); set it to false {back}"
            )
        if config.method.s2_attn.largest_group:
            raise ConfigError(
                f"{what} and method.s2_attn.largest_group exclude each other (segments of "
                f"random length may cross any boundary between parts); set it to 0 {back}"
            )
    for key, used in (("sequence_ranks", shared > 1), ("shard_base", config.shard_base)):
        if used and config.train.compile == "layers":
            raise ConfigError(
                f"{key} and train.compile=layers exclude each other (communication within a layer "
                f"cannot be compiled); set train.compile=none"
            )
    if config.shard_base and config.model.quantization != "none":
        raise ConfigError(
            f"shard_base=true and model.quantization={config.model.quantization} exclude each "
            "other (quantised weights cannot be sharded); use only one of them"
        )
