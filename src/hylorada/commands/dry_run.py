"""`dry_run=true`: what a command would run, one line for each cell, and nothing is run."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence

from hylorada.commands.job import Outcome
from hylorada.commands.terminal_lines import complain
from hylorada.config import RunConfig
from hylorada.process.counts import number_of
from hylorada.process.phases import duration, side_by_side
from hylorada.process.progress import Reporter
from hylorada.settings.fingerprint import run_name


def dry_run(
    waiting: Mapping[str, RunConfig],
    done: Sequence[str],
    failed: Sequence[Outcome],
    *,
    here: bool = True,
    jobs: int = 1,
    tasks: int = 1,
) -> int:
    """Print the plan of a command; returns the exit code that the command itself would begin with.

    Args:
        waiting: directory -> settings of what is to run.
        done: directories of what is done already.
        failed: what was refused already, and said.
        here: whether the cells run on this machine.
        jobs: cells side by side.
        tasks: processes that a launcher starts for each cell.
    """
    for directory in done:
        sys.stdout.write(f"{directory}: done already\n")
    code = failed[0].exit_code if failed else 0
    started = time.perf_counter()
    from hylorada.planning.estimate import Estimate, size
    from hylorada.planning.plan import Planned, Planner, threads_of

    def said(found: Planned, it: Estimate) -> str:
        rates, config = it.rates, found.config
        if it.steps:
            steps = number_of(it.steps, "step")
            if it.in_time:
                limit = f"train.max_seconds={config.train.max_seconds:g}"
                steps = f"about {it.steps_left:,} of {steps} until {limit} is over,"
            elif it.steps_left != it.steps:
                steps = f"{it.steps_left:,} of {steps} left"
            groups = " + ".join(f"{name} {count:,}" for name, count in rates.trained.items())
            trains = f"{steps} on {it.tokens:,} tokens, trains {groups}"
        else:
            trains = "trains nothing"
        asked = [f"{name} {count:,} tokens" for name, count in it.evaluated.items()]
        measures = f"; measures {', '.join(asked)}" if asked else ""
        phases = ", ".join(f"{name} {duration(took)}" for name, took in it.seconds.items())
        peak = f", peak {size(rates.memory)}" if rates.memory else ""
        if rates.processes > 1 and rates.memory:
            peak += f" in each of {rates.processes} processes"
        lacks = "".join(f"; {title} is not in it" for title in rates.left_out)
        return (
            f"{found.directory}: {trains}{measures}; {duration(it.total)} ({phases})"
            f"{peak}; {rates.known_from}{lacks}{_where(config)}"
        )

    imports = time.perf_counter() - started
    found: list[Planned] = []
    with Reporter() as reporter:
        planner = Planner(here, threads_of(jobs), reporter.working, tasks)
        for planned in planner.plan(waiting):
            if planned.refusal is not None:
                name = run_name(planned.config)
                many = len(waiting) + len(done) + len(failed) > 1
                complain("hylorada-train", f"{name}: " * many + str(planned.refusal))
                code = code or planned.refusal.exit_code
            if planned.estimate is not None:
                sys.stdout.write(f"{said(planned, planned.estimate)}\n")
                sys.stdout.flush()
            found.append(planned)
    runs = [p.estimate for p in found if p.refusal is None and p.estimate is not None]
    refused = len(failed) + sum(planned.refusal is not None for planned in found)
    count = len(waiting) + len(done) + len(failed)
    parts = [number_of(count, "cell"), f"{len(done)} done"]
    parts += [f"{refused} refused"] * bool(refused)
    line = f"{', '.join(parts)}, {len(runs)} to run"
    if runs:
        seconds = imports + side_by_side([run.total for run in runs], jobs)
        peaks = [run.rates.memory * run.rates.processes for run in runs]
        memory = sum(sorted(peaks, reverse=True)[:jobs])
        assumed = any(run.rates.known_from.startswith("assumed") for run in runs)
        where = "on this machine" if not assumed else "as assumed"
        if jobs > 1:
            where += f", {jobs} side by side"
        hours = f" ({seconds / 3600:,.0f} h)" if seconds > 2 * 86400 else ""
        line += f": {duration(seconds)}{hours} {where}"
        line += f", peak {size(memory)}" if memory else ""
        line += " in all processes" if any(run.rates.processes > 1 for run in runs) else ""
    sys.stdout.write(f"{line}\n")
    return code


def _where(config: RunConfig) -> str:
    return f"; on {config.device}" if config.device != "auto" else ""
