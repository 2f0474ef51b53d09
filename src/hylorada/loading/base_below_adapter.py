"""The base below an adapter: a run's own model with the adapter switched off.

So the base is measured without a second copy of it in memory. Whether switching off really leaves
the base is tried: on a few tokens the model must give the very logits that it gave when it was
loaded. Where it does not (an adapter that trains biases in place), or where the adapter brings
another extension of the range than every arm has, the base is loaded again, and must be the same.
"""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from hylorada.architecture import anatomy
from hylorada.architecture.logits import TOLERANCE
from hylorada.config import PositionRangeConfig
from hylorada.errors import DataError
from hylorada.kernels.frozen_layers import restore, use_frozen_kernels
from hylorada.loading.backbone import Backbone, probe_logits
from hylorada.methods.own_range import is_extended_as, unextended
from hylorada.methods.position_range import extend_range

logger = logging.getLogger(__name__)


class BaseBelow:
    """The base as it was loaded, and as it is with its range extended; neither is trained.

    Args:
        model: of the run, its range extended, an adapter on it or not; left as it was.
        backbone: that it was made from.
        length: tokens that the range is extended to.
        settings: of the extension.
        load: loads the base again.
    """

    def __init__(
        self,
        model: nn.Module,
        backbone: Backbone,
        length: int,
        settings: PositionRangeConfig,
        load: Callable[[], Backbone],
    ) -> None:
        self._model, self._backbone, self._load = model, backbone, load
        self._asked = (
            length, settings.learned_init, settings.rope_type, settings.rope_factor
        )  # fmt: skip
        self._second: Any = None
        self._tried = False

    @contextmanager
    def as_loaded(self) -> Iterator[Any]:
        """The base, in its own range."""
        with self._ready() as model, unextended(model):
            yield model

    @contextmanager
    def extended(self) -> Iterator[Any]:
        """The base with the range of every arm."""
        with self._ready() as model:
            yield model

    def release(self) -> None:
        """Give the second copy's memory back, if there is one."""
        if self._second is not None:
            self._second = None
            gc.collect()  # models refer to themselves
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()

    @contextmanager
    def _ready(self) -> Iterator[Any]:
        """The extended base with fast kernels; afterwards the model is as it was."""
        if not self._tried:
            self._tried = True
            if not self._can_be_switched_off():
                self._second = self._again()
        model = self._model if self._second is None else self._second
        with switched_off(model), _own_tables(model):
            exchanged = use_frozen_kernels(model)
            try:
                yield anatomy.causal_lm(model)
            finally:
                if exchanged:
                    restore(model)

    def _can_be_switched_off(self) -> bool:
        if not is_extended_as(self._model, *self._asked):
            return False
        now = _logits_without(self._model)
        return now is not None and torch.equal(now, self._backbone.logits)

    def _again(self) -> Any:
        """A second copy of the base, extended."""
        logger.info("the base is loaded a second time: the adapter cannot be taken off exactly")
        again = self._load()
        if again.sha256 != self._backbone.sha256:
            raise DataError(
                "model.path: its weights changed while the run was under way (sha256 "
                f"{self._backbone.sha256[:12]}, now {again.sha256[:12]}); run it again"
            )
        extend_range(again.model, *self._asked)
        return again.model


def logits_below(model: nn.Module, backbone: Backbone) -> torch.Tensor:
    """The base's logits where it is now, if they are near to those that it had where it was loaded.

    Two devices round differently, and what `BaseBelow` compares is bits.

    Args:
        model: of the run.
        backbone: that it was made from.

    Returns:
        its `probe_logits`; where they are others, or the adapter cannot be switched off, those of
        ``backbone``.
    """
    now = _logits_without(model)
    if now is None:
        return backbone.logits
    before = backbone.logits.to(now.device)
    near = (now - before).abs().max() <= TOLERANCE[backbone.dtype] * before.abs().max()
    return now if bool(near) else backbone.logits


def _logits_without(model: nn.Module) -> torch.Tensor | None:
    """`probe_logits` of the base in its own range; None if the adapter cannot be switched off."""
    try:
        with switched_off(model), _own_tables(model), unextended(model):
            return probe_logits(model)
    except (RuntimeError, ValueError, AttributeError) as error:
        logger.debug("the adapter cannot be switched off: %s", error)
        return None


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """Inside the block no adapter acts; afterwards the same tensors train as before."""
    trains = [(p, p.requires_grad) for p in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        with model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
            model.eval()
            yield
    finally:
        for parameter, value in trains:
            parameter.requires_grad_(value)
        for module, mode in modes:
            module.training = mode


@contextmanager
def _own_tables(model: nn.Module) -> Iterator[None]:
    """Modules of buffers alone (rotary ones) are copies inside the block.

    Some count how far they were used, and compute otherwise after that (dynamic RoPE).
    """
    lm = anatomy.causal_lm(model)
    tables = {
        name: module
        for name, module in lm.named_modules()
        if name and module._non_persistent_buffers_set
        and not module._parameters and not module._modules
    }  # fmt: skip
    with ExitStack() as stack:
        for name, module in tables.items():
            stack.callback(lm.set_submodule, name, module)
            lm.set_submodule(name, copy.deepcopy(module))
        yield
