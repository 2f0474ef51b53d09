"""The checks of a run's settings; those of `eval` are in `settings.evaluation`."""

from __future__ import annotations

import re
from operator import attrgetter
from pathlib import Path

from hylorada.command_line.suggest import did_you_mean
from hylorada.config import (
    EMBEDDED,
    DatasetConfig,
    IntegrityConfig,
    MethodConfig,
    ModelConfig,
    RunConfig,
    S2AttentionConfig,
    TrainConfig,
)
from hylorada.config.rules import SWITCH_KEYS
from hylorada.errors import ConfigError, DataError
from hylorada.extensions import DATA_KINDS, TRACKERS
from hylorada.settings.best_weights import check_best
from hylorada.settings.checks import choice, fields, not_twice
from hylorada.settings.evaluation import check_eval
from hylorada.settings.fetched_models import check_fetched, fetched
from hylorada.settings.peft_method import check_peft
from hylorada.settings.rates import check_rates
from hylorada.settings.retrieval_task import check_retrieval_task
from hylorada.settings.skipped_positions import check_skipped_positions

SHORTEST_PROBE = 12  # tokens, of the integrity gate: room for several segments, cuts and pieces
BUDGETS = ("epochs", "max_steps", "max_tokens")


def check_settings(config: RunConfig) -> None:
    """Refuses settings that are wrong by themselves or together.

    Raises:
        ConfigError: a setting out of its range, not among its choices, or without effect.
        DataError: a local path that does not exist.
    """
    fields(config)
    if not config.output_root:
        raise ConfigError(
            "output_root is empty; name the folder that holds the runs, as in outputs"
        )
    _method(config.method, config.length.max_length)
    _model(config.model)
    _quantization(config.model, config.method)
    _dataset(config.dataset)
    _train(config.train)
    if config.train.compile == "layers" and config.method.s2_attn.largest_group:
        raise ConfigError(
            "train.compile=layers and method.s2_attn.largest_group exclude each other (each length "
            "of a segment would be compiled anew); set train.compile=none or largest_group=0"
        )
    _full_steps(config)
    check_rates(config)
    check_skipped_positions(config)
    check_retrieval_task(config)
    check_eval(config)
    choice("track.kind", config.track.kind, [*TRACKERS.names(), "off"])
    if config.track.kind != "off":
        TRACKERS.part(config.track.kind, "Backend")
    _integrity(config.integrity, config.length.max_length)


def _integrity(gate: IntegrityConfig, max_length: int) -> None:
    probe = gate.probe_length
    if gate.enabled and (probe or max_length) < SHORTEST_PROBE:
        raise ConfigError(
            f"integrity.probe_length: {probe or max_length} tokens; the gate needs "
            f"{SHORTEST_PROBE} at least; use a longer one, or integrity.enabled=false"
        )
    if gate.enabled and probe > max_length:
        raise ConfigError(
            f"integrity.probe_length is {probe} tokens, more than length.max_length "
            f"({max_length}); use a shorter one, or 0"
        )
    if gate.allow_leak and not gate.enabled:
        raise ConfigError(
            "integrity.allow_leak=true has no effect with integrity.enabled=false; set one of them"
        )


def _method(method: MethodConfig, max_length: int) -> None:
    lora, position_range = method.lora, method.position_range
    for key in SWITCH_KEYS:
        value = attrgetter(key.removeprefix("method."))(method)
        if value == "true" and not method.trains:
            raise ConfigError(
                f"{key}=true has no effect with method.lora.enabled=false (nothing is attached); "
                f"set {key}=false or method.lora.enabled=true"
            )
    if method.adapter_seed and not method.trains:
        raise ConfigError(
            f"method.adapter_seed={method.adapter_seed} has no effect with "
            "method.lora.enabled=false (nothing is drawn); set method.adapter_seed=0"
        )
    if method.placebo and method.position_bias.enabled == method.landmark.enabled == "false":
        raise ConfigError(
            "method.placebo=true has no effect without position bias and landmarks; switch one of "
            "them on, as in method=rslora_placebo, or set method.placebo=false"
        )
    check_peft(method)
    if not lora.target_modules or not all(lora.target_modules):
        raise ConfigError("method.lora.target_modules is empty; write [auto] or names of modules")
    not_twice("method.lora.target_modules", lora.target_modules)
    _s2(method.s2_attn, max_length)
    factor = position_range.rope_factor
    if position_range.rope_type == "none" and factor > 0:
        raise ConfigError(
            f"method.position_range.rope_factor={factor} has no effect with rope_type=none; "
            "leave it at 0 or choose linear, yarn or dynamic"
        )


