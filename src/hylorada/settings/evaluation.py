"""What is measured: `eval`."""

from __future__ import annotations

from pathlib import Path

from hylorada.config import ContextGainConfig, EvalConfig, LostInMiddleConfig, PerplexityConfig
from hylorada.errors import ConfigError, DataError
from hylorada.extensions import DATA_KINDS
from hylorada.settings import harness_tasks
from hylorada.settings.checks import at_least, between, choice, each_once


def check_eval(settings: EvalConfig, window: int, kind: str) -> None:
    """Refuses evaluations that are wrong by themselves or together.

    Args:
        settings: `eval`.
        window: tokens, `length.max_length`.
        kind: `dataset.kind`.

    Raises:
        ConfigError: a setting out of its range, not among its choices, or without effect.
        DataError: a local path that does not exist.
    """
    _perplexity(settings.perplexity, window, kind)
    _lost_in_middle(settings.lost_in_middle)
    _context_gain(settings.context_gain, window)
    harness_tasks.check(settings.harness, window)
    if not (
        settings.perplexity.conventions
        or settings.lost_in_middle.enabled
        or settings.context_gain.enabled
        or settings.harness.enabled
    ):
        raise ConfigError(
            "eval measures nothing: eval.perplexity.conventions is empty, and none of "
            "eval.lost_in_middle, eval.context_gain and eval.harness is enabled"
        )


def _perplexity(perplexity: PerplexityConfig, window: int, kind: str) -> None:
    asked = perplexity.conventions
    each_once("eval.perplexity.conventions", asked, ("blocks", "sliding", "word", "paper"))
    if "paper" in asked and "paragraphs" not in DATA_KINDS.part(kind, "KIND").units:
        raise ConfigError(
            "eval.perplexity.conventions: paper is the mean over WikiText's paragraphs, and "
            f"dataset.kind is {kind}; use dataset=wikitext2, or blocks"
        )
    whole = next((name for name in ("word", "paper") if name in asked), None)
    if whole and perplexity.max_blocks:
        raise ConfigError(
            f"eval.perplexity.conventions: {whole} is a number of the whole split; set "
            f"eval.perplexity.max_blocks=0 or leave {whole} out"
        )
    choice("eval.perplexity.split", perplexity.split, ("train", "validation", "test"))
    between("eval.perplexity.stride", perplexity.stride, 0, window)
    if perplexity.stride and not {"sliding", "word"} & set(asked):
        raise ConfigError(
            f"eval.perplexity.stride={perplexity.stride} has no effect without the sliding "
            "convention; add sliding to eval.perplexity.conventions or set stride=0"
        )
    at_least("eval.perplexity.max_tokens", perplexity.max_tokens, 0)
    at_least("eval.perplexity.max_blocks", perplexity.max_blocks, 0)
    at_least("eval.perplexity.batch_size", perplexity.batch_size, 1)
    between("eval.perplexity.position_buckets", perplexity.position_buckets, 1, window)


def _lost_in_middle(lim: LostInMiddleConfig) -> None:
    key = "eval.lost_in_middle"
    choice(f"{key}.form", lim.form, ("kv", "passkey", "nq"))
    choice(f"{key}.key_style", lim.key_style, ("uuid", "hex"))
    at_least(f"{key}.examples", lim.examples, 1)
    at_least(f"{key}.max_new_tokens", lim.max_new_tokens, 0)
    at_least(f"{key}.seed", lim.seed, 0)
    at_least(f"{key}.items", lim.items, 0)
    if not lim.enabled:
        return
    if not lim.scorings:
        raise ConfigError(f"{key}.scorings is empty; name ranked, generated or both")
    each_once(f"{key}.scorings", lim.scorings, ("ranked", "generated"))
    if not lim.depths or len(set(lim.depths)) < len(lim.depths):
        raise ConfigError(f"{key}.depths is {lim.depths}; name at least one, each once")
    for depth in lim.depths:
        between(f"{key}.depths", depth, 0, 1)
    if lim.max_new_tokens and "generated" not in lim.scorings:
        raise ConfigError(
            f"{key}.max_new_tokens={lim.max_new_tokens} has no effect without the generated "
            "scoring; add generated to scorings or set it to 0"
        )
    if lim.key_style != "uuid" and (lim.form != "kv" or lim.path):
        raise ConfigError(
            f"{key}.key_style={lim.key_style} has an effect on generated pairs alone (form=kv "
            "without a path); leave it at uuid"
        )
    if lim.path and not Path(lim.path).expanduser().is_file():
        raise DataError(f"{key}.path: there is no file {lim.path}; give one in the published form")
    if lim.form == "passkey" and lim.path:
        raise ConfigError(f"{key}.path has no effect with form=passkey, which is generated")
    if lim.form == "kv" and lim.path and (lim.items or lim.seed):
        name = "items" if lim.items else "seed"
        raise ConfigError(
            f"{key}.{name} has no effect with a path: the file says which pairs; set it to 0"
        )
    if lim.form == "kv" and lim.items == 1:
        raise ConfigError(f"{key}.items is 1; it must be 2 or more, or 0 for as many as fit")
    if lim.form == "nq":
        if not lim.path:
            raise ConfigError(f"{key}.path is empty; form=nq needs the published oracle file")
        if lim.items < 2:
            raise ConfigError(
                f"{key}.items is {lim.items}; form=nq needs the documents of a prompt, as in 10"
            )
        if "ranked" in lim.scorings:
            raise ConfigError(
                f"{key}.scorings: answers of form=nq have no candidates to rank; set [generated]"
            )


def _context_gain(gain: ContextGainConfig, window: int) -> None:
    at_least("eval.context_gain.targets", gain.targets, 1)
    at_least("eval.context_gain.places", gain.places, 1)
    for context in gain.contexts:
        at_least("eval.context_gain.contexts", context, 1)
    if not gain.enabled:
        return
    fitting = gain.fitting(window)
    if len(fitting) < 2:
        raise ConfigError(
            f"eval.context_gain.contexts: of {gain.contexts} with {gain.targets} targets, "
            f"{len(fitting)} fit the window of {window} tokens, and it takes two to compare; use "
            "shorter contexts or fewer targets"
        )
