"""The likelihood of many continuations of one prompt, with the prompt computed once.

The prompt goes through the model with a KV cache; the continuations follow as a batch that shares
it. This is the model's own cached path, so that whatever an adapter does with positions or with a
running state of its own holds for every continuation as it does in generation.

A model whose cache is more than keys and values (a recurrent state, an index, a compressed text)
or that has none reads the prompt again with every continuation: slow, and exact. transformers does
not promise that such a state can be continued by several tokens at once.

Dimensions: C continuations, T positions, D hidden size, N scored tokens.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from hylorada.architecture import anatomy
from hylorada.architecture.logits import output_head
from hylorada.evaluation.scoring import head_nll

# Copies of one layer's keys and values that exist at one time, bytes. On a CPU a copy that stays in
# the cache is worth more than a large batch.
_BUDGET_BYTES = {"cpu": 2**24, "cuda": 2**28}
_BUDGET_TOKENS = 4096  # in one batch, where the prompt is read with every continuation


class Prefix:
    """A prompt that has been read: its cache and its last hidden state.

    Use within `evaluation_mode`.

    Args:
        model: a causal language model, or a PeftModel around one.
        prompt_ids: token ids, at least one.
    """

    def __init__(self, model: nn.Module, prompt_ids: Sequence[int]) -> None:
        self.model = model
        self.device = anatomy.causal_lm(model).get_input_embeddings().weight.device
        self.prompt = list(prompt_ids)
        self.cache: Any = None
        if keeps_keys_and_values(model):
            output = anatomy.backbone(model)(
                input_ids=torch.tensor([self.prompt], device=self.device),
                past_key_values=DynamicCache(),
                use_cache=True,
            )
            cache = getattr(output, "past_key_values", None)
            if type(cache) is DynamicCache and cache.get_seq_length() == len(self.prompt):
                self.cache = cache
                self.last_1D: Tensor = output.last_hidden_state[:, -1]

    def log_likelihoods(self, candidates: Sequence[Sequence[int]]) -> np.ndarray:
        """log p(candidate | prompt) of each candidate, in nats, float64 [C].

        Args:
            candidates: token ids of each continuation, at least one token each.
        """
        assert candidates
        assert all(len(c) for c in candidates)
        if self.cache is None:
            return self._whole(candidates)
        budget = _BUDGET_BYTES.get(self.device.type, _BUDGET_BYTES["cuda"])
        size = max(1, min(len(candidates), budget // self._layer_bytes()))
        first_C = torch.tensor([c[0] for c in candidates], device=self.device)
        last_CD = self.last_1D.expand(len(candidates), -1)
        sums_C = -head_nll(self.model, last_CD, first_C).double().cpu().numpy()
        # Neighbours in length share a batch: less padding.
        order = sorted(range(len(candidates)), key=lambda i: len(candidates[i]))
        for i in range(0, len(order), size):
            rows = [n for n in order[i : i + size] if len(candidates[n]) > 1]
            if rows:
                sums_C[rows] += self._rest([candidates[n] for n in rows])
        return sums_C

    def _rest(self, candidates: list[Sequence[int]]) -> np.ndarray:
        """The log-likelihood of all tokens but the first, float64 [C].

        Padding is on the right, where causal attention never looks.
        """
        longest = max(map(len, candidates))
        ids_CT = torch.zeros(len(candidates), longest, dtype=torch.long)
        for row, candidate in enumerate(candidates):
            ids_CT[row, : len(candidate)] = torch.tensor(candidate)
        lengths_C = torch.tensor([len(c) for c in candidates])
        scored_CT = torch.arange(1, longest)[None] < lengths_C[:, None]
        ids_CT, scored_CT = ids_CT.to(self.device), scored_CT.to(self.device)
        h_CTD = anatomy.backbone(self.model)(
            input_ids=ids_CT[:, :-1],
            past_key_values=shared(self.cache, len(candidates)),
            use_cache=True,
        ).last_hidden_state
        nll_CT = torch.zeros(scored_CT.shape, dtype=torch.float64, device=self.device)
        nll_N = head_nll(self.model, h_CTD[scored_CT], ids_CT[:, 1:][scored_CT])
        nll_CT[scored_CT] = nll_N.double()
        return -nll_CT.sum(dim=1).cpu().numpy()

    def _whole(self, candidates: Sequence[Sequence[int]]) -> np.ndarray:
        """`log_likelihoods` without a cache: prompt and continuation in one pass."""
        sums_C = np.zeros(len(candidates))
        order = sorted(range(len(candidates)), key=lambda i: len(candidates[i]))
        longest = len(self.prompt) + len(candidates[order[-1]])
        size = max(1, _BUDGET_TOKENS // longest)
        for i in range(0, len(order), size):
            rows = order[i : i + size]
            width = max(len(candidates[n]) for n in rows)
            ids_CT = torch.zeros(len(rows), len(self.prompt) + width, dtype=torch.long)
            ids_CT[:, : len(self.prompt)] = torch.tensor(self.prompt)
            for row, n in enumerate(rows):
                ids_CT[row, len(self.prompt) :][: len(candidates[n])] = torch.tensor(candidates[n])
            lengths_C = torch.tensor([len(candidates[n]) for n in rows])
            scored_CT = (torch.arange(width)[None] < lengths_C[:, None]).to(self.device)
            ids_CT = ids_CT.to(self.device)
            h_CTD = anatomy.backbone(self.model)(
                input_ids=ids_CT[:, :-1], use_cache=False
            ).last_hidden_state[:, len(self.prompt) - 1 :]
            nll_CT = torch.zeros(scored_CT.shape, dtype=torch.float64, device=self.device)
            targets_CT = ids_CT[:, len(self.prompt) :]
            nll_N = head_nll(self.model, h_CTD[scored_CT], targets_CT[scored_CT])
            nll_CT[scored_CT] = nll_N.double()
            sums_C[rows] = -nll_CT.sum(dim=1).cpu().numpy()
        return sums_C

    def greedy(self, max_new_tokens: int, stop: Sequence[int] = ()) -> list[int]:
        """The most likely continuation, token by token; ends the use of this prefix.

        Args:
            max_new_tokens: tokens.
            stop: token ids at which to end; not part of the answer.
        """
        answer: list[int] = []
        h_1D = self._next(None) if self.cache is None else self.last_1D
        while True:
            token = int(output_head(self.model)(h_1D).argmax())
            if token in stop:
                return answer
            answer.append(token)
            if len(answer) == max_new_tokens:
                return answer
            h_1D = self._next(token)

    def _next(self, token: int | None) -> Tensor:
        """The last hidden state of the text, continued by one token, [1, D]."""
        cached = {"past_key_values": self.cache, "use_cache": True}
        if self.cache is None:
            self.prompt += [] if token is None else [token]
            ids, cached = self.prompt, {"use_cache": False}
        else:
            assert token is not None
            ids = [token]
        ids_1T = torch.tensor([ids], device=self.device)
        return anatomy.backbone(self.model)(input_ids=ids_1T, **cached).last_hidden_state[:, -1]

    def _layer_bytes(self) -> int:
        sizes = [
            layer.keys.nbytes + layer.values.nbytes
            for layer in self.cache.layers
            if isinstance(layer, DynamicLayer)
            if layer.keys is not None and layer.values is not None
        ]
        return max(sizes, default=1)


def keeps_keys_and_values(model: nn.Module) -> bool:
    """Whether a model's cache, if it has one, is keys and values of every layer alone."""
    takes = inspect.signature(anatomy.backbone(model).forward).parameters
    if "past_key_values" not in takes and not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        return False
    config = anatomy.causal_lm(model).config
    if not isinstance(config, PretrainedConfig):
        return True
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    return kinds <= {DynamicLayer, DynamicSlidingWindowLayer}


class _Branches(DynamicLayer):
    """Keys and values of one layer for a batch that continues one prompt, for one forward pass.

    The prompt's are a view for the whole batch; what the layer returns is not kept, so that only
    one layer at a time exists in full.
    """

    def __init__(self, layer: DynamicLayer, copies: int) -> None:
        super().__init__()
        assert layer.keys is not None
        assert layer.values is not None
        self.lazy_initialization(layer.keys, layer.values)
        self.keys: Tensor = layer.keys.expand(copies, -1, -1, -1)
        self.values: Tensor = layer.values.expand(copies, -1, -1, -1)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Prompt and continuation, joined."""
        return (
            torch.cat([self.keys, key_states], dim=-2),
            torch.cat([self.values, value_states], dim=-2),
        )


def shared(cache: Any, copies: int) -> Any:
    """A cache for one forward pass of `copies` continuations; the original stays as it is."""
    branches = copy.copy(cache)
    branches.layers = []
    for layer in cache.layers:
        if type(layer) is DynamicLayer:
            branches.layers.append(_Branches(layer, copies))
        else:  # an adapter's running state: small, and it knows how to repeat itself
            repeated = copy.copy(layer)
            repeated.batch_repeat_interleave(copies)
            branches.layers.append(repeated)
    return branches
