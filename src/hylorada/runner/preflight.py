"""What is refused before weights are read, text is tokenised at length, or anything is measured.

config.json and the tokenizer tell most of what a run cannot do: the model without weights, on the
meta device, has every module and every shape. The cheapest comes first: the device, the model and
its tokenizer, the method on the model, the questions of the evaluation, the first document of each
split, names and shapes in the headers of the files of weights. A single run, every cell of a sweep
before the first one starts, and `hylorada-eval` go through it.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM

from hylorada.architecture import anatomy
from hylorada.config import DatasetConfig, ModelConfig, RunConfig
from hylorada.data.readers import read_documents
from hylorada.errors import ConfigError, DataError, HyloradaError, in_one_line
from hylorada.evaluation.measurement import asked_for
from hylorada.kernels.compiled import refuse_without_compiler
from hylorada.loading.availability import downloaded, explained
from hylorada.loading.backbone import Blueprint, open_base, stored
from hylorada.loading.quantized import refuse_elsewhere
from hylorada.loading.weight_precision import weight_files
from hylorada.loading.whole_weights import check_names, reported_here
from hylorada.methods import adapt
from hylorada.methods.adaptive_rule import from_method
from hylorada.methods.integrity.adapters import count_by_component
from hylorada.methods.integrity.probe import vocabulary_size
from hylorada.methods.peft_methods import attach_peft_method
from hylorada.methods.placement import linear_names
from hylorada.methods.position_range import extend_range, nothing_to_extend
from hylorada.methods.s2_attention import enable_s2
from hylorada.methods.split_limits import refuse_unsplittable
from hylorada.process.device import choose_autocast, choose_device, choose_dtype
from hylorada.process.session import session
from hylorada.records.outcome import recorded
from hylorada.records.result import blank_result
from hylorada.training.group_rates import rates_by_name
from hylorada.training.loss import refuse_adapted_head
from hylorada.training.retrieval_blocks import RetrievalBlocks

logger = logging.getLogger(__name__)
T = TypeVar("T")

_AROUND = 16  # bytes: room for the tokens that a tokenizer puts before and after a text


class Preflight:
    """All checks before a run; what several runs have in common is checked once."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}

    def check(self, config: RunConfig, *, trains: bool = True, here: bool = True) -> Blueprint:
        """Check everything that can be known of these settings without weights.

        Args:
            config: the run's settings, validated.
            trains: False where a model is only measured, which was trained before.
            here: whether it happens on this machine, whose devices it then needs.

        Returns:
            The base model, opened.

        Raises:
            HyloradaError: the first thing that cannot be.
        """
        window, settings = config.length.max_length, config.eval
        if here:
            device = choose_device(config.device)
            choose_autocast(config.train.precision, device)
            refuse_elsewhere(config.model, device)
            if trains and config.train.gradient_checkpointing_offload and device.type == "cpu":
                raise ConfigError(
                    "train.gradient_checkpointing_offload=true has no effect on a CPU, whose "
                    "memory everything lies in already; set it to false"
                )
            if trains and config.method.trains and config.train.compile == "layers":
                refuse_without_compiler(device)
        base = ["base", config.model]
        opened = self._once(base, lambda: open_base(config.model))
        if trains:
            self.trained(config, opened)
        else:
            self._once([*base, "skeleton"], lambda: without_weights(config.model, opened))
        asked = asked_for(settings)
        for measurement in asked:
            self._once(
                [*base, measurement.name, measurement.settings(settings), window],
                functools.partial(measurement.check_with_tokenizer, config, opened.tokenizer),
            )
        learns = trains and config.method.trains
        task = config.train.retrieval
        if learns and (config.train.task == "retrieval" or config.train.mix):
            self._once(
                [*base, "task", task, window],
                lambda: RetrievalBlocks(opened.tokenizer, window, task, config.seed),
            )
        wanted = max((measurement.longest_text(config) for measurement in asked), default=1)
        splits = {settings.perplexity.split: wanted}
        if learns and config.train.eval_every:
            splits.setdefault("validation", 1)
        if learns and config.train.task == "text":
            splits["train"] = max(window, splits.get("train", 1))
        for split, tokens in splits.items():
            self._once(
                ["text", config.dataset, split, tokens],
                functools.partial(_check_split, config.dataset, split, tokens),
            )
        self._once([*base, "weights"], lambda: _check_weights(config.model, opened))
        if here:
            choose_dtype(
                config.model.dtype, config.train.precision, choose_device(config.device),
                lambda: stored(opened),
            )  # fmt: skip
        return opened

    def trained(self, config: RunConfig, opened: Blueprint) -> dict[str, int] | None:
        """Values that train, by component; None where only the weights themselves can tell.

        Args:
            config: the run's settings, validated.
            opened: the base that they name.

        Raises:
            HyloradaError: the method does not fit the model.
        """
        of_train = [config.train.gradient_checkpointing, config.train.lr_scale]
        what = ["base", config.model, config.method, config.length.max_length, *of_train]
        return self._once(what, lambda: _check_method(config, opened))

    def _once(self, key_parts: list[Any], call: Callable[[], T]) -> T:
        """The call's result or error; the call is made only the first time for the same key."""
        key = json.dumps(key_parts, default=dataclasses.asdict, sort_keys=True)
        if key not in self._known:
            try:
                self._known[key] = call()
            except HyloradaError as error:
                self._known[key] = error
        found = self._known[key]
        if isinstance(found, HyloradaError):
            raise found
        return found


