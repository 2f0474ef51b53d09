"""`hylorada-eval`: measure a finished run again, or any PEFT adapter."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from hylorada import __version__, compose
from hylorada.command_line.overrides import (
    conf_dir,
    open_key,
    own_folder,
    rewrite,
    searched,
    unknown_flag,
)
from hylorada.commands import chosen
from hylorada.commands.terminal_lines import log_to_terminal, say
from hylorada.config import RunConfig
from hylorada.config.fields import within
from hylorada.config.rules import REMEASURED
from hylorada.errors import ConfigError
from hylorada.records.result import finished_record
from hylorada.settings import check_settings

_HELP = """\
hylorada-eval: measure a finished run again and add the numbers to its record, or measure any PEFT
adapter.

  hylorada-eval run=outputs/main/hylorada-4k-seed0-0123456789 eval=retrieval
  hylorada-eval run=... eval.lost_in_middle.enabled=true eval.lost_in_middle.examples=200
  hylorada-eval chosen=outputs/lr_grid select=train.lr eval=quick
  hylorada-eval adapter=./adapter model=gpt2 dataset=wikitext2 length=2k eval=full

run=      eval= selects what is measured (default: what the run measured). Only these settings can
          be changed; all others are the run's:
{remeasured}.
chosen=   a folder of runs that were measured on the validation split (eval=validation). For each
          method, the best values of the settings named by select= are chosen, and only the chosen
          runs are measured on the test split. --partial allows an unfinished grid. Show the table
          with: hylorada-report outputs/lr_grid --select train.lr
adapter=  model= names the base of the adapter; length, dataset and method.position_range say what
          it is measured on. The record is stored in <output_root>/<group>/adapter-...

  eval              {evaluations}
  --config-dir D    also read groups from the folder D, as hylorada-train does
  -h, --help, --version
"""


def main(words: Sequence[str]) -> int:
    """The command; returns its exit code.

    Raises:
        HyloradaError: whatever a user can cause.
    """
    words, own = _without_config_dir(words)
    if "-h" in words or "--help" in words:
        folders = [conf_dir(), *([own] if own else [])]
        groups = sorted({file.stem for each in folders for file in (each / "eval").glob("*.yaml")})
        sys.stdout.write(
            _HELP.format(
                evaluations=", ".join(groups),
                remeasured=textwrap.fill(
                    ", ".join(REMEASURED), 98, initial_indent=" " * 10, subsequent_indent=" " * 10
                ),
            )
        )
        return 0
    if "--version" in words:
        sys.stdout.write(f"{__version__}\n")
        return 0
    partial, words = "--partial" in words, [word for word in words if word != "--partial"]
    for word in words:
        if word.startswith("-"):
            line = unknown_flag(word, ("-h", "--help", "--version", "--partial", "--config-dir"))
            raise ConfigError(f"{line}; see hylorada-eval --help")
    subjects = [word for word in words if word.partition("=")[0] in ("run", "adapter", "chosen")]
    if len(subjects) != 1 or not subjects[0].partition("=")[2]:
        raise ConfigError(
            "name one thing to measure: run=DIRECTORY, chosen=FOLDER or adapter=FOLDER; see "
            "hylorada-eval --help"
        )
    kind, _, place = subjects[0].partition("=")
    selected = [word.partition("=")[2] for word in words if word.startswith("select=")]
    if bool(selected or partial) and kind != "chosen":
        raise ConfigError("select= and --partial belong to chosen=FOLDER; see hylorada-eval --help")
    words = [word for word in words if not word.startswith("select=")]
    place = os.path.expanduser(place)  # noqa: PTH111, which drops the ./ that was typed
    overrides = rewrite([word for word in words if word not in subjects], own=own)
    keys = [word.partition("=")[0].lstrip("+") for word in overrides]
    overrides += [searched(own)] if own else []
    if kind == "adapter" and not {"model", "model.path"} & set(keys):
        raise ConfigError("adapter= needs its base: model=..., as in model=gpt2 or model=./folder")
    with compose.opened_hydra("hylorada-eval") as hydra:
        asked = compose.to_typed(compose.compose(hydra, overrides))
    if kind == "adapter" and (asked.shard_base or asked.sequence_ranks > 1):
        raise ConfigError(
            "shard_base and sequence_ranks have no effect on a measurement, whose base and "
            "sequences are whole on each process; leave them out"
        )
    if kind == "chosen":
        return _of_chosen(Path(place), asked, keys, selected, partial=partial)
    config = asked if kind == "adapter" else _of_finished_run(Path(place), asked, keys)
    check_settings(config)
    log_to_terminal()
    if kind == "adapter":
        from hylorada.runner.evaluate_adapter import evaluate_adapter

        evaluate_adapter(place, config)
    else:
        from hylorada.runner.evaluate import evaluate_run

        evaluate_run(place, config)
    return 0


def _without_config_dir(words: Sequence[str]) -> tuple[list[str], Path | None]:
    """The words without ``--config-dir FOLDER``, and that folder."""
    left, own = list(words), None
    for i, word in enumerate(words):
        flag, equals, folder = word.partition("=")
        if flag == "--config-dir":
            if not equals and i + 1 == len(words):
                raise ConfigError("--config-dir: name a folder; see hylorada-eval --help")
            own = own_folder(folder if equals else words[i + 1])
            left = [*words[:i], *words[i + (1 if equals else 2) :]]
    return left, own


def _of_chosen(
    folder: Path, asked: RunConfig, keys: Sequence[str], selected: Sequence[str], *, partial: bool
) -> int:
    def config_of(directory: Path) -> RunConfig:
        config = _of_finished_run(directory, asked, [*keys, "eval"])
        check_settings(config)
        return config

    chosen.refuse_split(asked.eval)
    selection = chosen.choose(folder, selected, partial=partial)
    log_to_terminal()
    from hylorada.runner.evaluate import evaluate_run

    code = chosen.measure(selection, config_of, evaluate_run, str(folder))
    say(f"next: hylorada-report {folder} --select {','.join(selection.keys)}")
    return code


def _of_finished_run(directory: Path, asked: RunConfig, keys: Sequence[str]) -> RunConfig:
    """The settings of a finished run, with those of the measurement that were asked for."""
    for key in keys:
        if not within(key, REMEASURED):
            raise ConfigError(
                f"{key}: a finished run keeps its settings; only {', '.join(REMEASURED)} may be "
                "set with run=, so train another run for it"
            )
    record = finished_record(directory)
    config = compose.to_typed(record["config"])
    config.processes = asked.processes  # that of this machine, not of the run's
    config.shard_base = False  # a measurement has a whole base on each process
    for key in sorted(keys, key=len):  # a group before one of its keys
        *path, last = (open_key(key) or key).split(".")
        source, target = asked, config
        for name in path:
            source, target = getattr(source, name), getattr(target, name)
        setattr(target, last, getattr(source, last))
    return config
