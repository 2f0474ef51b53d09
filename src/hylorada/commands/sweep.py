"""Every combination of a sweep, each in a directory of its own."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from hylorada import compose
from hylorada.command_line.hydra_internals import Hydra, instantiate_launcher
from hylorada.command_line.overrides import without_references
from hylorada.commands.dry_run import dry_run
from hylorada.commands.job import NOWHERE, JobBeside, Outcome, run_job
from hylorada.commands.overview import Overview
from hylorada.commands.queue import is_queue, queued, run_queued, tasks_of
from hylorada.commands.terminal_lines import complain, say
from hylorada.config import RunConfig, to_dict
from hylorada.errors import ConfigError, DiskError, HyloradaError
from hylorada.loading.inputs import Inputs
from hylorada.process.beside import available_cores, handed_on
from hylorada.process.counts import number_of
from hylorada.process.disk import make_directory
from hylorada.process.place import place
from hylorada.process.redaction import remember
from hylorada.runner.earlier_attempt import already_done, check_start
from hylorada.settings import check_settings
from hylorada.settings.fingerprint import run_dir, run_name


def sweep(hydra: Hydra, overrides: list[str], own: Path | None, planned: str) -> int:
    """Every cell runs, whatever happens to the others; the first failure gives the exit code.

    Args:
        hydra: opened.
        overrides: the words, rewritten.
        own: a folder with more groups.
        planned: only tell what would run (`dry_run`): "true", or "elsewhere", on no machine here.
    """
    if place().world > 1:
        raise ConfigError(
            "-m as one of several processes (torchrun, tasks of SLURM): each would run all cells; "
            "start one process with processes=N, or one run without -m"
        )
    sweeps = compose.by_experiment(hydra, overrides)
    masters = [
        compose.compose(hydra, [*words, "hydra.mode=MULTIRUN"], multirun=True) for words in sweeps
    ]
    master = masters[0]  # of the launcher, which all have
    failed: list[Outcome] = []
    done: list[str] = []
    pending: dict[str, list[str]] = {}
    waiting: dict[str, RunConfig] = {}
    inputs = Inputs()

    def refuse(name: str, error: HyloradaError) -> None:
        failed.append(Outcome(name, error.exit_code, str(error)))
        complain("hylorada-train", f"{name}: {error}")

    alone = len(masters) == 1
    found = [cell for each in masters for cell in compose.cells(hydra, each, own, alone=alone)]
    cells = {run_dir(cell.config): cell for cell in found}
    if len(cells) < len(found):
        same = number_of(len(found) - len(cells), "cell is", "cells are")
        say(f"{same} the same run as another and run only once")
    for directory, cell in cells.items():
        name = run_name(cell.config)
        remember(to_dict(cell.config))
        try:
            check_settings(cell.config)
            is_done = already_done(cell.config, Path(directory), inputs) is not None
            if not is_done:
                check_start(cell.config, Path(directory), inputs)
        except HyloradaError as error:
            refuse(name, error)
            continue
        if is_done:
            done.append(directory)
        else:
            waiting[directory] = cell.config
            pending[directory] = [*cell.overrides, f"hydra.sweep.dir={NOWHERE}"]
    # Otherwise on another machine:
    queue = is_queue(master.hydra.launcher)
    here = not queue and planned != "elsewhere"
    jobs = _side_by_side(master.hydra.launcher)
    if planned:
        tasks = tasks_of(master.hydra.launcher) if queue else 1
        return dry_run(waiting, done, failed, here=here, jobs=jobs, tasks=tasks)
    if waiting:
        from hylorada.runner.preflight import refused_cells

        for directory, why in refused_cells(waiting, here).items():
            del pending[directory]
            refuse(run_name(waiting[directory]), why)
    outcomes: list[Outcome] = []
    if pending:
        OmegaConf.update(master, "hydra.sweep.dir", without_references(_common_folder(pending)))
        of_pending = {directory: waiting[directory] for directory in pending}
        overview = Overview(of_pending, len(done), len(failed), jobs)
        beside = "joblib" in master.hydra.launcher._target_
        job: Callable[[DictConfig], Outcome] = run_job
        if beside:
            job = JobBeside(max(1, available_cores() // jobs))
        elif queue:
            job = run_queued
        else:

            def job(cfg: DictConfig) -> Outcome:
                with overview.counting():
                    return run_job(cfg)

        launcher = instantiate_launcher(hydra, master, job)
        with ExitStack() as stack:
            if beside or queue:
                stack.enter_context(overview.watching())
            if queue:
                stack.enter_context(queued(master.hydra.launcher))
            if beside:
                stack.enter_context(handed_on(overview.running, say))
            results = launcher.launch(list(pending.values()), initial_job_idx=0)
        outcomes = [result.return_value for result in results]
    for directory, outcome in zip(pending, outcomes, strict=True):
        if outcome.exit_code:
            failed.append(outcome)
        else:
            sys.stdout.write(f"{directory}\n")
    for directory in done:
        sys.stdout.write(f"{directory}\n")
    succeeded = sum(not outcome.exit_code for outcome in outcomes)
    say(
        f"{number_of(succeeded + len(done) + len(failed), 'cell')}: {succeeded} run, {len(done)} "
        f"done already, {len(failed)} failed"
    )
    for outcome in failed:
        complain("hylorada-train", f"{outcome.name}: {outcome.message}")
    stopped = [outcome for outcome in failed if outcome.exit_code > 128]
    return next((outcome.exit_code for outcome in [*stopped, *failed]), 0)


def _side_by_side(launcher: DictConfig) -> int:
    """Cells that run at one time on this machine."""
    if "joblib" not in launcher._target_:
        return 1
    from joblib import effective_n_jobs

    return int(effective_n_jobs(launcher.n_jobs))


def _common_folder(directories: Iterable[str]) -> str:
    """Where a launcher may put files of its own: beside the first run that has a place."""
    for directory in directories:
        folder = Path(directory).parent
        with contextlib.suppress(DiskError):
            make_directory(folder)
            return str(folder)
    return NOWHERE
