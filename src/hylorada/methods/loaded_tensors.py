"""Did every tensor of an adapter's file reach the model, and does the model have no other?

peft loads with `strict=False`: what a file lacks stays as it was initialised, which is nothing at
all for most methods, and what it has too much is dropped. Either way a model is measured that
nobody trained. The question is put to peft's own functions, so that it holds for every method that
peft has: what would be saved now, and what became of the file's tensors.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import (
    PeftType,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft.utils.other import AuxiliaryTrainingWrapper
from peft.utils.transformers_weight_conversion import (
    convert_peft_adapter_state_dict_for_transformers,
    convert_peft_config_for_transformers,
)
from torch import Tensor, nn

from hylorada.architecture import anatomy
from hylorada.errors import DataError

_RELATIVE = 1e-3  # VB-LoRA saves a softmax of what it loads; all else arrives to the last bit


def check_loaded(model: PeftModel, folder: Path | str, adapter_name: str = "default") -> None:
    """Compare an adapter on a model with the file that it was loaded from.

    Right are: the keys that peft would write now, the same keys as another version of peft or of
    transformers wrote them, and tensors of the base model that were saved along and are now in it.

    Args:
        model: has just loaded the adapter.
        folder: holds adapter_config.json and the file of weights.
        adapter_name: of the adapter in the model.

    Raises:
        DataError: a tensor that the adapter needs is not in the file, or one of the file reached
            nothing; the first of each is named.
    """
    file = load_peft_weights(str(folder), device="cpu")
    held = _saved(model, adapter_name)
    missing: list[str] = []
    lost: set[str] = set()
    if set(held) != set(file):
        missing, lost = _loaded_again(model, file, held, adapter_name)
        held = _saved(model, adapter_name)
    held |= {key: tensor for key, tensor in model.state_dict().items() if key in file}
    lost |= {key for key in file if key in held and not _same(held[key], file[key])}
    refuse_unfitting(str(folder), missing, sorted(lost - _saved_twice(model, file, lost)))


def refuse_unfitting(what: str, missing: list[str], unexpected: list[str]) -> None:
    """Refuse an adapter whose file lacks some of its tensors, or holds others.

    Args:
        what: was loaded.
        missing: tensors that the model expects.
        unexpected: tensors of the file.

    Raises:
        DataError: there are any.
    """
    told = []
    if missing:
        told.append(f"{len(missing)} of its tensors are not in the file, first {missing[0]}")
    if unexpected:
        told.append(
            f"{len(unexpected)} of the file's tensors reach nothing in the model, first "
            f"{unexpected[0]}"
        )
    if told:
        raise DataError(
            f"adapter {what}: {' and '.join(told)}; the file is damaged, belongs to another "
            "adapter_config.json, or was made for another base model"
        )


def reads_as_lora(config: Any, model: nn.Module, adapter_name: str) -> bool:
    """Whether peft's own LoRA would put an adapter of our method onto the same parts of a base.

    It would not where the range was extended, nor where peft takes a name for that of an expert
    before transformers 5 (the shared experts of Qwen2-MoE and DeepSeek) and changes it.

    Args:
        config: of the adapter.
        model: the transformers model, with the adapter in it.
        adapter_name: of the adapter.
    """
    lm = anatomy.causal_lm(model)
    if getattr(lm.config, "hylorada_range", None) is not None:
        return False
    plain = copy.deepcopy(config)
    plain.peft_type = PeftType.LORA
    keys = {
        f"base_model.model.{key}".replace(f".{adapter_name}.", "."): tensor.detach()
        for key, tensor in lm.named_parameters()
        if ".lora_" in key and f".{adapter_name}." in key
    }
    try:
        convert_peft_config_for_transformers(plain, lm, None)
        read = convert_peft_adapter_state_dict_for_transformers(lm, plain, keys, adapter_name)
    except ValueError:
        return False
    parts = ("target_modules", "target_parameters", "rank_pattern", "alpha_pattern")
    return read.keys() == keys.keys() and all(
        set(getattr(plain, part) or ()) == set(getattr(config, part) or ()) for part in parts
    )


def _saved(model: PeftModel, adapter_name: str) -> dict[str, Tensor]:
    # Not "auto": peft would ask the hub for the base model's vocabulary.
    return get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)


@torch.no_grad()
def _loaded_again(
    model: PeftModel, file: dict[str, Tensor], held: dict[str, Tensor], adapter_name: str
) -> tuple[list[str], set[str]]:
    """Missing and unexpected tensors of a file whose names are not those that peft writes now.

    Names may differ rightly (experts were modules of their own before transformers 5). So every
    number of the adapter is replaced and the file loaded again: what stays replaced is missing.
    """
    own = [t for key, t in model.state_dict().items() if adapter_name in key.split(".")]
    before = [(tensor, tensor.clone()) for tensor in [*own, *held.values()]]
    for tensor, _ in before:
        tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor.bitwise_not_()
    apparent = set(held) - set(file)
    replaced = {key: t.clone() for key, t in _saved(model, adapter_name).items() if key in apparent}
    result: Any = set_peft_model_state_dict(model, file, adapter_name=adapter_name)
    now = _saved(model, adapter_name)
    missing = [key for key, tensor in replaced.items() if _any_kept(now[key], tensor)]
    for tensor, value in before:
        if tensor.is_floating_point() and tensor.isnan().any():
            tensor.copy_(value)
    return sorted(missing), set(result.unexpected_keys)


def _any_kept(now: Tensor, replaced: Tensor) -> bool:
    if now.is_floating_point():
        return bool(now.isnan().any())
    return torch.equal(now, replaced)


def _same(held: Tensor, read: Tensor) -> bool:
    """Whether a tensor is the one that was read, in the type it is held in."""
    if held.shape != read.shape:
        return False
    read = read.to(held.device, held.dtype)
    if not held.is_floating_point():
        return torch.equal(held, read)
    return torch.allclose(held, read, rtol=_RELATIVE, atol=0.0, equal_nan=True)


def _saved_twice(model: PeftModel, file: dict[str, Tensor], lost: set[str]) -> set[str]:
    """Second copies that peft writes where embeddings are both trained and saved as such."""
    wrappers = tuple(
        f"{name}."
        for name, module in model.named_modules()
        if isinstance(module, AuxiliaryTrainingWrapper)
    )
    arrived = [tensor for key, tensor in file.items() if key not in lost]
    return {
        key
        for key in lost
        if key.startswith(wrappers) and any(torch.equal(file[key], other) for other in arrived)
    }
