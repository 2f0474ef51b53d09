"""What a run is expected to take, and where that is known from."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Rates:
    """What the parts of a kind of run take, in seconds; runs of one kind differ in their budget.

    Attributes:
        known_from: in words: a probe, earlier runs, an assumption.
        step: an optimizer step.
        start: everything before the gate: checks, text, weights.
        gate: the integrity gate.
        base: what is measured of the base, if no other run has done it.
        validation: one validation between two steps.
        evaluation: by measurement, of the trained model.
        memory: bytes at the peak of training, of each process; 0 where nothing trains.
        itemsize: bytes of a number of the base's weights.
        processes: that share the work.
        trained: values that train, by component.
        left_out: measurements whose time is not in it.
        base_measured: whether the base was measured already.
    """

    known_from: str
    step: float = 0.0
    start: float = 0.0
    gate: float = 0.0
    base: float = 0.0
    validation: float = 0.0
    evaluation: dict[str, float] = field(default_factory=dict)
    memory: int = 0
    itemsize: int = 0
    processes: int = 1
    trained: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    base_measured: bool = False


@dataclass
class Estimate:
    """One run.

    Attributes:
        steps: optimizer steps in all.
        steps_left: of these, those to be done.
        tokens: scored, in all steps that are done by then.
        sequences: read, in the same.
        evaluated: tokens that each measurement runs through the model.
        rates: of its kind.
        seconds: that are left, by phase.
        in_time: whether `train.max_seconds` is expected to end training before the last step.
    """

    steps: int
    steps_left: int
    tokens: int
    sequences: int
    evaluated: dict[str, int]
    rates: Rates
    seconds: dict[str, float]
    in_time: bool = False

    @property
    def total(self) -> float:
        """Seconds that are left."""
        return sum(self.seconds.values())


def size(count: int) -> str:
    """Bytes in words: 512 MiB, 2.1 GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