def _s2(s2: S2AttentionConfig, max_length: int) -> None:
    group = s2.group_size
    if group % 2:
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
    _full_attention(s2)
    if s2.full_steps != "last" and not s2.full_share:
        raise ConfigError(
            f"method.s2_attn.full_steps={s2.full_steps} has no effect with "
            "method.s2_attn.full_share=0; set a share, or full_steps=last"
        )
    smallest = group or max_length // 8 * 2
    if s2.largest_group and not smallest < s2.largest_group <= max_length:
        raise ConfigError(
            f"method.s2_attn.largest_group is {s2.largest_group} tokens; it must be above the "
            f"group ({smallest}) and at most length.max_length ({max_length}), or 0 for one size"
        )


def _full_attention(s2: S2AttentionConfig) -> None:
    """Refuse shares of full attention that have no effect, or of which one hides another."""
    in_place = {"full_layers": "some layers", "full_heads": "some heads"}
    given = ""
    for key in (*in_place, "full_share", "largest_group"):
        value = getattr(s2, key)
        if not value:
            continue
        setting = f"{key}={value:g}"
        if s2.enabled == "false":
            raise ConfigError(
                f"method.s2_attn.{setting} has no effect with method.s2_attn.enabled=false; set it "
                "to 0"
            )
        if given:
            also = f"to {in_place[key]}" if key in in_place else "to all of them in some steps"
            raise ConfigError(
                f"method.s2_attn.{given} in every step, and {setting} {also}; set one of the two "
                "to 0"
            )
        if key in in_place:
            given = f"{setting} gives full attention to {in_place[key]}"
        elif s2.in_evaluation:
            raise ConfigError(
                f"method.s2_attn.{setting} gives segments to each training step, and "
                "in_evaluation=true asks for one size of them; set one of the two back"
            )


def _full_steps(config: RunConfig) -> None:
    share, steps = config.method.s2_attn.full_share, config.train.max_steps
    full = steps_with_full_attention(steps, share)
    if share and steps and not 0 < full < steps:
        raise ConfigError(
            f"method.s2_attn.full_share={share:g} of train.max_steps={steps} is "
            f"{'every step' if full else 'no step'}; use a share that leaves a step to both, or "
            "more steps"
        )


def steps_with_full_attention(steps: int, share: float) -> int:
    """How many of a run's steps attend fully, by their share (`s2_attn.full_share`)."""
    return round(steps * share)


def _model(model: ModelConfig) -> None:
    if not model.path:
        raise ConfigError(
            "model.path is empty; set it to a hub id or a folder, as in model=./folder"
        )
    if model.path == EMBEDDED:
        if model.revision:
            raise ConfigError(
                f"model.revision={model.revision!r} has no effect on the embedded model; "
                "leave it empty"
            )
    elif (known := fetched(model.path)) is not None:
        if model.revision:
            raise ConfigError(
                f"model.revision={model.revision!r} has no effect on {model.path}; leave it empty"
            )
        check_fetched(known)
    elif re.match(r"[./~]", model.path):
        folder = Path(model.path).expanduser()
        if not folder.is_dir() and not (folder.suffix == ".gguf" and folder.is_file()):
            if folder.is_file():
                raise DataError(
                    f"model.path: {folder} is a file; give the folder that save_pretrained wrote, "
                    "or a .gguf file"
                )
            what = "GGUF file" if folder.suffix == ".gguf" else "folder"
            raise DataError(
                f"model.path: there is no {what} {folder}; give an existing one, or a hub id "
                "such as openai-community/gpt2"
            )


def _quantization(model: ModelConfig, method: MethodConfig) -> None:
    what = f"model.quantization={model.quantization}"
    if model.quantization == "none":
        return
    if model.path.endswith(".gguf") or fetched(model.path):
        raise ConfigError(
            f"{what}: a GGUF file has a quantisation of its own and is dequantised when loaded; "
            "set model.quantization=none, or give the model that the file was made from"
        )
    if model.dtype == "file":
        raise ConfigError(
            f"{what} does not keep the weights as they are in the file (model.dtype=file); set "
            "model.dtype to auto or float32"
        )
    if method.peft or method.lora.use_dora:
        key = "method.peft" if method.peft else "method.lora.use_dora=true"
        raise ConfigError(
            f"{key}: computes from the weights of the base, which {what} quantises; use LoRA "
            "(method=lora, rslora, longlora, hylorada), or set model.quantization=none"
        )


