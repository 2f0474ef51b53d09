"""Position-adaptive landmarks (paper 2.2): K learned vectors, mixed by what the text is about.

    m_t = mean(h_1 .. h_t)                                causal; within the token's own document
    g_t = softmax(W_g m_t + P[bucket(t)])                 [K]
    c_t = g_t^T L                                         [d]
    h'_t = h_t + alpha_s c_t

at the output of the final norm. L and W_g are [K, d], alpha_s is one number, P is the table of
position gates [32, K]: 12,545 parameters for GPT-2 with K = 8, without the table 12,289.

The paper writes mean(h) over the whole sequence and adds the result at every position, so a
position reads its own future. `sequence_mean` is that form, kept as a control arm that the
integrity gate refuses.

The mean is taken after the projection: W_g m_t is the running mean of W_g h_t, so a token costs K
numbers and not d. They are float64: a document inside a packed row is the difference of two long
sums, and must not lose its digits to what came before it.

Initialisation: L and P zero, alpha_s one, W_g with orthonormal rows: the output factor is zero and
the input factor is not, as in LoRA. The method starts as the identity; L gets a gradient in the
first step, alpha_s, W_g and P from the second. (alpha_s = 0 with a random L would start as the
identity too, but then one number learns, by lr per step, and what it scales is a random direction.)

Legend: B sequences, T tokens, K landmarks, d hidden size.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from hylorada.architecture.packed_rows import is_one_document_a_row
from hylorada.errors import ConfigError
from hylorada.methods.positions import bucket
from hylorada.methods.sequence_part import running_part

_BLOCK = 128  # tokens in a block of `prefix_sum`


class PooledState(NamedTuple):
    """What the running mean needs from the tokens already seen."""

    sum_BK: Tensor
    count_B1: Tensor


class Landmark(nn.Module):
    """The landmarks of one adapter.

    Args:
        hidden_size: d.
        num_landmarks: K.
        pooling: "prefix_mean" or "sequence_mean".
        position_buckets: rows of P; 0 leaves it out.
        bucketing: "log2" or "relative".
        max_length: tokens; used by "relative" only.
        placebo: what is added is multiplied by 0 (in `add_to_output`).
    """

    def __init__(
        self, hidden_size: int, num_landmarks: int, pooling: str, position_buckets: int,
        bucketing: str, max_length: int, placebo: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.placebo = placebo
        self.pooling = pooling
        self.position_buckets = position_buckets
        self.bucketing = bucketing
        self.max_length = max_length
        # Directly here, not in modules below: see PositionBias.
        self.L = nn.Parameter(torch.zeros(num_landmarks, hidden_size))
        self.W_g = nn.Parameter(torch.empty(num_landmarks, hidden_size))
        if not self.W_g.is_meta:
            nn.init.orthogonal_(self.W_g)
        self.alpha_s = nn.Parameter(torch.ones(1))
        if position_buckets:
            self.P = nn.Parameter(torch.zeros(position_buckets, num_landmarks))

    def is_identity(self) -> bool:
        """Whether h' = h whatever the input."""
        return not (self.alpha_s.detach().any() and self.L.detach().any())

    def forward(
        self,
        h_BTd: Tensor,
        position_ids_BT: Tensor,
        weight_BT: Tensor | None = None,
        state: PooledState | None = None,
        packed: bool = True,
    ) -> tuple[Tensor, PooledState]:
        """h' [B, T, d] and the state for the tokens that follow.

        Args:
            h_BTd: output of the final norm.
            position_ids_BT: integers [B or 1, T].
            weight_BT: 1 for text and 0 for padding; None is all text.
            state: of the tokens before these in the same sequences (KV cache).
            packed: a step of the positions other than +1 starts a new document; False: a row is one
                document, whatever its positions.
        """
        dtype = torch.promote_types(h_BTd.dtype, torch.float32)
        with torch.autocast(h_BTd.device.type, enabled=False):
            score_BTK = F.linear(h_BTd.to(dtype), self.W_g.to(dtype))
            mean_BTK, state = running_mean(
                score_BTK, position_ids_BT, weight_BT, state,
                whole=self.pooling == "sequence_mean", packed=packed,
            )  # fmt: skip
            gate_BTK = mean_BTK.to(dtype)
            if self.position_buckets:
                index_BT = bucket(
                    position_ids_BT, self.position_buckets, self.bucketing, self.max_length
                )
                gate_BTK = gate_BTK + self.P.to(dtype)[index_BT]
            scaled_Kd = self.alpha_s.to(dtype) * self.L.to(dtype)  # K rows, rather than T
            c_BTd = gate_BTK.softmax(dim=-1) @ scaled_Kd
        return h_BTd + c_BTd.to(h_BTd.dtype), state


