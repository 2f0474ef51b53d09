"""Next-token cross-entropy that never builds the n x vocabulary logits.

At 8K tokens and 50,257 words the logits alone are 1.6 GB, and the usual loss holds three such
tensors. Here the output head and the softmax run over a few hundred tokens at a time, and each
chunk's gradient with respect to the hidden states is computed at once, while its probabilities are
at hand: ``d loss / d h = (softmax(W h + b) - onehot(label)) W``, times the slope of what the model
makes of ``W h + b`` (`logits.LogitFunction`). What is kept for the backward pass is one tensor of
the hidden states' size.

The loss is a sum and comes with the number of tokens it sums over, so that micro-batches of
different size weigh as they should (mean of means is another loss).

Dimension letters: B batch, T positions, N = tokens, C tokens in a chunk, D hidden size,
V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hylorada.architecture import anatomy
from hylorada.architecture.labels import IGNORE
from hylorada.architecture.logits import LogitFunction, output_head
from hylorada.architecture.packed_rows import one_document_a_row
from hylorada.errors import ConfigError
from hylorada.kernels.linear import fast_linear, product_dtype, without_autocast

PLAIN = LogitFunction()


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of -log p(label) over the scored tokens, with its gradients computed in the forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        chunks: list[slice],
        dtype: torch.dtype,
        function: LogitFunction,
    ) -> Tensor:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        exact = torch.promote_types(dtype, torch.float32)  # of the softmax and of every sum
        grad_hidden_ND = torch.zeros_like(hidden_ND) if needs_hidden else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=exact) if needs_weight else None
        grad_bias_V = (
            torch.zeros_like(bias_V, dtype=exact) if bias_V is not None and needs_bias else None
        )
        scored_N = labels_N != IGNORE
        labels_N1 = labels_N.where(scored_N, 0).unsqueeze(1)
        # of each token: its largest logit, that one's probability, the logit of its label
        parts_3N = hidden_ND.new_zeros(3, len(labels_N), dtype=exact)
        parts_3N[1] = 1.0  # of a token in no chunk: its logarithm is taken too
        largest_N, peak_N, target_N = parts_3N

        with without_autocast(hidden_ND):
            w_VD = weight_VD.to(dtype)
            b_V = None if bias_V is None else bias_V.to(dtype)
            # one buffer for all chunks: memory that is handed back and faulted in again per chunk
            # costs more than the softmax
            rows = max((c.stop - c.start for c in chunks), default=0)
            buffer_CV = hidden_ND.new_empty(rows, len(w_VD), dtype=exact)
            minus_one_C1 = hidden_ND.new_full((rows, 1), -1.0, dtype=exact)
            for chunk in chunks:
                h_CD = hidden_ND[chunk].to(dtype)
                if function.input_scale != 1.0:
                    h_CD = h_CD * function.input_scale
                logits_CV = function.after_head(fast_linear(h_CD, w_VD, b_V).to(exact))
                torch.amax(logits_CV, 1, out=largest_N[chunk])
                torch.gather(logits_CV, 1, labels_N1[chunk], out=target_N[chunk].unsqueeze(1))
                p_CV = torch.softmax(logits_CV, dim=1, out=buffer_CV[: len(h_CD)])
                slope_CV = function.slope(logits_CV) if function.bends else None
                del logits_CV
                torch.amax(p_CV, 1, out=peak_N[chunk])
                if not (needs_hidden or needs_weight or needs_bias):
                    continue
                dlogits_CV = p_CV.scatter_add_(1, labels_N1[chunk], minus_one_C1[: len(h_CD)])
                if slope_CV is not None:
                    dlogits_CV *= slope_CV
                if needs_weight or needs_bias:
                    dlogits_CV *= scored_N[chunk].unsqueeze(1)
                if grad_bias_V is not None:
                    grad_bias_V += dlogits_CV.sum(0)
                dlogits_CV = dlogits_CV.to(dtype)
                if grad_hidden_ND is not None:
                    dh_CD = fast_linear(dlogits_CV, w_VD.t())
                    if function.input_scale != 1.0:
                        dh_CD = dh_CD * function.input_scale
                    grad_hidden_ND[chunk] = dh_CD
                if grad_weight_VD is not None:
                    grad_weight_VD += dlogits_CV.t() @ h_CD
        if grad_hidden_ND is not None:  # here, rather than in V columns of each chunk
            grad_hidden_ND.masked_fill_(~scored_N.unsqueeze(1), 0)
        ctx.save_for_backward(grad_hidden_ND, grad_weight_VD, grad_bias_V)
        ctx.weight_dtype = weight_VD.dtype
        ctx.bias_dtype = None if bias_V is None else bias_V.dtype
        # logsumexp = largest - log(its probability), which is at least 1 / V: no underflow
        return ((largest_N - peak_N.log() - target_N) * scored_N).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden_ND, grad_weight_VD, grad_bias_V = ctx.saved_tensors
        return (
            None if grad_hidden_ND is None else (grad_hidden_ND * g).to(grad_hidden_ND.dtype),
            None if grad_weight_VD is None else (grad_weight_VD * g).to(ctx.weight_dtype),
            None if grad_bias_V is None else (grad_bias_V * g).to(ctx.bias_dtype),
            None,
            None,
            None,
            None,
        )


def _rows_at_a_time(chunk: int, vocabulary: int, device: torch.device) -> int:
    """At most ``chunk``; on a CPU no more than the caches hold: measured, 128 rows or 8 MB.

    With 0 a GPU takes 2,048 rows, since the head's matrix is read once a chunk, or as many as have
    a gigabyte of float32 logits, of which there are two at a time.
    """
    if device.type != "cpu":
        return chunk or max(1, min(2048, 2**28 // vocabulary))
    cached = max(128, 2**21 // vocabulary)
    return min(chunk or cached, cached)


def _chunks(scored_N: Tensor, chunk: int) -> list[slice]:
    """Slices of ``chunk`` tokens; on the host without those in which nothing is scored.

    A device is not asked for that: the host would wait for all that it was told to do before.
    """
    tokens = scored_N.numel()
    slices = [slice(start, min(start + chunk, tokens)) for start in range(0, tokens, chunk)]
    if not slices or scored_N.device.type != "cpu":
        return slices
    kept = torch.stack([part.any() for part in scored_N.split(chunk)]).tolist()
    return [chunk for chunk, keep in zip(slices, kept, strict=True) if keep]


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    chunk: int = 512,
    num_tokens: Tensor | float | None = None,
    function: LogitFunction = PLAIN,
) -> Tensor:
    """``cross_entropy(hidden @ weight.T + bias, labels)`` without the logits of all tokens.

    Equal to the plain loss and gradients up to rounding. Under autocast the two matrix products run
    in autocast's precision and the softmax in fp32, as in the plain loss.

    Args:
        hidden: final hidden states, [..., D].
        weight: the output head's matrix, [V, D]; gets a gradient if it requires one.
        bias: [V] or None; likewise.
        labels: token ids, the shape of ``hidden`` without D. Not shifted here: ``labels[..., t]``
            is what ``hidden[..., t]`` should predict, `IGNORE` where nothing is scored. If they
            are on the CPU, wherever ``hidden`` is, chunks in which nothing is scored are passed
            over; on another device all are computed.
        chunk: tokens whose logits exist at one time, at most (a CPU is faster with fewer); 0: as
            many as suit the device and the vocabulary.
        num_tokens: what the sum is divided by, as ``num_items_in_batch`` in transformers; 1 gives
            the sum, None the mean over the scored tokens.
        function: what the model does to its hidden states and logits around the head; its ``size``
            is that of ``weight``.

    Returns:
        a scalar in fp32 (fp64 for fp64 hidden states); 0 if nothing is scored.

    Raises:
        ConfigError: chunk below 0.
    """
    if chunk < 0:
        raise ConfigError(f"train.loss_chunk={chunk}: must be at least 1 token, or 0: by device")
    if hidden.shape[:-1] != labels.shape:
        raise ValueError(f"labels {tuple(labels.shape)} do not fit hidden {tuple(hidden.shape)}")
    labels_N = labels.reshape(-1)
    rows = _rows_at_a_time(chunk, weight.shape[0], hidden.device)
    chunks = _chunks(labels_N != IGNORE, rows)
    labels_N = labels_N.to(hidden.device, non_blocking=True)
    loss = _ChunkedCrossEntropy.apply(
        hidden.reshape(-1, hidden.shape[-1]),
        weight,
        bias,
        labels_N,
        chunks,
        product_dtype(hidden),
        function,
    )
    if num_tokens is None:
        num_tokens = (labels_N != IGNORE).sum().clamp(min=1)
    return loss / num_tokens


def next_token_labels(labels_BT: Tensor) -> Tensor:
    """Labels aligned with the token that predicts them: ``out[:, t] = labels[:, t + 1]``.

    The last position predicts nothing and is ignored.
    """
    shifted_BT = torch.full_like(labels_BT, IGNORE)
    shifted_BT[:, :-1] = labels_BT[:, 1:]
    return shifted_BT


def refuse_adapted_head(model: nn.Module) -> None:
    """Refuse an adapter on the output head; needs no weights.

    Raises:
        ConfigError: there is one.
    """
    if hasattr(anatomy.output_head(model), "base_layer"):
        raise ConfigError(
            "lora.target_modules: an adapter on the output head cannot be trained with the "
            "chunked loss; leave the head out of target_modules"
        )


class LossModel(nn.Module):
    """A causal language model that returns its summed loss: what DDP and FSDP wrap.

    Args:
        model: a transformers causal language model or a PeftModel around one. Its output head may
            be frozen or trained as a whole; an adapter on it is refused.
        chunk: tokens whose logits exist at one time, at most; 0: by device.

    Raises:
        ConfigError: the head carries an adapter, or the model's logits are no known function of it.
    """

    def __init__(self, model: nn.Module, chunk: int = 512) -> None:
        super().__init__()
        refuse_adapted_head(model)
        output_head(model)
        self.model = model
        self.chunk = chunk

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Summed negative log-likelihood in nats, and how many tokens it sums over.

        Args:
            input_ids: [B, T].
            labels: [B, T], aligned with ``input_ids`` (the shift happens here);
                -100 is not scored. The first position of a row is never scored. They may stay on
                the host (`chunked_cross_entropy`).
            position_ids: [B, T] or None; resets mark packed documents.
            attention_mask: [B, T], 0 at padding, or None.

        Returns:
            (sum_nll, tokens), two scalars.
        """
        targets_BT = next_token_labels(labels)
        known = position_ids is None and attention_mask is None
        return self.of_targets(
            input_ids, targets_BT, known, position_ids=position_ids, attention_mask=attention_mask
        )

    def of_targets(
        self, input_ids: Tensor, targets: Tensor, one_document: bool, **inputs: Any
    ) -> tuple[Tensor, Tensor]:
        """The same, of labels that are shifted already: ``targets[b, t]`` follows token t.

        Args:
            input_ids: [B, T].
            targets: [B, T].
            one_document: whether each row is known to hold one document.
            **inputs: what else the backbone is given.
        """
        # use_cache=False also lets transformers see packed documents in the position ids
        with one_document_a_row(one_document):
            hidden_BTD = anatomy.backbone(self.model)(
                input_ids=input_ids, use_cache=False, **inputs
            ).last_hidden_state
        head = output_head(self.model)
        weight, bias = head.matrix
        sum_nll = chunked_cross_entropy(
            hidden_BTD,
            weight,
            bias,
            targets,
            chunk=self.chunk,
            num_tokens=1,
            function=head.function,
        )
        return sum_nll, (targets != IGNORE).sum()
