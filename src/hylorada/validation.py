"""Every check of a run's settings that needs no model: ranges, choices, combinations, paths.

Standard library only, so that a wrong setting is refused before torch loads. Each message says
which setting, what is wrong with it and what to do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

from hylorada import benchmarks
from hylorada.config import (
    SWITCH_KEYS,
    SWITCHES,
    ContextGainConfig,
    DatasetConfig,
    EvalConfig,
    LostInMiddleConfig,
    MethodConfig,
    ModelConfig,
    PerplexityConfig,
    RetrievalTaskConfig,
    RunConfig,
    S2AttentionConfig,
    TrainConfig,
)
from hylorada.errors import ConfigError, DataError
from hylorada.suggest import did_you_mean

DATASET_KINDS = ("stdlib", "wikitext", "pg19", "longbench", "local")
BUDGETS = ("epochs", "max_steps", "max_tokens")


def validate(config: RunConfig) -> None:
    """Refuses settings that are wrong by themselves or together.

    Raises:
        ConfigError: a setting out of its range, not among its choices, or without effect.
        DataError: a local path that does not exist.
    """
    _label("experiment", config.experiment)
    _label("length.name", config.length.name)
    _label("method.name", config.method.name)
    if not config.output_root:
        raise ConfigError(
            "output_root is empty; name the folder that holds the runs, as in outputs"
        )
    _between("seed", config.seed, 0, 2**32 - 1)
    _choice("device", config.device, ("auto", "cpu", "cuda"))
    _at_least("threads", config.threads, 0)
    _choice("resume", config.resume, ("auto", "must", "never"))
    _at_least("length.max_length", config.length.max_length, 2)
    _at_least("length.micro_batch_size", config.length.micro_batch_size, 1)
    _at_least("length.gradient_accumulation_steps", config.length.gradient_accumulation_steps, 1)
    _method(config.method, config.length.max_length)
    _model(config.model)
    _dataset(config.dataset)
    _train(config.train)
    _retrieval_task(config)
    _eval(config.eval, config.length.max_length, config.dataset.kind)
    _choice("track.kind", config.track.kind, ("offline", "wandb", "tensorboard", "off"))
    _at_least("integrity.probe_length", config.integrity.probe_length, 0)
    if config.integrity.allow_leak and not config.integrity.enabled:
        raise ConfigError(
            "integrity.allow_leak=true has no effect with integrity.enabled=false; set one of them"
        )


def _method(method: MethodConfig, max_length: int) -> None:
    lora, landmark, position_range = method.lora, method.landmark, method.position_range
    for key in SWITCH_KEYS:
        value = attrgetter(key.removeprefix("method."))(method)
        _choice(key, value, SWITCHES)
        if value == "true" and not lora.enabled:
            raise ConfigError(
                f"{key}=true has no effect with method.lora.enabled=false (nothing is attached); "
                f"set {key}=false or method.lora.enabled=true"
            )
    _at_least("method.lora.r", lora.r, 1)
    _above("method.lora.lora_alpha", lora.lora_alpha, 0.0)
    _fraction("method.lora.lora_dropout", lora.lora_dropout)
    _choice("method.lora.init", lora.init, ("orthogonal", "kaiming"))
    if not lora.target_modules or not all(lora.target_modules):
        raise ConfigError("method.lora.target_modules is empty; write [auto] or names of modules")
    _at_least("method.position_bias.buckets", method.position_bias.buckets, 1)
    _choice("method.position_bias.bucketing", method.position_bias.bucketing, ("log2", "relative"))
    _at_least("method.landmark.num_landmarks", landmark.num_landmarks, 1)
    _choice("method.landmark.pooling", landmark.pooling, ("prefix_mean", "sequence_mean"))
    _at_least("method.landmark.position_buckets", landmark.position_buckets, 0)
    _s2(method.s2_attn, max_length)
    _choice(
        "method.position_range.learned_init", position_range.learned_init, ("interpolate", "tile")
    )
    _choice(
        "method.position_range.rope_type",
        position_range.rope_type,
        ("auto", "linear", "yarn", "dynamic", "none"),
    )
    factor = position_range.rope_factor
    if not (factor == 0 or (math.isfinite(factor) and factor >= 1)):
        raise ConfigError(
            f"method.position_range.rope_factor is {factor}; it must be 1 or more, or 0 for "
            "length / trained length"
        )
    if position_range.rope_type == "none" and factor > 0:
        raise ConfigError(
            f"method.position_range.rope_factor={factor} has no effect with rope_type=none; "
            "leave it at 0 or choose linear, yarn or dynamic"
        )


def _s2(s2: S2AttentionConfig, max_length: int) -> None:
    _choice("method.s2_attn.shift", s2.shift, ("layers", "heads"))
    group = s2.group_size
    if group < 0 or group % 2:
        raise ConfigError(
            f"method.s2_attn.group_size is {group}; it must be an even number of tokens (half a "
            "group is the shift), or 0 for length / 4"
        )
    if s2.enabled == "true" and group >= max_length:
        raise ConfigError(
            f"method.s2_attn.group_size is {group} tokens, but length.max_length is {max_length}: "
            "one group would hold the whole sequence; set a smaller group_size, or 0 for length / 4"
        )
    if s2.enabled == "true" and group == 0 and (max_length < 8 or max_length % 8):
        raise ConfigError(
            f"method.s2_attn.group_size=0 means length / 4, which is no even number at "
            f"length.max_length={max_length}; set an even group_size"
        )
    if s2.in_evaluation and s2.enabled == "false":
        raise ConfigError(
            "method.s2_attn.in_evaluation=true has no effect with method.s2_attn.enabled=false; "
            "set in_evaluation=false"
        )


def _model(model: ModelConfig) -> None:
    if not model.attn_implementation:
        raise ConfigError("model.attn_implementation is empty; name one, as in sdpa")
    if not model.path:
        raise ConfigError(
            "model.path is empty; set it to a hub id or a folder, as in model=./folder"
        )
    if model.path == "embedded":
        if model.revision:
            raise ConfigError(
                f"model.revision={model.revision!r} has no effect on the embedded model; "
                "leave it empty"
            )
    elif re.match(r"[./~]", model.path):
        folder = Path(model.path).expanduser()
        if not folder.is_dir():
            raise DataError(
                f"model.path: there is no folder {folder}; give an existing one, or a hub id "
                "such as openai-community/gpt2"
            )


def _dataset(dataset: DatasetConfig) -> None:
    _choice("dataset.kind", dataset.kind, DATASET_KINDS)
    _choice("dataset.packing", dataset.packing, ("documents", "reset"))
    _at_least("dataset.max_documents", dataset.max_documents, 0)
    if dataset.kind == "stdlib" and (dataset.path or dataset.hub_id):
        key = "path" if dataset.path else "hub_id"
        raise ConfigError(
            f"dataset.{key} has no effect with dataset.kind=stdlib; use dataset=local "
            "dataset.path=... for text of your own"
        )
    if dataset.kind == "local" and not dataset.path:
        raise ConfigError("dataset.path is empty; dataset=local needs dataset.path=FILE_OR_FOLDER")
    if dataset.kind not in ("stdlib", "local") and not (dataset.path or dataset.hub_id):
        raise ConfigError(
            f"dataset.kind={dataset.kind} needs dataset.hub_id or dataset.path; both are empty"
        )
    if dataset.path and not Path(dataset.path).expanduser().exists():
        raise DataError(f"dataset.path: {dataset.path} does not exist; give a file or a folder")
    if dataset.tasks and dataset.kind != "longbench":
        raise ConfigError(
            f"dataset.tasks has no effect with dataset.kind={dataset.kind}; only longbench "
            "has tasks"
        )
    if not dataset.text_column:
        raise ConfigError("dataset.text_column is empty; name the column that holds the text")


def _train(train: TrainConfig) -> None:
    amounts = {key: getattr(train, key) for key in BUDGETS}
    for key, amount in amounts.items():
        _at_least(f"train.{key}", amount, 0)
    given = [f"train.{key}={amount:g}" for key, amount in amounts.items() if amount > 0]
    if len(given) != 1:
        have = " and ".join(given) if given else "none is"
        raise ConfigError(
            f"exactly one of train.epochs, train.max_steps, train.max_tokens must be above 0, "
            f"but {have}{' are' if given else ''}; set the others to 0"
        )
    _at_least("train.micro_batch_size", train.micro_batch_size, 1)
    _at_least("train.gradient_accumulation_steps", train.gradient_accumulation_steps, 1)
    _above("train.lr", train.lr, 0.0)
    _choice("train.lr_scheduler", train.lr_scheduler, ("cosine", "constant"))
    _between("train.min_lr_ratio", train.min_lr_ratio, 0.0, 1.0)
    _fraction("train.warmup_ratio", train.warmup_ratio)
    _at_least("train.weight_decay", train.weight_decay, 0.0)
    _fraction("train.adam_beta1", train.adam_beta1)
    _fraction("train.adam_beta2", train.adam_beta2)
    _above("train.adam_epsilon", train.adam_epsilon, 0.0)
    _at_least("train.max_grad_norm", train.max_grad_norm, 0.0)
    _choice("train.precision", train.precision, ("auto", "fp32", "bf16"))
    _at_least("train.max_nonfinite_steps", train.max_nonfinite_steps, 1)
    _at_least("train.eval_every", train.eval_every, 0)
    _at_least("train.save_every", train.save_every, 0)
    _at_least("train.keep_checkpoints", train.keep_checkpoints, 1)
    _at_least("train.log_every", train.log_every, 1)
    _at_least("train.loss_chunk", train.loss_chunk, 1)


def _retrieval_task(config: RunConfig) -> None:
    train, task = config.train, config.train.retrieval
    _choice("train.task", train.task, ("text", "retrieval"))
    _at_least("train.retrieval.sequences", task.sequences, 1)
    _at_least("train.retrieval.items", task.items, 0)
    _choice("train.retrieval.key_style", task.key_style, ("uuid", "hex"))
    for depth in task.held_out:
        _between("train.retrieval.held_out", depth, 0, 1)
    if train.task == "text":
        if task != RetrievalTaskConfig():
            raise ConfigError(
                "train.retrieval has no effect with train.task=text; use train=retrieval or leave "
                "it as it is"
            )
        return
    if train.max_tokens:
        raise ConfigError(
            f"train.max_tokens={train.max_tokens} cannot be kept with train.task=retrieval, whose "
            "sequences differ in scored tokens; use train.max_steps or train.epochs"
        )
    if config.dataset.packing == "reset":
        raise ConfigError(
            "dataset.packing=reset has no effect with train.task=retrieval, which packs no "
            "documents; set dataset.packing=documents"
        )
    lim = config.eval.lost_in_middle
    if not lim.enabled:
        return
    unheld = [depth for depth in lim.depths if depth not in task.held_out]
    if unheld:
        raise ConfigError(
            f"eval.lost_in_middle.depths has {unheld[0]:g}, which train.retrieval.held_out has "
            "not: the model may be trained on it; ask at depths that are held out"
        )
    if lim.form == "kv" and not lim.path and lim.key_style != task.key_style:
        raise ConfigError(
            f"eval.lost_in_middle.key_style is {lim.key_style}, train.retrieval.key_style "
            f"{task.key_style}; set both alike"
        )


def _eval(settings: EvalConfig, window: int, kind: str) -> None:
    _perplexity(settings.perplexity, window, kind)
    _lost_in_middle(settings.lost_in_middle)
    _context_gain(settings.context_gain, window)
    benchmarks.validate(settings.harness, window)
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
    _each_once("eval.perplexity.conventions", asked, ("blocks", "sliding", "word", "paper"))
    if "paper" in asked and kind != "wikitext":
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
    _choice("eval.perplexity.split", perplexity.split, ("train", "validation", "test"))
    _between("eval.perplexity.stride", perplexity.stride, 0, window)
    if perplexity.stride and not {"sliding", "word"} & set(asked):
        raise ConfigError(
            f"eval.perplexity.stride={perplexity.stride} has no effect without the sliding "
            "convention; add sliding to eval.perplexity.conventions or set stride=0"
        )
    _at_least("eval.perplexity.max_tokens", perplexity.max_tokens, 0)
    _at_least("eval.perplexity.max_blocks", perplexity.max_blocks, 0)
    _at_least("eval.perplexity.batch_size", perplexity.batch_size, 1)
    _between("eval.perplexity.position_buckets", perplexity.position_buckets, 1, window)


def _lost_in_middle(lim: LostInMiddleConfig) -> None:
    key = "eval.lost_in_middle"
    _choice(f"{key}.form", lim.form, ("kv", "passkey", "nq"))
    _choice(f"{key}.key_style", lim.key_style, ("uuid", "hex"))
    _at_least(f"{key}.examples", lim.examples, 1)
    _at_least(f"{key}.max_new_tokens", lim.max_new_tokens, 0)
    _at_least(f"{key}.seed", lim.seed, 0)
    _at_least(f"{key}.items", lim.items, 0)
    if not lim.enabled:
        return
    if not lim.scorings:
        raise ConfigError(f"{key}.scorings is empty; name ranked, generated or both")
    _each_once(f"{key}.scorings", lim.scorings, ("ranked", "generated"))
    if not lim.depths or len(set(lim.depths)) < len(lim.depths):
        raise ConfigError(f"{key}.depths is {lim.depths}; name at least one, each once")
    for depth in lim.depths:
        _between(f"{key}.depths", depth, 0, 1)
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
    _at_least("eval.context_gain.targets", gain.targets, 1)
    _at_least("eval.context_gain.places", gain.places, 1)
    for context in gain.contexts:
        _at_least("eval.context_gain.contexts", context, 1)
    if not gain.enabled:
        return
    fitting = gain.fitting(window)
    if len(fitting) < 2:
        raise ConfigError(
            f"eval.context_gain.contexts: of {gain.contexts} with {gain.targets} targets, "
            f"{len(fitting)} fit the window of {window} tokens, and it takes two to compare; use "
            "shorter contexts or fewer targets"
        )


def _each_once(key: str, values: Sequence[str], choices: Sequence[str]) -> None:
    if len(set(values)) < len(values):
        raise ConfigError(
            f"{key} is {values}; name {', '.join(choices[:-1])} or {choices[-1]}, each once"
        )
    for value in values:
        _choice(key, value, choices)


def _choice(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(
            f"{key} is {value!r}; choose {', '.join(choices[:-1])} or {choices[-1]}"
            f"{did_you_mean(value, choices)}"
        )


def _at_least(key: str, value: float, low: float) -> None:
    if not (math.isfinite(value) and value >= low):
        raise ConfigError(f"{key} is {value}; it must be {low:g} or more")


def _above(key: str, value: float, low: float) -> None:
    if not (math.isfinite(value) and value > low):
        raise ConfigError(f"{key} is {value}; it must be above {low:g}")


def _between(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{key} is {value}; it must be from {low:g} to {high:.10g}")


def _fraction(key: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigError(f"{key} is {value}; it must be 0 or more and below 1")


def _label(key: str, value: str) -> None:
    """A name that becomes part of a path or of a key in a record."""
    if not re.fullmatch(r"[\w][\w.+-]*", value):
        raise ConfigError(f"{key} is {value!r}; use letters, digits, '.', '_', '+' and '-' only")