def _dataset(dataset: DatasetConfig) -> None:
    choice("dataset.kind", dataset.kind, DATA_KINDS.names())
    kind = DATA_KINDS.part(dataset.kind, "KIND")
    given = [key for key in ("path", "hub_id") if getattr(dataset, key)]
    idle = [key for key in given if key not in kind.sources]
    if "hub_id" not in kind.sources:
        idle += [key for key in ("hub_config", "revision") if getattr(dataset, key)]
    if not kind.sources and dataset.text_column != DatasetConfig.text_column:
        idle.append("text_column")
    if idle:
        instead = "use dataset=hub for text of the hub, or leave it empty"
        if not kind.sources:
            instead = "use dataset=local dataset.path=... for text of your own"
        raise ConfigError(
            f"dataset.{idle[0]} has no effect with dataset.kind={dataset.kind}; {instead}"
        )
    if kind.sources == ("path",) and not dataset.path:
        raise ConfigError(
            f"dataset.path is empty; dataset={dataset.kind} needs dataset.path=FILE_OR_FOLDER"
        )
    if kind.sources and not given:
        needed = " or ".join(f"dataset.{key}" for key in kind.sources)
        raise ConfigError(f"dataset.kind={dataset.kind} needs {needed}; both are empty")
    if kind.check is not None:
        kind.check(dataset)
    if dataset.path and not Path(dataset.path).expanduser().exists():
        raise DataError(f"dataset.path: {dataset.path} does not exist; give a file or a folder")
    if dataset.tasks and not kind.tasks:
        able = [name for name in DATA_KINDS.names() if DATA_KINDS.part(name, "KIND").tasks]
        raise ConfigError(
            f"dataset.tasks has no effect with dataset.kind={dataset.kind}; it is for "
            f"{' and '.join(able)}"
        )
    unknown = [task for task in dataset.tasks if task not in kind.tasks]
    if unknown:
        raise ConfigError(
            f"dataset.tasks: {kind.title} has no {unknown[0]}"
            f"{did_you_mean(unknown[0], kind.tasks) or '.'} It has {', '.join(kind.tasks)}"
        )
    not_twice("dataset.tasks", dataset.tasks)
    if not dataset.text_column:
        raise ConfigError("dataset.text_column is empty; name the column that holds the text")


def check_splits(config: RunConfig) -> None:
    """Refuse to run what its kind of data set has no split for, as LongBench, a test set.

    Not part of `check_settings`, since an adapter may be measured under the same settings.

    Raises:
        DataError: naming the split.
    """
    kind = DATA_KINDS.part(config.dataset.kind, "KIND")
    train, wanted = config.train, [config.eval.perplexity.split]
    if config.method.trains and train.task == "text":
        wanted.append("train")
    if config.method.trains and train.eval_every:
        wanted.append("validation")
    for split in wanted:
        if split not in kind.splits:
            what = f"is a {kind.splits[0]} set and has" if len(kind.splits) == 1 else "has"
            raise DataError(
                f"dataset {config.dataset.name}: {kind.title} {what} no {split} split; "
                "train on another data set (pg19, wikitext103, local), or measure with "
                "method=baseline or hylorada-eval"
            )


def _train(train: TrainConfig) -> None:
    for key, usual in (("every", 1), ("offload", False)):
        value = getattr(train, f"gradient_checkpointing_{key}")
        if value != usual and not train.gradient_checkpointing:
            raise ConfigError(
                f"train.gradient_checkpointing_{key}={str(value).lower()} has no effect with "
                f"train.gradient_checkpointing=false; set that to true, or leave it at "
                f"{str(usual).lower()}"
            )
    if train.compile == "layers" and train.gradient_checkpointing:
        raise ConfigError(
            "train.compile=layers and train.gradient_checkpointing=true exclude each other (torch "
            "cannot compile the recomputation); switch one of them off"
        )
    deviations, plain = train.loss_spike_deviations, TrainConfig.loss_spike_deviations
    if train.loss_spike == "none" and deviations != plain:
        raise ConfigError(
            f"train.loss_spike_deviations={deviations:g} has no effect with train.loss_spike=none; "
            f"set that to warn, skip or stop, or leave it at {plain:g}"
        )
    check_best(train)
    if train.min_lr_ratio and train.lr_scheduler == "constant":
        raise ConfigError(
            f"train.min_lr_ratio={train.min_lr_ratio:g} has no effect with "
            "train.lr_scheduler=constant, which stays level; set it to 0, or use cosine"
        )
    amounts = {key: getattr(train, key) for key in BUDGETS}
    given = [f"train.{key}={amount:g}" for key, amount in amounts.items() if amount > 0]
    if len(given) != 1:
        have = " and ".join(given) if given else "none is"
        raise ConfigError(
            f"exactly one of train.epochs, train.max_steps, train.max_tokens must be above 0, "
            f"but {have}{' are' if given else ''}; set the others to 0"
        )
