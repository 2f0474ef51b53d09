"""`hylorada-train`: one run, or with ``-m`` every combination."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from hylorada import __version__, compose
from hylorada.command_line.arguments import Parser
from hylorada.command_line.hydra_internals import Hydra
from hylorada.command_line.overrides import (
    by_size,
    conf_dir,
    known_keys,
    own_folder,
    rewrite,
    searched,
    unknown_flag,
)
from hylorada.command_line.suggest import did_you_mean
from hylorada.commands.dry_run import dry_run
from hylorada.commands.job import NOWHERE, Outcome, run_job
from hylorada.commands.sweep import sweep
from hylorada.commands.terminal_lines import complain, say
from hylorada.config import RunConfig, to_dict
from hylorada.errors import ConfigError
from hylorada.loading.inputs import Inputs
from hylorada.process.place import place
from hylorada.process.redaction import remember
from hylorada.runner.earlier_attempt import already_done, check_start
from hylorada.settings import check_settings
from hylorada.settings.fingerprint import run_dir

_HELP = """\
hylorada-train: adapt a causal language model to a longer context, prove that every component has an
effect, measure the result, and write a record.

  hylorada-train length=4k method=hylorada
  hylorada-train -m length=512,2k,4k,8k method=lora,longlora,hylorada seed=0,1,2
  hylorada-train -m experiment=table_short
  hylorada-train model=gpt2 dataset=wikitext103 train=paper length=2k
  hylorada-train model=./path/to/model dataset=local dataset.path=./text
  hylorada-train -m experiment=table_short dry_run=true         estimate time and memory only
  hylorada-train -m experiment=t1_ablation_512,t2_main_4k       several experiments in one command

Flags
  -m, --multirun    run every combination of the comma-separated values
  -c, --cfg job     print the composed settings and stop (also: hydra, all)
  -p, --package P   with --cfg: only this part, as in -p method
  --resolve         with --cfg: resolve references between settings
  --config-dir D    also read groups from the folder D
  --version         print the version

Groups (group=option)
{groups}
  launcher    basic, processes, slurm, submitit_local: where the cells of a sweep run
  model=... also takes a hub id or a folder, length=... any number of tokens (3000, 3k).

Settings (key=value, as in train.lr=1e-4): hylorada-train --cfg job prints them all, and
docs/SETTINGS.md explains each. Paths need no special quoting; in a sweep, where commas separate
values, "key='a,b'" is a single value.

A run is stored in <output_root>/<group>/<method>-<length>-seed<N>-<fingerprint>; group=NAME names
the folder (default: the experiment's name). Repeating a command resumes its run, or does nothing
when the run is finished.
"""


def main(words: Sequence[str]) -> int:
    """The command; returns its exit code.

    Raises:
        HyloradaError: whatever a user can cause.
        Stopped: by a signal.
    """
    flags = _flags(words)
    if flags.help:
        sys.stdout.write(_HELP.format(groups=_groups(flags.own)))
        return 0
    with compose.opened_hydra("hylorada-train") as hydra:
        if flags.multirun and not flags.cfg:
            return sweep(hydra, flags.overrides, flags.own, flags.dry_run)
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
        launcher = cfg.hydra.runtime.choices.get("hydra/launcher")
        if launcher != "basic":
            raise ConfigError(
                f"launcher={launcher} has no effect on one run; add -m to sweep, or leave it out"
            )
        return _single(hydra, flags.overrides, config, flags.dry_run)


def _groups(own: Path | None) -> str:
    """Each group with its options; those of the user's own folder among them."""
    found: dict[str, set[str]] = {}
    for folder in [conf_dir(), *([own] if own else [])]:
        for file in folder.glob("*/*.yaml"):
            found.setdefault(file.parent.name, set()).add(file.stem)
    lines = []
    for group in sorted(found):
        options = ", ".join(sorted(found[group], key=by_size))
        indent = " " * 14
        text = textwrap.fill(options, 98, initial_indent=indent, subsequent_indent=indent)
        lines.append(f"  {group:<12}{text.lstrip()}")
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
        flags.own = own_folder(flags.config_dir)
    flags.dry_run, flags.overrides = _dry_run(flags.overrides)
    if flags.dry_run and flags.cfg:
        raise ConfigError(
            f"dry_run={flags.dry_run} has no effect with --cfg; leave one of them out"
        )
    flags.overrides = rewrite(flags.overrides, multirun=flags.multirun, own=flags.own)
    if flags.own:
        flags.overrides.append(searched(flags.own))
    return flags


def _dry_run(words: list[str]) -> tuple[str, list[str]]:
    """`dry_run`, which is no setting of a run ("true", "elsewhere", or empty); the other words."""
    given = [word.partition("=")[2] for word in words if word.partition("=")[0] == "dry_run"]
    for value in given:
        if value not in ("true", "false", "elsewhere"):
            raise ConfigError(
                f"dry_run={value}: use true, elsewhere (plan for another machine) or false"
            )
    wanted = "" if given[-1:] in ([], ["false"]) else given[-1]
    return wanted, [word for word in words if word.partition("=")[0] != "dry_run"]


def _single(hydra: Hydra, overrides: list[str], config: RunConfig, planned: str) -> int:
    check_settings(config)
    remember(to_dict(config))
    directory, inputs, at = run_dir(config), Inputs(), place()
    if at.world > 1:  # the first one decides for all when they have met
        if planned:
            raise ConfigError(f"dry_run={planned} plans a run; start it as one process")
        return _as_one_of_several(hydra, overrides, directory if at.is_first else "")
    if already_done(config, Path(directory), inputs):
        if planned:
            return dry_run({}, [directory], [])
        say(f"{directory} is done already; nothing to run (resume=never starts it again)")
    else:
        check_start(config, Path(directory), inputs)
        if planned:
            return dry_run({directory: config}, [], [], here=planned != "elsewhere")
        outcome = _outcome(hydra, overrides)
        if outcome.exit_code:
            complain("hylorada-train", outcome.message)
            return outcome.exit_code
    sys.stdout.write(f"{directory}\n")
    return 0


def _outcome(hydra: Hydra, overrides: list[str]) -> Outcome:
    job = hydra.run(compose.PRIMARY, run_job, [*overrides, f"hydra.run.dir={NOWHERE}"])
    outcome: Outcome = job.return_value
    return outcome


def _as_one_of_several(hydra: Hydra, overrides: list[str], shown: str) -> int:
    """The part of one process of a run; what is shown, and what went wrong, the first one says."""
    outcome = _outcome(hydra, overrides)
    if shown and outcome.exit_code:
        complain("hylorada-train", outcome.message)
    elif shown:
        sys.stdout.write(f"{shown}\n")
    return outcome.exit_code
