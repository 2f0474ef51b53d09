"""Every run of a command before it starts: refused or not, how many steps, how long, how much.

Nothing is written below `output_root`, and nothing trains. What a run would be refused for before
it trains is refused here with the same line; the gate alone is not asked. Seconds come from
finished runs of the same kind, else from a probe, one for each kind; for a machine that is not
here from operations and an assumption, which the line then names.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hylorada.config import RunConfig, TrainConfig, to_dict
from hylorada.errors import ConfigError, DataError, HyloradaError
from hylorada.evaluation.portion import Cost
from hylorada.loading.backbone import Blueprint, stored
from hylorada.planning.assumed import assumed
from hylorada.planning.cost import Shape, shape_of
from hylorada.planning.earlier_runs import EarlierRuns, kind_of
from hylorada.planning.estimate import Estimate, Rates
from hylorada.planning.probe import probe
from hylorada.planning.published import is_published, published_base, published_text
from hylorada.planning.shared import in_segments, of_last_part, refuse_processes, shared
from hylorada.planning.text import Text, read_text
from hylorada.process.beside import available_cores
from hylorada.process.device import choose_autocast, choose_device, choose_dtype
from hylorada.records.outcome import explained
from hylorada.records.provenance import hardware
from hylorada.records.result import blank_result
from hylorada.runner.earlier_attempt import check_hardware, newest_state
from hylorada.runner.measure import PRECISIONS
from hylorada.runner.preflight import Preflight, without_weights
from hylorada.training.plan import make_plan


@dataclass
class Planned:
    """A run that was looked at.

    Attributes:
        directory: of the run.
        config: its settings.
        refusal: why it cannot run here; None if it can.
        estimate: what it takes; None where not even that can be told.
    """

    directory: str
    config: RunConfig
    refusal: HyloradaError | None = None
    estimate: Estimate | None = None


class Planner:
    """Looks at runs one after the other; what they have in common is read and timed once.

    Args:
        here: whether they run on this machine; see `Preflight.check`.
        threads: that each of them computes with, where its settings leave it open.
        working: called with what takes a while, around it.
        tasks: processes that a launcher starts for each of them.
    """

    def __init__(
        self, here: bool, threads: int, working: Callable[[str], Any], tasks: int = 1
    ) -> None:
        self._here, self._threads, self._working = here, threads, working
        self._tasks = tasks
        self._preflight = Preflight()
        self._known: dict[str, Any] = {}
        self._bases: set[str] = set()

    def plan(self, runs: Mapping[str, RunConfig]) -> Iterator[Planned]:
        """Each run, by its directory, as soon as it was looked at."""
        for directory, config in runs.items():
            found = Planned(directory, config)
            try:
                with _silence():
                    self._look_at(found)
            except HyloradaError as error:
                found.refusal = found.refusal or error
            except (RuntimeError, MemoryError) as error:
                known = explained(error, Path(directory), blank_result(config))
                if not isinstance(known, HyloradaError):
                    raise
                found.refusal = known
            yield found

    def _look_at(self, found: Planned) -> None:
        config, here = found.config, self._here
        read, processes = read_text, self._tasks if config.processes == 1 else config.processes
        refuse_processes(config, processes, here)
        try:
            opened = self._preflight.check(config, here=here)
        except HyloradaError as error:
            opened_elsewhere = None if here else self._published(config, error)
            if opened_elsewhere is not None:
                opened, read = opened_elsewhere, published_text
            else:
                found.refusal = error
                if not here or config.device != "cuda":
                    raise
                here = False  # a plan for where there is a GPU, told as one
                opened = self._preflight.check(config, here=False)
        state: dict[str, Any] | None = None
        if config.resume != "never":
            state = newest_state(Path(found.directory) / "checkpoints")
        if here and state is not None:
            check_hardware(state, _hardware(config, opened), config)
        with self._working("text"):
            text = self._text(config, opened, read)
        text.check_budget(config.train)
        shape = self._shape(config, opened)
        kind = f"{kind_of(to_dict(config))} {processes} {config.output_root}"
        if kind not in self._known:
            self._known[kind] = self._rates(config, opened, text, shape, here, processes)
        found.estimate = self._estimate(config, state or {}, text, shape, self._known[kind])

    def _rates(
        self,
        config: RunConfig,
        opened: Blueprint,
        text: Text,
        shape: Shape | None,
        here: bool,
        processes: int,
    ) -> Rates:
        trained = self._preflight.trained(config, opened)
        if not here and config.device != "cpu":
            if shape is None:
                raise ConfigError(
                    f"dry_run: {config.model.path} cannot be built without its weights, so what it "
                    "takes on another machine is not known; plan it on the one that runs it"
                )
            rates = assumed(config, shape, text, trained or {})
            return rates if processes == 1 else shared(rates, config, shape, processes, False, 1.0)
        cores = available_cores()
        threads = self._threads if processes == 1 else max(1, cores // processes)
        threads = config.threads or threads
        device = hardware(choose_device(config.device))
        place = f"earlier runs, {config.output_root}, {device}, {threads}"
        if place not in self._known:
            self._known[place] = EarlierRuns(config.output_root, device, threads)
        found: Rates | None = self._known[place].rates(config, processes)
        if found is None:
            config = copy.deepcopy(config)
            config.threads = threads
            with self._working(f"probe of {config.method.name} at {config.length.name}"):
                found = probe(config, opened, text, _cost(shape))
            if config.sequence_ranks > 1 and shape is not None:
                of_last_part(found, config, shape, in_segments(config, text.trained_length))
            if processes > 1:
                found = shared(found, config, shape, processes, here, cores / (processes * threads))
        return found

    def _estimate(
        self,
        config: RunConfig,
        state: dict[str, Any],
        text: Text,
        shape: Shape | None,
        rates: Rates,
    ) -> Estimate:
        train = config.train
        steps = sequences = done = left = 0
        in_time = False
        training = 0.0
        if text.blocks is not None:
            plan = make_plan(len(text.blocks), text.blocks.length, train)
            steps, sequences, done = plan.steps, plan.sequences, int(state.get("step", 0))
            left = max(0, steps - done)
            if train.max_seconds and rates.step:  # the step under way is finished
                spent = float(state.get("seconds", 0.0))
                fit = math.ceil(max(0.0, train.max_seconds - spent) / rates.step)
                in_time, left = fit < left, min(fit, left)
            end = done + left
            sequences = min(sequences, end * plan.batch)
            training = left * rates.step + _validations(train, done, end) * rates.validation
        evaluated = {}
        for part in text.prepared.parts:
            portion = part.measurement.portion(part.asked, _cost(shape))
            if portion is not None:
                evaluated[part.measurement.title] = portion.tokens
        phases = {
            "start": rates.start,
            "gate": rates.gate,
            "base": 0.0 if rates.base_measured or not self._first_of_base(config) else rates.base,
            "training": training,
            **rates.evaluation,
        }
        length = config.length.max_length
        return Estimate(
            steps, left, sequences * length, sequences, evaluated, rates,
            {name: seconds for name, seconds in phases.items() if seconds}, in_time,
        )  # fmt: skip

    def _first_of_base(self, config: RunConfig) -> bool:
        """Whether none of the runs so far measures the same base."""
        settings = to_dict(config)
        names = ("output_root", "model", "dataset", "eval", "device", "threads")
        what = [settings[name] for name in names]
        what += [config.length.max_length, dataclasses.asdict(config.method.position_range)]
        key = json.dumps([*what, config.train.precision, config.train.frozen_kernels])
        first = key not in self._bases
        self._bases.add(key)
        return first

    def _published(self, config: RunConfig, error: HyloradaError) -> Blueprint | None:
        """A base by its published size, where it or the text is not here and both are known."""
        if not isinstance(error, DataError) or not is_published(config.dataset):
            return None
        key = json.dumps(["published", config.model], default=dataclasses.asdict)
        if key not in self._known:
            self._known[key] = published_base(config.model)
        return self._known[key]

    def _text(
        self, config: RunConfig, opened: Blueprint, read: Callable[[RunConfig, Blueprint], Text]
    ) -> Text:
        train = config.train
        what = [config.model, config.dataset, config.length.max_length, config.eval]
        what += [config.method.trains, train.task, train.retrieval, train.mix]
        what += [bool(train.eval_every)]
        what += [config.method.skipped_positions]
        key = json.dumps(["text", *what], default=dataclasses.asdict)
        if key not in self._known:
            self._known[key] = read(config, opened)
        return self._known[key]

    def _shape(self, config: RunConfig, opened: Blueprint) -> Shape | None:
        key = json.dumps(["shape", config.model], default=dataclasses.asdict)
        if key not in self._known:
            model = without_weights(config.model, opened)
            self._known[key] = None if model is None else shape_of(model)
        return self._known[key]


def _hardware(config: RunConfig, opened: Blueprint) -> dict[str, str]:
    """The kind of device of this machine and the precision of a run on it, as checkpoints say."""
    device, precision = choose_device(config.device), config.train.precision
    weights = choose_dtype(config.model.dtype, precision, device, lambda: stored(opened))
    computed = weights if weights == torch.bfloat16 else choose_autocast(precision, device)
    return {"device": device.type, "precision": PRECISIONS[computed]}


def _validations(train: TrainConfig, done: int, end: int) -> int:
    """How many there are from one step on until training ends after another."""
    if not train.eval_every or end <= done:
        return 0
    between = (end - 1) // train.eval_every - done // train.eval_every
    return between + train.keep_best  # of which the last weights are one


def _cost(shape: Shape | None) -> Cost:
    """Of a forward pass; of a model that cannot be built without weights, its tokens."""
    return (lambda tokens, scored=None: float(tokens)) if shape is None else shape.forward


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """What a run would say of itself is not said of its plan; warnings are."""
    package = logging.getLogger("hylorada")
    level = package.level
    package.setLevel(logging.WARNING)
    try:
        yield
    finally:
        package.setLevel(level)


def threads_of(jobs: int) -> int:
    """Threads of each of so many runs side by side: torch's own number for one alone."""
    return torch.get_num_threads() if jobs == 1 else max(1, available_cores() // jobs)
