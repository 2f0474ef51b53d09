"""Every combination of a sweep, each in a directory of its own."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from pathlib import Path

from omegaconf import OmegaConf

from hylorada import compose
from hylorada.command_line.hydra_internals import Hydra, JobReturn, instantiate_launcher
from hylorada.command_line.overrides import without_references
from hylorada.commands.job import NOWHERE, Outcome, run_job
from hylorada.commands.terminal_lines import complain, say
from hylorada.config import RunConfig, to_dict
from hylorada.errors import DiskError, HyloradaError
from hylorada.loading.inputs import Inputs
from hylorada.process.disk import make_directory
from hylorada.process.redaction import remember
from hylorada.runner.earlier_attempt import already_done, check_start
from hylorada.settings import check_settings
from hylorada.settings.fingerprint import run_dir, run_name


def sweep(hydra: Hydra, overrides: list[str], own: Path | None) -> int:
    """Every cell runs, whatever happens to the others; the first failure gives the exit code."""
    master = compose.compose(hydra, [*overrides, "hydra.mode=MULTIRUN"], multirun=True)
    failed: list[Outcome] = []
    done: list[str] = []
    pending: dict[str, list[str]] = {}
    waiting: dict[str, RunConfig] = {}
    inputs = Inputs()

    def refuse(name: str, error: HyloradaError) -> None:
        failed.append(Outcome(name, error.exit_code, str(error)))
        complain("hylorada-train", f"{name}: {error}")

    found = compose.cells(hydra, master, own)
    cells = {run_dir(cell.config): cell for cell in found}
    if len(cells) < len(found):
        say(f"{len(found) - len(cells)} cells are the same run as another and run once with it")
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
    if waiting:
        from hylorada.runner.preflight import refused_cells

        here = "submitit" not in master.hydra.launcher._target_  # otherwise on another machine
        for directory, why in refused_cells(waiting, here).items():
            del pending[directory]
            refuse(run_name(waiting[directory]), why)
    results: list[JobReturn] = []
    if pending:
        OmegaConf.update(master, "hydra.sweep.dir", without_references(_common_folder(pending)))
        launcher = instantiate_launcher(hydra, master, run_job)
        results = list(launcher.launch(list(pending.values()), initial_job_idx=0))
    for directory, result in zip(pending, results, strict=True):
        if result.return_value.exit_code:
            failed.append(result.return_value)
        else:
            sys.stdout.write(f"{directory}\n")
    for directory in done:
        sys.stdout.write(f"{directory}\n")
    succeeded = len(results) - sum(bool(result.return_value.exit_code) for result in results)
    say(
        f"{succeeded + len(done) + len(failed)} cells: {succeeded} run, {len(done)} done already, "
        f"{len(failed)} failed"
    )
    for outcome in failed:
        complain("hylorada-train", f"{outcome.name}: {outcome.message}")
    return failed[0].exit_code if failed else 0


def _common_folder(directories: Iterable[str]) -> str:
    """Where a launcher may put files of its own: beside the first run that has a place."""
    for directory in directories:
        folder = Path(directory).parent
        with contextlib.suppress(DiskError):
            make_directory(folder)
            return str(folder)
    return NOWHERE
