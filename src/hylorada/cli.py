"""The commands: hylorada-train, hylorada-eval, hylorada-report, hylorada-export.

Torch is imported only by a run that starts. Standard output carries results (the directory of each
run, a table); everything else goes to standard error. Whatever a user can cause ends in one line
and the exit code of `errors`.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.types import HydraContext
from omegaconf import OmegaConf

from hylorada import __version__, compose, export_command
from hylorada.arguments import Parser
from hylorada.config import RunConfig, run_dir, run_name, to_dict
from hylorada.disk import disk_error, make_directory
from hylorada.errors import ConfigError, DataError, DiskError, HyloradaError
from hylorada.job import NOWHERE, Outcome, Stopped, run_job
from hylorada.redaction import remember
from hylorada.runner.inputs import Inputs
from hylorada.runner.record import read_result
from hylorada.runner.standing import already_done, check_start
from hylorada.suggest import did_you_mean
from hylorada.terminal import lasting_terminal
from hylorada.validation import validate
from hylorada.words import (
    by_size,
    conf_dir,
    known_keys,
    quoted,
    rewrite,
    unknown_flag,
    without_references,
)

_HELP = """\
hylorada-train: adapt a causal language model to a longer context, prove that every component acts,
measure it, and leave a record.

  hylorada-train length=4k method=hylorada
  hylorada-train -m length=512,2k,4k,8k method=lora,longlora,hylorada seed=0,1,2
  hylorada-train -m experiment=table_short
  hylorada-train model=gpt2 dataset=wikitext103 train=paper length=2k
  hylorada-train model=./path/to/model dataset=local dataset.path=./text

Flags
  -m, --multirun    run every combination of the comma-separated values
  -c, --cfg job     print the composed settings and stop (also: hydra, all)
  -p, --package P   with --cfg: only this part, as in -p method
  --resolve         with --cfg: follow the references between settings
  --config-dir D    read groups of your own from the folder D as well
  --version         print the version

Groups (group=option)
{groups}
  launcher    basic, processes, slurm: where the cells of a sweep run
  model=... also takes a hub id or a folder, length=... any number of tokens (3000, 3k).

Settings (key=value, as in train.lr=1e-4): hylorada-train --cfg job prints them all. A path stands
as in any other command; in a sweep, where a comma separates values, "key='a,b'" is one.

