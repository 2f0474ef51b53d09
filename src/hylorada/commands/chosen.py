"""`hylorada-eval chosen=`: the test split is opened for those runs of a grid that were chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hylorada.commands.terminal_lines import complain, say
from hylorada.comparison.collect import collect, unfinished
from hylorada.comparison.selection import Candidate, Choice, Selection, select
from hylorada.comparison.validation_losses import SPLIT
from hylorada.config import EvalConfig, RunConfig, to_dict
from hylorada.errors import ConfigError, DataError, HyloradaError, Interrupted
from hylorada.evaluation.measurement import asked_for
from hylorada.report import selection as shown
from hylorada.report.files import default_out, write_files
from hylorada.settings.chosen import keys_of


def choose(folder: Path, words: Sequence[str], *, partial: bool) -> Selection:
    """The choice among the records below a folder; it is written beside the folder's report.

    Args:
        folder: of a grid.
        words: the settings to choose.
        partial: see `select`.

    Raises:
        ConfigError: see `keys_of`.
        DataError: see `select`; or no method was run under several values.
        DiskError: the choice cannot be written.
    """
    keys = keys_of(words)
    collection = collect([folder])
    for problem in collection.problems:
        say(f"hylorada-eval: left out {problem.path}: {problem.reason}")
    running = unfinished([folder])
    selection = select(collection.records, keys, running=running, partial=partial)
    if not partial and all(len(choice.candidates) < 2 for choice in selection.choices):
        raise DataError(
            f"chosen={folder}: no method was run under several values of {', '.join(keys)}, so "
            "nothing would be chosen; select= what the grid varies, or measure runs one by one "
            "with run=DIRECTORY"
        )
    write_files(default_out(folder), {shown.FILE: shown.as_json(selection)})
    for choice in selection.choices:
        say(f"chosen on {SPLIT}, {choice.where}: {choice.said}")
        for note in choice.notes:
            say(f"  {choice.arm}: {note}")
    return selection


def refuse_split(settings: EvalConfig) -> None:
    """The chosen are measured on another split than they were chosen on.

    Raises:
        ConfigError: no perplexity is asked for, or that of the split that is chosen on.
    """
    if not settings.perplexity.conventions:
        raise ConfigError(
            "chosen= measures perplexity on the test split, and eval.perplexity.conventions is "
            "empty; measure everything else afterwards with run=DIRECTORY"
        )
    if settings.perplexity.split == SPLIT:
        raise ConfigError(
            f"chosen=: the {SPLIT} split is what was chosen on; leave eval.perplexity.split at test"
        )


def measure(
    selection: Selection,
    config_of: Callable[[Path], RunConfig],
    evaluate: Callable[[Path, RunConfig, Mapping[str, Any]], Any],
    folder: str,
) -> int:
    """Measure every chosen run that was not asked the same before; one that fails stops no other.

    Args:
        selection: the choice.
        config_of: a run's directory -> its settings, with what is asked now.
        evaluate: measures a run, and puts down why this one.
        folder: of the grid, as it was typed.

    Returns:
        The exit code: that of the first failure.

    Raises:
        Interrupted: a signal came; the same command goes on.
    """
    code = 0
    runs = [(c, run) for c in selection.choices if c.chosen for run in c.chosen.runs]
    for choice, run in runs:
        if not run.ok:
            continue
        config = config_of(run.path)
        if _has(run.data, config.eval):
            say(f"{run.path}: measured already")
            continue
        try:
            evaluate(run.path, config, _as_recorded(choice, folder))
        except Interrupted:
            raise
        except HyloradaError as error:
            complain("hylorada-eval", f"{run.data['name']}: {error}")
            code = code or error.exit_code
    return code


def _as_recorded(choice: Choice, folder: str) -> dict[str, Any]:
    """A choice as the record of a run has it (`records.schema.Chosen`)."""
    assert choice.chosen is not None

    def named(candidate: Candidate) -> dict[str, Any]:
        return dict(zip(choice.keys, candidate.values, strict=True))

    def loss(candidate: Candidate) -> float | None:
        found = candidate.loss(choice.seeds) if candidate.losses else math.inf
        return found if math.isfinite(found) else None

    return {
        "grid": folder,
        "settings": named(choice.chosen),
        "among": [{"settings": named(c), "loss": loss(c)} for c in choice.candidates],
        "split": SPLIT,
        "convention": choice.convention,
        "tokens": choice.tokens,
        "seeds": choice.seeds,
    }


def _has(record: Mapping[str, Any], asked: EvalConfig) -> bool:
    """Whether a record holds all that is asked, measured under the same settings."""
    before, now = record["config"]["eval"], to_dict(RunConfig(eval=asked))["eval"]
    return all(
        _at(before, each.place) == _at(now, each.place)
        and any(name.startswith(each.metrics) for name in record["metrics"])
        for each in asked_for(asked)
    )


def _at(tree: Any, place: Sequence[str]) -> Any:
    for name in place:
        tree = (tree or {}).get(name)
    return tree
