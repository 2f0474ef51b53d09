"""Position bias (paper 2.2): the low-rank update is scaled by where its token stands.

    s(p) = 1 + sigmoid(w) * tanh(b[bucket(p)])
    y_p  = W x_p + s(p) * (alpha / sqrt(r)) * B A x_p

with b [buckets] and w [1] shared by every adapted layer: 64 + 1 = 65 parameters. The scale is
applied to the rank-r activations, which equals scaling the update and costs r instead of d_out per
token.

Initialisation: b = 0 and w = 0, so s = 1 and the method starts as plain rsLoRA. As B is zero too, b
gets a gradient once B has moved (second step), and w once b has (third step).

All layers of a forward pass share one s: it is computed once, and its gradient goes back once.

Legend: B sequences, T tokens, r rank, N = B * T, K buckets.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hylorada.errors import ConfigError
from hylorada.methods.positions import Positions, bucket


class PositionBias(nn.Module):
    """b and w of one adapter.

    Args:
        buckets: entries of b.
        bucketing: "log2" or "relative".
        max_length: tokens; used by "relative" only.
        placebo: s(p) is not applied, whatever b and w are.
    """

    def __init__(
        self, buckets: int, bucketing: str, max_length: int, placebo: bool = False
    ) -> None:
        super().__init__()
        self.placebo = placebo
        self.bucketing = bucketing
        self.max_length = max_length
        # Directly here, not in a module below: peft takes the adapter's name out of a saved key
        # only if it is the second to last part.
        self.b = nn.Parameter(torch.zeros(buckets))
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, position_ids_BT: Tensor) -> Tensor:
        """s(p): integer positions [B, T] to scales [B, T]."""
        bucket_BT = bucket(position_ids_BT, self.b.numel(), self.bucketing, self.max_length)
        return _Scale.apply(self.b, self.w, bucket_BT)

    def is_identity(self) -> bool:
        """Whether s(p) is 1 at every position."""
        return not self.b.detach().any()


class _Scale(torch.autograd.Function):
    """``1 + sigmoid(w) * tanh(b[bucket])``; the gradient of the table is one product.

    (That of an index is a sort of T numbers, and sums each bucket in an order of its own.) Nothing
    goes through `save_for_backward`: activation checkpointing, which counts what a layer saves,
    must not tell the layer that computes s from those that share it.
    """

    @staticmethod
    def forward(ctx: Any, b_K: Tensor, w_1: Tensor, bucket_BT: Tensor) -> Tensor:
        ctx.gate_1, ctx.height_K, ctx.bucket_BT = w_1.sigmoid(), b_K.tanh(), bucket_BT
        return (1 + ctx.gate_1 * ctx.height_K)[bucket_BT]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_BT: Tensor) -> tuple[Tensor | None, ...]:
        gate_1, height_K = ctx.gate_1, ctx.height_K
        number_K1 = torch.arange(len(height_K), device=g_BT.device).unsqueeze(1)
        one_hot_KN = (ctx.bucket_BT.reshape(-1) == number_K1).to(g_BT.dtype)
        g_K = one_hot_KN @ g_BT.reshape(-1)  # the gradient of s, summed over each bucket
        db_K = g_K * gate_1 * (1 - height_K * height_K)
        dw_1 = (g_K @ height_K) * gate_1 * (1 - gate_1)
        return db_K, dw_1, None


class PositionBiasVariant(LoraVariant):
    """What a LoRA layer of peft does instead of its own forward and merge.

    One object per layer and adapter. It refers to the shared parameters without owning them.
    """

    def __init__(self, bias: Any, positions: Positions, rank: int) -> None:
        self.bias = bias
        self.positions = positions
        self.rank = rank

    def supports_lora_conversion(self) -> bool:
        """An update that depends on the position is no LoRA."""
        return False

    def forward(  # type: ignore[override]  # peft's own are static
        self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
    ) -> Tensor:
        """result + s(p) * scaling * B A x; x [B, T, d_in] or [N, d_in] (OPT's FFN)."""
        h = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))
        if self.bias.placebo:  # scaled where peft's own LoRA is, so that not a bit differs from it
            h = h * self.scale_of(h).to(h.dtype)
            return result + module.lora_B[active_adapter](h) * module.scaling[active_adapter]
        scale = self.scale_of(h) * module.scaling[active_adapter]
        return result + module.lora_B[active_adapter]((h * scale).to(h.dtype))

    def scale_of(self, h: Tensor) -> Tensor:
        """s(p) for each rank-r activation, [B, T, r], or [N, r] for h [N, any]; for fused kernels.

        It is spread over the r activations once for all layers, not in each: so is the sum over r
        of its gradient.
        """
        s_BTr = self.positions.once(self.bias, self.rank)
        if self.bias.placebo:
            s_BTr = 1 + 0 * (s_BTr - 1)
        tokens = s_BTr.shape[1]
        if h.dim() == 2:
            s_BTr = s_BTr.expand(h.shape[0] // tokens, -1, -1).flatten(0, 1)
        assert h.shape[-2] == s_BTr.shape[-2], f"{h.shape[-2]} tokens, {s_BTr.shape[-2]} positions"
        return s_BTr

    def _delta(self, module: Any, active_adapter: str) -> Tensor:
        if not self.bias.is_identity():
            raise ConfigError(
                "method: an adapter whose position bias has been trained cannot be merged into the "
                "weights, because its update depends on the position; keep it as an adapter"
            )
        return module.get_delta_weight(active_adapter)

    def merge_safe(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:  # type: ignore[override]
        """The merged weight, as a new tensor."""
        return orig_weight + self._delta(module, active_adapter).to(orig_weight.dtype)

    def merge_unsafe(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> None:  # type: ignore[override]
        """Merge in place."""
        orig_weight.data += self._delta(module, active_adapter).to(orig_weight.dtype)

    def unmerge(self, module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:  # type: ignore[override]
        """The weight without the adapter."""
        return orig_weight - module.get_delta_weight(active_adapter).to(orig_weight.dtype)