A run lies in <output_root>/<group>/<method>-<length>-seed<N>-<fingerprint>; group=NAME names the
folder (default: the experiment's name). The same command continues a run, or does nothing when it
is done.
"""
_EVAL_HELP = """\
hylorada-eval: measure a finished run again, and add the numbers to its record; or any PEFT adapter.

  hylorada-eval run=outputs/main/hylorada-4k-seed0-0123456789 eval=retrieval
  hylorada-eval run=... eval.lost_in_middle.enabled=true eval.lost_in_middle.examples=200
  hylorada-eval adapter=./adapter model=gpt2 dataset=wikitext2 length=2k eval=full

With run=, eval= names what is measured (default: what the run measured), and eval.*, device,
threads, track, train.precision, dataset.path, dataset.cache_dir may be set; all else is the run's.
With adapter=, model= names its base, and length, dataset and method.position_range say on what it
is measured; the record lies under <output_root>/<group>/adapter-...

  eval        {evaluations}
  -h, --help, --version
"""
# What may differ from the settings of a finished run.
_MEASURING = (
    "eval", "device", "threads", "track", "train.precision", "dataset.path", "dataset.cache_dir",
)  # fmt: skip


def train(argv: Sequence[str] | None = None) -> int:
    """``hylorada-train``: one run, or with ``-m`` every combination. Returns the exit code."""
    return _guarded("hylorada-train", _train, argv)


def evaluate(argv: Sequence[str] | None = None) -> int:
    """``hylorada-eval``: measure a finished run or an adapter. Returns the exit code."""
    return _guarded("hylorada-eval", _evaluate, argv)


def report(argv: Sequence[str] | None = None) -> int:
    """``hylorada-report DIR...``: tables and figures from records. Returns the exit code."""

    def call(words: list[str]) -> int:
        if "--version" in words:
            sys.stdout.write(f"{__version__}\n")
            return 0
        from hylorada import report as room

        return room.main(words)

    return _guarded("hylorada-report", call, argv)


def export(argv: Sequence[str] | None = None) -> int:
    """``hylorada-export run=DIR``: a finished run as files for others. Returns the exit code."""
    return _guarded("hylorada-export", export_command.main, argv)


def _guarded(program: str, call: Callable[[list[str]], int], argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    with lasting_terminal():
        remember({key.lstrip("+-"): value for key, _, value in (w.partition("=") for w in words)})
        try:
            return call(words)
        except HyloradaError as error:
            _complain(program, str(error))
            return error.exit_code
        except Stopped as stop:
            code, message = stop.args
            _complain(program, message)
            return code
        except KeyboardInterrupt:
            _complain(program, "interrupted")
            return 130
        except Exception as error:
            known = disk_error(error, Path(getattr(error, "filename", None) or "."))
            if known is not None:
                _complain(program, str(known))
                return known.exit_code
            traceback.print_exc()
            _complain(program, f"{type(error).__name__}: {error} (a bug in hylorada)")
            return 1


def _complain(program: str, message: str) -> None:
    sys.stderr.write(f"{program}: error: {' '.join(message.split())}\n")
    sys.stderr.flush()


def _train(words: list[str]) -> int:
    flags = _flags(words)
    if flags.help:
        sys.stdout.write(_HELP.format(groups=_groups()))
        return 0
    with compose.session("hylorada-train") as hydra:
        if flags.multirun and not flags.cfg:
            return _sweep(hydra, flags.overrides, flags.own)
        cfg = compose.compose(hydra, flags.overrides)
        config = compose.to_typed(cfg)
        if flags.cfg:
            if flags.package and OmegaConf.select(cfg, flags.package) is None:
                raise ConfigError(
                    f"--package {flags.package}: there is no such part"
                    f"{did_you_mean(flags.package, known_keys())}"
                )
            hydra.show_cfg(
                compose.PRIMARY, flags.overrides, flags.cfg, flags.package, flags.resolve
            )
            return 0
        if cfg.hydra.sweeper.get("params"):
            raise ConfigError(f"experiment={config.experiment} is a sweep; add -m")
        return _single(hydra, flags.overrides, config)


def _groups() -> str:
    lines = []
    for folder in sorted(conf_dir().iterdir()):
        options = sorted((file.stem for file in folder.glob("*.yaml")), key=by_size)
        if options:
            lines.append(
                f"  {folder.name:<12}"
                + textwrap.fill(
                    ", ".join(options), 98, initial_indent=" " * 14, subsequent_indent=" " * 14
                ).lstrip()
            )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="hylorada-train", add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-c", "--cfg", choices=("job", "hydra", "all"))
    parser.add_argument("-p", "--package")
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--config-dir")
    parser.add_argument("overrides", nargs="*", help="group=option and key=value")
    return parser


def _flags(words: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    known = [text for action in parser._actions for text in action.option_strings]
    for word in words:
        short = not word.startswith("--") and word[:2] in known  # also -pmethod
        if word.startswith("-") and not short and word.partition("=")[0] not in known:
            raise ConfigError(f"{unknown_flag(word, known)}; see hylorada-train --help")
    flags = parser.parse_intermixed_args(words)
    if (flags.package or flags.resolve) and not flags.cfg:
        raise ConfigError("--package and --resolve belong to --cfg; see hylorada-train --help")
    flags.own = None
    if flags.config_dir:
        flags.own = Path(flags.config_dir).expanduser().resolve()
        if not flags.own.is_dir():
            raise ConfigError(f"--config-dir: there is no folder {flags.own}")
    flags.overrides = rewrite(flags.overrides, multirun=flags.multirun, own=flags.own)
    if flags.own:
        flags.overrides.append(f"hydra.searchpath=[{quoted(f'file://{flags.own}')}]")
    return flags


def _single(hydra: Hydra, overrides: list[str], config: RunConfig) -> int:
    validate(config)
    directory, inputs = run_dir(config), Inputs()
    if already_done(config, Path(directory), inputs):
        _say(f"{directory} is done already; nothing to run (resume=never starts it again)")
    else:
        check_start(config, Path(directory), inputs)
        job = hydra.run(compose.PRIMARY, run_job, [*overrides, f"hydra.run.dir={NOWHERE}"])
        outcome = job.return_value
        if outcome.exit_code:
            _complain("hylorada-train", outcome.message)
            return outcome.exit_code
    sys.stdout.write(f"{directory}\n")
    return 0


def _sweep(hydra: Hydra, overrides: list[str], own: Path | None) -> int:
    """Every cell runs, whatever happens to the others; the first failure gives the exit code."""
    master = compose.compose(hydra, [*overrides, "hydra.mode=MULTIRUN"], multirun=True)
    failed: list[Outcome] = []
    done: list[str] = []
    pending: dict[str, list[str]] = {}
    waiting: dict[str, RunConfig] = {}
    inputs = Inputs()

    def refuse(name: str, error: HyloradaError) -> None:
        failed.append(Outcome(name, error.exit_code, str(error)))
        _complain("hylorada-train", f"{name}: {error}")

    found = compose.cells(hydra, master, own)
    cells = {run_dir(cell.config): cell for cell in found}
    if len(cells) < len(found):
        _say(f"{len(found) - len(cells)} cells are the same run as another and run once with it")
    for directory, cell in cells.items():
        name = run_name(cell.config)
        remember(to_dict(cell.config))
        try:
            validate(cell.config)
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
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(hydra.config_loader, Callbacks(master)),
            task_function=run_job,
            config=master,
        )
        results = list(launcher.launch(list(pending.values()), initial_job_idx=0))
    for directory, result in zip(pending, results, strict=True):
        if result.return_value.exit_code:
            failed.append(result.return_value)
        else:
            sys.stdout.write(f"{directory}\n")
    for directory in done:
        sys.stdout.write(f"{directory}\n")
    succeeded = len(results) - sum(bool(result.return_value.exit_code) for result in results)
    _say(
        f"{succeeded + len(done) + len(failed)} cells: {succeeded} run, {len(done)} done already, "
        f"{len(failed)} failed"
    )
    for outcome in failed:
        _complain("hylorada-train", f"{outcome.name}: {outcome.message}")
    return failed[0].exit_code if failed else 0


def _common_folder(directories: Iterable[str]) -> str:
    """Where a launcher may put files of its own: beside the first run that has a place."""
    for directory in directories:
        folder = Path(directory).parent
        with contextlib.suppress(DiskError):
            make_directory(folder)
            return str(folder)
    return NOWHERE


def _evaluate(words: list[str]) -> int:
    if "-h" in words or "--help" in words:
        groups = sorted(file.stem for file in (conf_dir() / "eval").glob("*.yaml"))
        sys.stdout.write(_EVAL_HELP.format(evaluations=", ".join(groups)))
        return 0
    if "--version" in words:
        sys.stdout.write(f"{__version__}\n")
        return 0
    for word in words:
        if word.startswith("-"):
            line = unknown_flag(word, ("-h", "--help", "--version"))
            raise ConfigError(f"{line}; see hylorada-eval --help")
    subjects = [word for word in words if word.partition("=")[0] in ("run", "adapter")]
    if len(subjects) != 1 or not subjects[0].partition("=")[2]:
        raise ConfigError(
            "name one thing to measure: run=DIRECTORY or adapter=FOLDER; see hylorada-eval --help"
        )
    kind, _, place = subjects[0].partition("=")
    place = os.path.expanduser(place)  # noqa: PTH111, which drops the ./ that was typed
    overrides = rewrite([word for word in words if word not in subjects])
    keys = [word.partition("=")[0].lstrip("+") for word in overrides]
    if kind == "adapter" and not {"model", "model.path"} & set(keys):
        raise ConfigError("adapter= needs its base: model=..., as in model=gpt2 or model=./folder")
    with compose.session("hylorada-eval") as hydra:
        asked = compose.to_typed(compose.compose(hydra, overrides))
    config = asked if kind == "adapter" else _of_finished_run(Path(place), asked, keys)
    validate(config)
    _log_to_terminal()
    from hylorada.runner import evaluate as runner

    if kind == "adapter":
        runner.evaluate_adapter(place, config)
    else:
        runner.evaluate_run(place, config)
    return 0


def _of_finished_run(directory: Path, asked: RunConfig, keys: Sequence[str]) -> RunConfig:
    """The settings of a finished run, with those of the measurement that were asked for."""
    for key in keys:
        if not any(key == name or key.startswith(f"{name}.") for name in _MEASURING):
            raise ConfigError(
                f"{key}: a finished run keeps its settings; only {', '.join(_MEASURING)} may be "
                "set with run=, so train another run for it"
            )
    record = read_result(directory)
    if record is None:
        raise DataError(f"run={directory}: no result.json here; give the directory of a run")
    if not isinstance((record.get("config") or {}).get("train"), dict):
        raise DataError(
            f"run={directory}: the record of an adapter that was only measured; use adapter= again"
        )
    config = compose.to_typed(record["config"])
    for key in sorted(keys, key=len):  # a group before one of its keys
        *path, last = key.split(".")
        source, target = asked, config
        for name in path:
            source, target = getattr(source, name), getattr(target, name)
        setattr(target, last, getattr(source, last))
    return config


def _log_to_terminal() -> None:
    """Messages of this package to standard error, as Hydra does it for a training run."""
    package = logging.getLogger("hylorada")
    if not package.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        package.addHandler(handler)


def _say(message: str) -> None:
    sys.stderr.write(f"{message}\n")