def running_mean(
    x_BTK: Tensor,
    position_ids_BT: Tensor,
    weight_BT: Tensor | None,
    state: PooledState | None,
    whole: bool = False,
    packed: bool = True,
) -> tuple[Tensor, PooledState]:
    """Mean of each token's document up to and including the token, in float64.

    Free of branches on values, so that it can be compiled. Of a sequence that is split over
    processes (`sequence_part`), the state is what the parts before this one have summed up.

    Args:
        x_BTK: what is averaged.
        position_ids_BT: [B or 1, T].
        weight_BT: 1 for text, 0 for padding.
        state: carried into the document that the first token belongs to.
        whole: average over all of the document that is here, not only up to the token.
        packed: a step of the positions other than +1 starts a new document.
    """
    B, T, K = x_BTK.shape
    weight_BT1 = torch.ones(B, T, 1, dtype=torch.float64, device=x_BTK.device)
    if weight_BT is not None:
        weight_BT1 = weight_BT.expand(B, T).to(torch.float64).unsqueeze(-1)
    both_BTK1 = torch.cat([x_BTK.double() * weight_BT1, weight_BT1], dim=-1)  # sums and count
    on_cpu = x_BTK.device.type == "cpu"
    here_BTK1 = both_BTK1.cumsum(dim=1) if on_cpu else prefix_sum(both_BTK1)
    part = running_part()
    one_document = not packed or (is_one_document_a_row() and state is None and part is None)
    if not one_document:
        index_T = torch.arange(T, device=x_BTK.device)
        position_BT = position_ids_BT.expand(B, T)
        starts_BT = F.pad(position_BT[:, 1:] != position_BT[:, :-1] + 1, (1, 0), value=True)
        first_BT = torch.where(starts_BT, index_T, 0).cummax(dim=1).values
        before_BTK1 = F.pad(here_BTK1[:, :-1], (0, 0, 1, 0))
        before_BTK1 = before_BTK1.gather(1, first_BT.unsqueeze(-1).expand(-1, -1, K + 1))
        here_BTK1 = here_BTK1 - before_BTK1
    if part is not None:
        carried_BK1 = part.carried(here_BTK1[:, -1])
        state = PooledState(carried_BK1[:, :K], carried_BK1[:, K:])
    if state is not None:
        seen_B1K1 = torch.cat([state.sum_BK, state.count_B1], dim=-1).unsqueeze(1)
        joined_BT1 = 1 if one_document else (first_BT == 0).unsqueeze(-1)
        here_BTK1 = here_BTK1 + joined_BT1 * seen_B1K1
    after = PooledState(here_BTK1[:, -1, :K], here_BTK1[:, -1, K:])
    if whole and one_document:
        here_BTK1 = here_BTK1[:, -1:].expand(-1, T, -1)
    elif whole:
        ends_BT = F.pad(starts_BT[:, 1:], (0, 1), value=True)
        last_BT = torch.where(ends_BT, index_T, T - 1).flip(1).cummin(dim=1).values.flip(1)
        here_BTK1 = here_BTK1.gather(1, last_BT.unsqueeze(-1).expand(-1, -1, K + 1))
    return here_BTK1[..., :K] / here_BTK1[..., K:].clamp(min=1), after


