"""The negative log-likelihood of given tokens, without ever holding n x vocabulary logits.

The hidden states are computed once; the output head then sees a few hundred tokens at a time, and
only those that are scored. At 8K tokens and 50K entries that is 100 MB in place of 1.6 GB (twice,
in the usual form).

Dimensions: B sequences, T positions, D hidden size, N scored tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hylorada.architecture import anatomy
from hylorada.architecture.labels import IGNORE
from hylorada.architecture.logits import output_head


@contextmanager
def evaluation_mode(
    model: nn.Module, autocast_dtype: torch.dtype | None = None
) -> Iterator[torch.device]:
    """Evaluation mode, no gradients, optional autocast; yields the device of the inputs.

    The training flag of every submodule is put back as it was, also after an exception.
    `no_grad` and not `inference_mode`: tensors that a module caches during evaluation (RoPE tables,
    position buckets) must stay usable in the next training step.

    cuDNN's attention is left out: it plans anew for every shape (tenths of a second each), and here
    nearly every prompt and every generated token has one of its own.
    """
    flags = [(module, module.training) for module in model.modules()]
    device = anatomy.causal_lm(model).get_input_embeddings().weight.device
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    model.eval()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        with (
            torch.no_grad(),
            torch.autocast(device.type, autocast_dtype, enabled=autocast_dtype is not None),
        ):
            yield device
    finally:
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        for module, training in flags:
            module.training = training


def token_nll(
    model: nn.Module,
    input_ids_BT: Tensor,
    targets_BT: Tensor | None = None,
    *,
    chunk: int = 512,
) -> Tensor:
    """-log p(target at t | input up to and including t), in nats, for every position.

    Differentiable where gradients are enabled, but meant for evaluation: the caller chooses the
    mode (see `evaluation_mode`).

    Args:
        model: a causal language model of transformers, or a PeftModel around one.
        input_ids_BT: token ids, [B, T].
        targets_BT: the token to predict at each position, [B, T]; `IGNORE` where none is scored.
            None: the input shifted left by one, nothing at the last position.
        chunk: scored tokens whose logits exist at one time.

    Returns:
        float32 [B, T]; 0 where nothing is scored. The logarithm is taken in float32 whatever the
        model's precision.
    """
    if targets_BT is None:
        targets_BT = torch.full_like(input_ids_BT, IGNORE)
        targets_BT[:, :-1] = input_ids_BT[:, 1:]
    assert targets_BT.shape == input_ids_BT.shape, (targets_BT.shape, input_ids_BT.shape)
    assert chunk > 0, chunk
    h_BTD = anatomy.backbone(model)(input_ids=input_ids_BT, use_cache=False).last_hidden_state
    index_N = (targets_BT.reshape(-1) != IGNORE).nonzero().squeeze(1)
    target_N = targets_BT.reshape(-1)[index_N]
    h_FD = h_BTD.reshape(-1, h_BTD.shape[-1])  # F = B * T
    nll_F = torch.zeros(targets_BT.numel(), dtype=torch.float32, device=h_BTD.device)
    for i in range(0, len(index_N), chunk):
        here = index_N[i : i + chunk]
        nll_F[here] = head_nll(model, h_FD[here], target_N[i : i + chunk])
    return nll_F.view(targets_BT.shape)


def head_nll(model: nn.Module, h_ND: Tensor, target_N: Tensor) -> Tensor:
    """-log p(target) of each final hidden state, float32 [N]; the caller keeps N small."""
    logits_NV = output_head(model)(h_ND)
    return nn.functional.cross_entropy(logits_NV.float(), target_N, reduction="none")
