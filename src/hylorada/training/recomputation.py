"""Gradient checkpointing: layers computed again in the backward pass instead of kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from hylorada.architecture import anatomy
from hylorada.config import TrainConfig

_PROBE = 9  # tokens: enough to see whether something is drawn


@contextlib.contextmanager
def as_configured(
    model: nn.Module, settings: TrainConfig, autocast: torch.dtype | None
) -> Iterator[None]:
    """`gradient_checkpointing` as the settings want it.

    Random states are kept for the layers only if some layer draws: a GPU is asked for its state,
    and given it back, once for each layer.

    Args:
        model: with its adapter attached, as it trains.
        settings: of training.
        autocast: what it is computed in under autocast; None: without it.
    """
    lm = anatomy.causal_lm(model)
    if not settings.gradient_checkpointing:
        yield
        return
    every, offload = settings.gradient_checkpointing_every, settings.gradient_checkpointing_offload
    with gradient_checkpointing(lm, True, every, offload, draws(model, autocast)):
        yield


@contextlib.contextmanager
def gradient_checkpointing(
    model: Any, enabled: bool, every: int = 1, offload: bool = False, random: bool = True
) -> Iterator[None]:
    """Recompute layers' activations in the backward pass instead of keeping them.

    Non-reentrant, which is exact and needs no gradient on the inputs; the hook for it that
    transformers installs is taken off again.

    Args:
        model: of transformers.
        enabled: whether to do it at all.
        every: decoder layers, of which the first is recomputed and the others keep theirs.
        offload: what layers are recomputed from is held in the host's memory.
        random: put the random state back for each layer, so that it draws the same again.
    """
    if enabled:
        # transformers renamed it on the way to 6.
        name = "activation_checkpointing_enable"
        switch_on = getattr(model, name, None) or model.gradient_checkpointing_enable
        how = {"use_reentrant": False, "preserve_rng_state": random}
        switch_on(how, every_n_layers=every, offload=offload)
        model.disable_input_require_grads()
    try:
        yield
    finally:
        if enabled:
            name = "activation_checkpointing_disable"
            (getattr(model, name, None) or model.gradient_checkpointing_disable)()


@torch.no_grad()
def draws(model: nn.Module, autocast: torch.dtype | None) -> bool:
    """Whether the model draws random numbers in training mode, as for dropout.

    A few tokens are run to see it; modes and random states are left as they were.
    """
    embedding_VD = anatomy.causal_lm(model).get_input_embeddings().weight
    device = embedding_VD.device
    ids_1T = torch.arange(_PROBE, device=device)[None] % embedding_VD.shape[0]
    modes = [(module, module.training) for module in model.modules()]
    on_gpu = [device] if embedding_VD.is_cuda else []

    def states() -> list[torch.Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in on_gpu)]

    model.train()
    try:
        with (
            torch.random.fork_rng(on_gpu),
            torch.autocast(device.type, autocast, enabled=autocast is not None),
        ):
            before = states()
            anatomy.backbone(model)(input_ids=ids_1T, use_cache=False)
            return not all(map(torch.equal, before, states()))
    finally:
        for module, mode in modes:
            module.training = mode