def prefix_sum(x_BTC: Tensor) -> Tensor:
    """``x.cumsum(1)`` by matrix products: blocks of tokens, then the sums of the blocks.

    For a GPU, where cumsum along another than the last dimension gives each column to one thread
    that walks all tokens, and where strict determinism refuses it.
    """
    T = x_BTC.shape[1]
    size = min(T, _BLOCK)
    blocks = -(-T // size)
    x_BTC = F.pad(x_BTC, (0, 0, 0, blocks * size - T))
    upto_SS = x_BTC.new_ones(size, size).tril()
    sum_BMSC = upto_SS @ x_BTC.unflatten(1, (blocks, size))
    if blocks > 1:
        before_BMC = prefix_sum(sum_BMSC[:, :-1, -1])
        sum_BMSC = sum_BMSC + F.pad(before_BMC, (0, 0, 1, 0)).unsqueeze(2)
    return sum_BMSC.flatten(1, 2)[:, :T]


class LandmarkCacheLayer(CacheLayerMixin):
    """The state of one adapter's landmarks in a KV cache, behind the layers of the decoder.

    It lives and dies with the cache, one per request; beam search and batching come with it.
    """

    # With False, a StaticCache that holds this layer would attend to its empty slots.
    is_compileable = True
    is_croppable = False  # a sum cannot be taken back
    supports_early_init = False
    is_sliding = False

    def __init__(self, adapter_name: str) -> None:
        super().__init__()
        self.adapter_name = adapter_name
        self.state: PooledState | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to allocate."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values pass through: no attention layer has this index."""
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As an empty layer."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """No keys."""
        return 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def reset(self) -> None:
        """Forget the tokens seen."""
        self.state = None

    def _each(self, function: Any) -> None:
        if self.state is not None:
            self.state = PooledState(*(function(tensor) for tensor in self.state))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Follow the beams."""
        self._each(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence."""
        self._each(lambda t: t.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some sequences."""
        self._each(lambda t: t[indices, ...])

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: assisted and prompt-lookup decoding would continue from a wrong mean."""
        raise ConfigError(
            "method: landmarks keep a running mean that cannot be rolled back; use greedy search, "
            "sampling or beam search instead of assisted decoding"
        )


def add_to_output(
    landmark: Landmark,
    adapter_name: str,
    position_ids_BT: Tensor,
    decoder: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
) -> Any:
    """The decoder's output with the landmarks added: the body of its forward hook.

    Args:
        landmark: the landmarks.
        adapter_name: whose they are; names the state in the cache.
        position_ids_BT: what the attention layers were given in this forward pass.
        decoder: the module that was called.
        args: of the call.
        kwargs: of the call.
        output: a transformers ModelOutput or a tuple, final hidden states first.
    """
    call = kwargs
    if len(args) > 1:  # attention_mask or the cache may have come by position
        call = inspect.signature(decoder.forward).bind_partial(*args, **kwargs).arguments
    is_tuple = isinstance(output, tuple)
    h_BTd = output[0] if is_tuple else output.last_hidden_state
    cache = call.get("past_key_values") if is_tuple else output.get("past_key_values")
    cache = cache if isinstance(cache, Cache) else None
    layer = None
    if cache is not None:
        layer = _layer_of(cache, adapter_name)
    mask = call.get("attention_mask")
    weight_BT = _text_weights(mask, h_BTd.shape[1], cache)
    state = layer.state if layer is not None else None
    # Beside a 2-D mask transformers takes no gap between positions for a new document, nor do we.
    packed = not (isinstance(mask, Tensor) and mask.dim() == 2)
    with_BTd, state = landmark(h_BTd, position_ids_BT, weight_BT, state, packed)
    h_BTd = h_BTd + 0 * (with_BTd - h_BTd) if landmark.placebo else with_BTd
    if layer is not None:
        layer.state = state
    if is_tuple:
        return (h_BTd, *output[1:])
    output.last_hidden_state = h_BTd
    return output


def _layer_of(cache: Cache, adapter_name: str) -> LandmarkCacheLayer:
    for layer in cache.layers:
        if isinstance(layer, LandmarkCacheLayer) and layer.adapter_name == adapter_name:
            return layer
    layer = LandmarkCacheLayer(adapter_name)
    cache.layers.append(layer)
    return layer


def _text_weights(attention_mask: Any, tokens: int, cache: Cache | None) -> Tensor | None:
    """Which of the new tokens are text, [B, T]; None if all are.

    A 2-D mask covers the tokens before these and these. A 4-D mask [B, 1, T, S], which generation
    with a static cache prepares, tells it by its last row: what the last token attends to.
    """
    if isinstance(attention_mask, dict):  # one mask per kind of layer
        attention_mask = attention_mask.get("full_attention")
    if not isinstance(attention_mask, Tensor):
        return None
    if attention_mask.dim() == 2:
        return attention_mask[:, -tokens:] > 0
    row_BS = attention_mask[:, 0, -1, :]
    attended_BS = row_BS if row_BS.dtype == torch.bool else row_BS >= 0
    end = cache.get_seq_length() if cache is not None else tokens
    index_T = torch.arange(tokens, device=row_BS.device) + (end - tokens)
    return attended_BS.index_select(1, index_T)
