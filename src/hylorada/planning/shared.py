"""What each process of a run takes, from what one process takes; what nobody measured is said.

Assumed: the processes that share a step begin and end together, and messages take no time. Where
all of them compute on the cores of one machine, more threads than cores take turns.
"""

from __future__ import annotations

import dataclasses
import math

from torch import Tensor

from hylorada.architecture.labels import IGNORE
from hylorada.config import RunConfig
from hylorada.methods.adaptive_rule import resolved_switches
from hylorada.planning.cost import Shape, attention_span
from hylorada.planning.estimate import Rates
from hylorada.process.device import choose_device, refuse_too_many
from hylorada.settings.processes import check_world
from hylorada.training.plan import BlockSource


def refuse_processes(config: RunConfig, processes: int, here: bool) -> None:
    """Refuse a number of processes as the run does.

    Args:
        config: the run's settings.
        processes: of the run.
        here: whether they are to be on this machine.

    Raises:
        ConfigError: they do not fit the settings, or are more than GPUs.
    """
    check_world(config, processes)
    if here and processes > 1 and choose_device(config.device).type == "cuda":
        refuse_too_many(processes)


def in_segments(config: RunConfig, trained_length: int) -> bool:
    """Whether training attends in segments (S2)."""
    on = resolved_switches(config.method, config.length.max_length, trained_length)["s2_attn"]
    return bool(on and config.method.lora.enabled)


class FirstParts:
    """Of training sequences the tokens that one of several processes has, to measure it alone.

    Args:
        blocks: whole sequences.
        parts: that each is split into.
    """

    def __init__(self, blocks: BlockSource, parts: int) -> None:
        self._blocks, self.length = blocks, blocks.length // parts

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """The first part of one, with the positions that it has there.

        Where nothing is scored in it, as the answers of a retrieval example stand at the end, it
        has the labels of the last part.
        """
        whole = self._blocks[index]
        part = {name: row[..., : self.length] for name, row in whole.items()}
        if bool((part["labels"][..., 1:] == IGNORE).all()):
            part["labels"] = whole["labels"][..., -self.length :]
        return part


def of_last_part(rates: Rates, config: RunConfig, shape: Shape, segments: bool) -> None:
    """Make of what a short sequence took that of the last part of a long one, in place.

    In segments they are the same. With full attention its queries meet all tokens before them, of
    which it is sent the keys and values.

    Args:
        rates: of sequences as long as a part.
        config: the run's settings.
        shape: of its base.
        segments: whether training attends in segments.
    """
    parts, length, train = config.sequence_ranks, config.length.max_length, config.train
    s2 = config.method.s2_attn
    s2 = dataclasses.replace(s2, group_size=s2.group_size or length // 8 * 2)

    def step(tokens: int) -> float:
        count, recomputed = sum(rates.trained.values()), train.gradient_checkpointing
        return shape.step(tokens, count, recomputed, attention_span(s2, tokens, segments))

    rates.step *= step(length) / parts / step(length // parts)
    itemsize = 2 if train.precision in ("bf16", "fp16") else rates.itemsize
    rates.memory += bytes_of_others(config, shape, segments, itemsize)


def bytes_of_others(config: RunConfig, shape: Shape, segments: bool, itemsize: int) -> int:
    """Keys and values of other parts that a process holds for full attention, in bytes.

    Args:
        config: the run's settings.
        shape: of its base.
        segments: whether training attends in segments; of a halo no account is taken.
        itemsize: bytes of a key's or value's number.
    """
    parts, train, s2 = config.sequence_ranks, config.train, config.method.s2_attn
    tokens = config.length.max_length * (parts - 1) // parts * train.micro_batch_size
    layers: float = 1 if train.gradient_checkpointing else shape.layers
    if segments and not s2.full_share and s2.group_size < config.length.max_length:
        layers *= s2.full_layers + s2.full_heads  # one of them at most
    return int(layers * 2 * shape.kv_width * itemsize * tokens)


def shared(
    rates: Rates, config: RunConfig, shape: Shape | None, processes: int, here: bool, cores: float
) -> Rates:
    """What each of the processes takes.

    Args:
        rates: of one that has the whole step to do, of its part of each sequence.
        config: the run's settings.
        shape: of its base; None: it cannot be built without its weights.
        processes: that share the work.
        here: whether they are on this machine.
        cores: of it for each thread of theirs; below 1 they take turns.
    """
    train, parts = config.train, config.sequence_ranks
    on_cpu = here and choose_device(config.device).type == "cpu"
    turns = 1 / min(1.0, cores) if on_cpu else 1.0
    dealt = turns if config.shard_base else turns / processes
    largest = math.ceil(train.gradient_accumulation_steps / (processes // parts))
    notes = ["equal shares, nothing for messages"]
    if turns > 1:
        notes.append("cores by turns")
    memory = rates.memory
    if config.shard_base and memory:
        if shape is None:
            notes.append("memory of a whole base")
        else:
            whole = shape.in_layers * rates.itemsize
            layers_at_once = 1 if on_cpu else 2  # a GPU is given the next one meanwhile
            memory += whole // processes + layers_at_once * whole // shape.layers - whole
            notes.append("memory computed for a part of the base")
    if parts > 1:
        notes.append(f"parts of {config.length.max_length // parts:,} tokens")
    return dataclasses.replace(
        rates,
        known_from=f"{rates.known_from}; of {processes} processes assumed: {', '.join(notes)}",
        step=rates.step * turns * largest / train.gradient_accumulation_steps,
        gate=rates.gate * turns,
        base=rates.base * dealt,
        validation=rates.validation * dealt,
        evaluation={name: seconds * dealt for name, seconds in rates.evaluation.items()},
        memory=memory,
        processes=processes,
    )
