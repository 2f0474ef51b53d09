"""Whether the base model in memory is the one that was named: all of its tensors, and no others.

transformers fills what a checkpoint lacks with random numbers and tells the screen in a table. Here
a tensor that is missing, has another shape or is not finite is an error in one line, and a tensor
that is left over is a warning in one line.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from hylorada.errors import DataError

logger = logging.getLogger(__name__)

_NAMED = 3  # names in one message

# What the class in config.json ends in, if the checkpoint was made for another task.
_OTHER_HEADS = re.compile(
    r"For(Sequence|Token|Audio|Image)Classification$|ForQuestionAnswering$|ForMultipleChoice$"
    r"|ForMaskedLM$|ForNextSentencePrediction$|RewardModel$"
)


def refuse_other_task(config: Any, what: str) -> None:
    """Refuse a classifier or an encoder, by what its config.json says it is.

    With tied embeddings such a checkpoint lacks nothing that a language model needs, and yet is
    none.

    Args:
        config: a transformers configuration.
        what: how the user named the model, for the message.

    Raises:
        DataError: it was made for another task.
    """
    for name in getattr(config, "architectures", None) or ():
        if _OTHER_HEADS.search(name):
            raise DataError(
                f"{what}: config.json says {name}, which is not a causal language model; give the "
                "language model that it was made from"
            )


@contextmanager
def reported_here() -> Iterator[None]:
    """Inside the block transformers keeps its table of missing tensors from the screen."""
    source = logging.getLogger("transformers.modeling_utils")
    source.addFilter(_not_ours)
    try:
        yield
    finally:
        source.removeFilter(_not_ours)


def _not_ours(record: logging.LogRecord) -> bool:
    """Whether a message is not among those that `check_loaded` says in its own words."""
    text = record.getMessage()
    return not any(
        part in text
        for part in ("LOAD REPORT", "so we will NOT tie them", "checkpoint seem corrupted")
    )


def check_loaded(model: Any, info: Mapping[str, Any], what: str) -> None:
    """Refuse a model that is not, tensor by tensor, what its checkpoint holds.

    Tensors that follow from others (tied heads, buffers that are computed) are not missed. Nor is
    anything said of left-over tensors that the model's class knows to ignore.

    Args:
        model: what `from_pretrained` returned.
        info: its loading info, from ``output_loading_info=True``.
        what: how the user named the model, for the messages.

    Raises:
        DataError: tensors are missing, have another shape, or are not finite.
    """
    unexpected = check_names(model, info, what)
    if unexpected:
        logger.warning(
            "%s: its weights hold %s that %s does not have and that %s left out, first %s",
            what, _count(unexpected), type(model).__name__,
            "is" if len(unexpected) == 1 else "are", unexpected[0],
        )  # fmt: skip
    _untie_other_head(model, what)
    _refuse_nonfinite(model, what)


def check_names(model: Any, info: Mapping[str, Any], what: str) -> list[str]:
    """The part of `check_loaded` that needs no weights: names and shapes, from the headers.

    Args:
        model: what `from_pretrained` returned, also on the meta device.
        info: its loading info.
        what: how the user named the model, for the messages.

    Returns:
        The tensors that are left over.

    Raises:
        DataError: tensors are missing or have another shape.
    """
    kind = type(model).__name__
    if getattr(model, "_hf_peft_config_loaded", False):
        raise DataError(
            f"{what}: the repository holds an adapter beside the model, which transformers would "
            "load; give the base as model=... and the adapter to hylorada-eval adapter=FOLDER"
        )
    order = {name: place for place, name in enumerate(model.state_dict())}

    def in_order(names: Iterable[str]) -> list[str]:
        return sorted(names, key=lambda name: (order.get(name, len(order)), name))

    shapes = {
        name: (tuple(found), tuple(wanted)) for name, found, wanted in info["mismatched_keys"]
    }
    if shapes:
        name = in_order(shapes)[0]
        found, wanted = shapes[name]
        raise DataError(
            f"{what}: {_count(shapes)} in its weights {_have(shapes)} another shape than "
            f"config.json says, first {name} ({_by(found)}, not {_by(wanted)}); the two belong to "
            "different models, restore them"
        )
    missing, unexpected = in_order(info["missing_keys"]), in_order(info["unexpected_keys"])
    if missing:
        raise DataError(
            f"{what}: its weights lack {_count(missing)} of {kind}, first {_names(missing)}; "
            f"{_why(model, missing, unexpected)}"
        )
    return unexpected


def _why(model: Any, missing: list[str], unexpected: list[str]) -> str:
    """What may have happened to the missing tensors, and what to do."""
    prefix = _common_prefix(missing, unexpected)
    if prefix:
        return (
            f"they stand under the prefix {prefix!r}, as a wrapper around the model saves them; "
            "save the model inside it"
        )
    made_for = ", ".join(getattr(model.config, "architectures", None) or ())
    said = f" (config.json says {made_for})" if made_for else ""
    return f"give a whole checkpoint of a causal language model{said}; nothing is made up here"


def _common_prefix(missing: list[str], unexpected: list[str]) -> str:
    """What stands before the missing names in the file (``module.``), if one thing does."""
    left_over = set(unexpected)
    for name in unexpected:
        if name.endswith(f".{missing[0]}"):
            prefix = name.removesuffix(missing[0])
            if all(f"{prefix}{other}" in left_over for other in missing):
                return prefix
    return ""


def _untie_other_head(model: Any, what: str) -> None:
    """transformers keeps a head that differs from the embeddings, whatever config.json says."""
    text_config = model.config.get_text_config(decoder=True)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or not getattr(text_config, "tie_word_embeddings", False):
        return
    if head.weight is embeddings.weight or torch.equal(head.weight, embeddings.weight):
        return
    logger.warning(
        "%s: config.json ties the output head to the token embeddings, but the weights hold a head "
        "with other values; that head is used",
        what,
    )
    for config in (model.config, text_config):  # so that nothing ties it later, nor when read again
        config.tie_word_embeddings = False


@torch.no_grad()
def _refuse_nonfinite(model: Any, what: str) -> None:
    """Sums in float64 are finite exactly if every number is: no float32 overflows there."""
    bad = [
        name
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point()
        and not math.isfinite(parameter.sum(dtype=torch.float64).item())
    ]
    if bad:
        raise DataError(
            f"{what}: {_count(bad)} in its weights {_have(bad)} numbers that are not finite, first "
            f"{_names(bad)}; the file is damaged or its training diverged"
        )


def _count(names: Any) -> str:
    return "1 tensor" if len(names) == 1 else f"{len(names)} tensors"


def _have(names: Any) -> str:
    return "has" if len(names) == 1 else "have"


def _names(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"
