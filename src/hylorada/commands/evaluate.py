"""`hylorada-eval`: measure a finished run again, or any PEFT adapter."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hylorada import __version__, compose
from hylorada.command_line.overrides import conf_dir, open_key, rewrite, unknown_flag
from hylorada.commands.terminal_lines import log_to_terminal
from hylorada.config import RunConfig
from hylorada.config_fields import within
from hylorada.config_rules import REMEASURED
from hylorada.errors import ConfigError
from hylorada.records.result import finished_record
from hylorada.settings import check_settings

_HELP = """\
hylorada-eval: measure a finished run again, and add the numbers to its record; or any PEFT adapter.

  hylorada-eval run=outputs/main/hylorada-4k-seed0-0123456789 eval=retrieval
  hylorada-eval run=... eval.lost_in_middle.enabled=true eval.lost_in_middle.examples=200
  hylorada-eval adapter=./adapter model=gpt2 dataset=wikitext2 length=2k eval=full

With run=, eval= names what is measured (default: what the run measured). These may be set, and all
else is the run's: {remeasured}.
With adapter=, model= names its base, and length, dataset and method.position_range say on what it
is measured; the record lies under <output_root>/<group>/adapter-...

  eval        {evaluations}
  -h, --help, --version
"""


def main(words: Sequence[str]) -> int:
    """The command; returns its exit code.

    Raises:
        HyloradaError: whatever a user can cause.
    """
    if "-h" in words or "--help" in words:
        groups = sorted(file.stem for file in (conf_dir() / "eval").glob("*.yaml"))
        sys.stdout.write(
            _HELP.format(evaluations=", ".join(groups), remeasured=", ".join(REMEASURED))
        )
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
    with compose.opened_hydra("hylorada-eval") as hydra:
        asked = compose.to_typed(compose.compose(hydra, overrides))
    config = asked if kind == "adapter" else _of_finished_run(Path(place), asked, keys)
    check_settings(config)
    log_to_terminal()
    from hylorada.runner import evaluate as runner

    if kind == "adapter":
        runner.evaluate_adapter(place, config)
    else:
        runner.evaluate_run(place, config)
    return 0


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
    for key in sorted(keys, key=len):  # a group before one of its keys
        *path, last = (open_key(key) or key).split(".")
        source, target = asked, config
        for name in path:
            source, target = getattr(source, name), getattr(target, name)
        setattr(target, last, getattr(source, last))
    return config