def refused_cells(cells: Mapping[str, RunConfig], here: bool) -> dict[str, HyloradaError]:
    """Of the cells of a sweep, by directory, those that cannot run.

    Each leaves its record, so that a table shows it.

    Args:
        cells: directory -> settings, validated.
        here: see `Preflight.check`.
    """
    refused: dict[str, HyloradaError] = {}
    preflight = Preflight()
    for directory, config in cells.items():
        try:
            preflight.check(config, here=here)
        except HyloradaError as error:
            refused[directory] = _recorded(config, Path(directory), error)
        except (Exception, SystemExit):  # a bug: the cell itself will say which
            logger.debug("preflight of %s", directory, exc_info=True)
    return refused


def _recorded(config: RunConfig, directory: Path, error: HyloradaError) -> HyloradaError:
    """Write the record of a run that was refused before it started; returns the error."""
    try:
        with session(directory) as (_, log), recorded(directory, blank_result(config), log):
            raise error
    except HyloradaError as known:  # or that the directory cannot be used
        return known


def without_weights(settings: ModelConfig, opened: Blueprint) -> Any:
    """The model without weights, which its tokenizer must fit; None where it cannot be built so."""
    config = copy.deepcopy(opened.config)  # from_config writes into it
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, attn_implementation=settings.attn_implementation
            )
    except RuntimeError as error:
        logger.debug("preflight: no model without weights: %s", error)
        return None
    except Exception as error:
        with explained(settings, opened.where):
            raise error
    vocabulary_size(model, opened.tokenizer)
    anatomy.output_head(model)
    anatomy.trained_length(model.config)
    return model


def _check_method(config: RunConfig, opened: Blueprint) -> dict[str, int] | None:
    """The method, attached to the model without weights; the values that train, by component."""
    model, length = without_weights(config.model, opened), config.length.max_length
    if model is None:
        return None
    if config.train.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise ConfigError(
            f"train.gradient_checkpointing=true: {type(model).__name__} does not support it; "
            "set it to false"
        )
    if config.method.skipped_positions.enabled:
        _check_skipped_positions(model, length)
    if config.method.peft:
        return _check_peft_method(config, model)
    method = from_method(config.method, length, model.config)
    if method is None:
        position_range = config.method.position_range
        extend_range(
            model, length, position_range.learned_init, position_range.rope_type,
            position_range.rope_factor,
        )  # fmt: skip
        return {}
    if not isinstance(method.target_modules, str):
        _check_targets(model, config.method.lora.target_modules)
    counted: dict[str, int] | None = None
    try:
        with warnings.catch_warnings(action="ignore"):  # the run itself will warn
            adapted = adapt(model, method, length)
            refuse_adapted_head(adapted)
            rates_by_name(adapted, config.train.lr_scale)
            counted = count_by_component(adapted)
            if method.s2_arguments:
                _switch_s2_on(adapted, method.s2_arguments)
            if config.sequence_ranks > 1:
                refuse_unsplittable(adapted, config.sequence_ranks, length)
    except HyloradaError:
        raise
    except ValueError as error:  # peft's, of settings that do not fit the model
        reason = in_one_line(error)
        raise ConfigError(f"method.lora: {reason[:300]}; change it, or the model") from error
    except RuntimeError as error:
        # What the meta device cannot do is no fault of the settings: the run itself will tell.
        logger.debug("preflight: not tried without weights: %s", error)
    return counted


def _switch_s2_on(model: Any, arguments: dict[str, Any]) -> None:
    """Shifted attention, probed as far as the meta device can: it stays on where that cannot."""
    try:
        enable_s2(model, **arguments)
    except RuntimeError as error:
        logger.debug("preflight: not tried without weights: %s", error)


def _check_skipped_positions(model: Any, length: int) -> None:
    """Refuses a model to which the numbers of its positions say nothing, or nothing new."""
    trained = anatomy.trained_length(model.config)
    on = "method.skipped_positions.enabled=true"
    if length <= trained:
        raise ConfigError(
            f"{on} has no effect: length.max_length is {length} and the base was trained on "
            f"{trained} tokens; use a longer one, or set it to false"
        )
    reason = nothing_to_extend(model)
    if reason:
        raise ConfigError(f"{on} has no effect: {reason}; set it to false")


def _check_peft_method(config: RunConfig, model: Any) -> dict[str, int] | None:
    """Another method of peft, attached to the model without weights."""
    try:
        with warnings.catch_warnings(action="ignore"):  # the run itself will warn
            length = config.length.max_length
            attached = attach_peft_method(model, config.method, length)
            refuse_adapted_head(attached.model)
            rates_by_name(attached.model, config.train.lr_scale)
            if config.sequence_ranks > 1:
                refuse_unsplittable(attached.model, config.sequence_ranks, length)
            return count_by_component(attached.model)
    except RuntimeError as error:
        logger.debug("preflight: not tried without weights: %s", error)
    return None


def _check_targets(model: Any, targets: list[str]) -> None:
    """Each target names some module, as peft matches names: whole, or the end of a path."""
    names = [name for name, _ in model.named_modules()]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise ConfigError(
                f"method.lora.target_modules: {type(model).__name__} has no module {target}; write "
                f"[auto], [attention], or names such as {', '.join(linear_names(model, 'auto'))}"
            )


def _check_weights(settings: ModelConfig, opened: Blueprint) -> None:
    """Files of weights: there, as long as their headers say, with the tensors of the model."""
    what = f"model.path={settings.path}"
    if opened.where == "gguf":
        return  # read as a whole
    with explained(settings, opened.where):
        files = downloaded(
            settings,
            opened.where,
            lambda: weight_files(opened.source, opened.config, **opened.options),
        )
    for file in files:
        try:
            file.open("rb").close()  # safetensors says of a file it may not read that it is missing
            with safe_open(str(file), "pt"):
                pass
        except PermissionError as error:
            raise DataError(
                f"{what}: {file} cannot be read ({error.strerror}); make it readable"
            ) from error
        except (SafetensorError, OSError) as error:
            reason = in_one_line(error, 200)
            raise DataError(
                f"{what}: {file.name} is damaged ({reason}); replace {file} with a whole copy"
            ) from error
    try:
        with explained(settings, opened.where), reported_here():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                opened.source,
                config=copy.deepcopy(opened.config),
                device_map="meta",
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **opened.options,
            )
    except HyloradaError:
        if not files:
            raise
        return  # what the meta device cannot do is no fault of the files: the run itself will tell
    model, info = loaded
    check_names(model, info, what)


def _check_split(dataset: DatasetConfig, split: str, tokens: int) -> None:
    """The first documents of a split, up to one that may have so many tokens, are there.

    No tokenizer here makes more tokens than bytes, but for the few that begin and end a text. With
    packing=reset documents are laid end to end.
    """
    longest, total, documents = 0, 0, 0
    for document in read_documents(dataset, split):
        documents += 1
        size = len(document.text.encode("utf-8", "surrogatepass")) + _AROUND
        longest, total = max(longest, size), total + size
        if (total if dataset.packing == "reset" else longest) >= tokens:
            return
    if not documents:
        raise DataError(
            f"dataset {dataset.name}: the {split} split has no document; choose another split, "
            "path or dataset"
        )
    what = "not one block" if split == "train" else "no document"
    raise DataError(
        f"dataset {dataset.name}: {what} of {tokens} tokens in the {split} split ({documents} "
        f"documents of {total:,} bytes in all, the longest {longest:,}); use a shorter length, or "
        "more text"
    )
