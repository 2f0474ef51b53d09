"""Landmarks against loops over tokens, and in every way a model is run."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.families import FAMILIES, make_model, tokens
from helpers.shaken import EXACT, shaken
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from hylorada.architecture.packed_rows import one_document_a_row
from hylorada.methods import HyloradaConfig, adapt
from hylorada.methods.integrity.adapters import count_by_component
from hylorada.methods.landmarks import (
    Landmark,
    LandmarkCacheLayer,
    PooledState,
    prefix_sum,
    running_mean,
)

BOTH = {"position_bias_enabled": True, "landmark_enabled": True}


def adapted(family: str, **fields: object) -> torch.nn.Module:
    return shaken(adapt(make_model(family), HyloradaConfig(**{**BOTH, **fields}), seed=1)).double()


def naive_mean(x, positions, weight, whole):
    """A loop over sequences and tokens; documents by a list of their members."""
    out = torch.zeros_like(x, dtype=torch.float64)
    for b in range(x.shape[0]):
        documents: list[list[int]] = []
        for t in range(x.shape[1]):
            if t == 0 or positions[b, t] != positions[b, t - 1] + 1:
                documents.append([])
            documents[-1].append(t)
        for members in documents:
            for t in members:
                seen = [s for s in members if (whole or s <= t) and weight[b, s]]
                if seen:
                    out[b, t] = x[b, seen].double().mean(0)
    return out


@pytest.mark.parametrize("whole", [False, True])
def test_running_mean_of_packed_and_padded_rows(whole):
    x = torch.randn(3, 13, 4, generator=torch.Generator().manual_seed(0))
    positions = torch.stack(
        [
            torch.arange(13),
            torch.cat([torch.arange(5), torch.arange(1), torch.arange(7)]),
            torch.tensor([1, 1, 1, *range(10)]),  # left padding, as generation numbers it
        ]
    )
    weight = torch.ones(3, 13)
    weight[2, :3] = 0
    weight[0, 10:] = 0  # right padding
    got, _ = running_mean(x, positions, weight, None, whole)
    assert torch.allclose(got, naive_mean(x, positions, weight, whole), atol=1e-12)  # float64


@pytest.mark.parametrize("tokens_", [1, 5, 127, 128, 129, 400, 128 * 128 + 3])
def test_prefix_sum_in_blocks_is_cumsum_with_its_gradient(tokens_):
    generator = torch.Generator().manual_seed(0)
    x, g = torch.randn(2, 2, tokens_, 3, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    want, got = x.cumsum(1), prefix_sum(x)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-11)
    gradients = [torch.autograd.grad(y, x, g)[0] for y in (want, got)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-11)
    assert torch.equal(got, prefix_sum(x))


@pytest.mark.parametrize("whole", [False, True])
def test_rows_known_to_hold_one_document_have_the_same_mean_to_the_bit(whole):
    x = torch.randn(2, 200, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    positions, weight = torch.arange(200)[None], torch.ones(2, 200)
    weight[1, 150:] = 0
    for given in (None, weight):
        want, want_after = running_mean(x, positions, given, None, whole)
        with one_document_a_row():
            got, after = running_mean(x, positions, given, None, whole)
        assert torch.equal(got, want)
        assert torch.equal(after.sum_BK, want_after.sum_BK)
        g = torch.randn(want.shape, dtype=torch.float64)
        a, b = (torch.autograd.grad(y, x, g)[0] for y in (want, got))
        assert torch.equal(a, b)


def test_running_mean_continues_from_its_state():
    x = torch.randn(2, 11, 3, generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(6), torch.arange(5)])[None]
    full, after = running_mean(x, positions, None, None)
    state, parts = None, []
    for start, end in ((0, 4), (4, 5), (5, 8), (8, 11)):
        # a chunk that starts at position 0 continues: only steps inside a chunk are seen
        part, state = running_mean(x[:, start:end], positions[:, start:end], None, state)
        parts.append(part)
    assert torch.allclose(torch.cat(parts, 1), full, atol=1e-12)
    assert torch.allclose(state.sum_BK, after.sum_BK, atol=1e-12)
    assert state.count_B1.tolist() == [[5.0], [5.0]]


@pytest.mark.parametrize("position_buckets", [0, 4])
def test_forward_is_the_equation(position_buckets):
    torch.manual_seed(0)
    landmark = Landmark(6, 3, "prefix_mean", position_buckets, "log2", 0)
    with torch.no_grad():
        for parameter in landmark.parameters():
            parameter.normal_()
    h = torch.randn(2, 9, 6)
    with torch.no_grad():
        got, _ = landmark(h, torch.arange(9)[None])
        for b in range(2):
            for t in range(9):
                gate = landmark.W_g @ h[b, : t + 1].mean(0)
                if position_buckets:
                    gate = gate + landmark.P[min((t + 1).bit_length() - 1, position_buckets - 1)]
                expected = h[b, t] + landmark.alpha_s * (gate.softmax(0) @ landmark.L)
                assert torch.allclose(got[b, t], expected, atol=1e-5)  # float32 products


@pytest.mark.parametrize(("position_buckets", "count"), [(32, 12_545), (0, 12_289)])
def test_parameters_of_gpt2s_landmarks(position_buckets, count):
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config())
    config = HyloradaConfig(landmark_enabled=True, landmark_position_buckets=position_buckets)
    assert count_by_component(adapt(model, config)) == {"lora": 811_008, "landmark": count}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_position_never_sees_what_follows_it(family):
    model = adapted(family)
    ids = tokens(2, 21)
    other = ids.clone()
    other[:, 13:] = other[:, 13:] % 90 + 1
    with torch.no_grad():
        a, b = model(ids).logits, model(other).logits
    assert (a[:, :13] - b[:, :13]).abs().max() == 0
    assert (a[:, 13:] - b[:, 13:]).abs().max() > 0


def test_the_published_pooling_reads_the_future():
    model = adapted("gpt2", landmark_pooling="sequence_mean")
    ids = tokens(2, 21)
    other = ids.clone()
    other[:, 13:] = other[:, 13:] % 90 + 1
    with torch.no_grad():
        assert (model(ids).logits[:, :13] - model(other).logits[:, :13]).abs().max() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_steps_equal_one_pass(family):
    model = adapted(family)
    ids = tokens(2, 17)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        cache, parts = DynamicCache(config=model.config), []
        for start, end in ((0, 6), (6, 7), (7, 12), (12, 17)):
            out = model(ids[:, start:end], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
        assert torch.allclose(torch.cat(parts, 1), expected, **EXACT)
        state = next(layer for layer in cache.layers if isinstance(layer, LandmarkCacheLayer))
        assert state.state.count_B1.tolist() == [[17.0], [17.0]]
        state.reset()  # negative control: without its state the continuation differs
        lost = model(ids[:, :1], past_key_values=copy.deepcopy(cache)).logits
        state.state = PooledState(torch.zeros(2, 8).double() + 9, torch.full((2, 1), 3.0).double())
        assert (model(ids[:, :1], past_key_values=cache).logits - lost).abs().max() > 1e-4


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("how", [
    {"num_beams": 1}, {"num_beams": 3}, {"cache_implementation": "static"},
])  # fmt: skip
def test_generation_of_a_left_padded_batch(family, how):
    model = adapted(family)
    ids = tokens(2, 9)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    ids[0, :4] = 0
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.no_grad():
        batch = model.generate(input_ids=ids, attention_mask=mask, **options, **how)
        alone = model.generate(input_ids=ids[:1, 4:], **options, **how)
        uncached = model.generate(
            input_ids=ids, attention_mask=mask, use_cache=False, **options,
            **{k: v for k, v in how.items() if k == "num_beams"},
        )  # fmt: skip
    assert batch[0, 4:].tolist() == alone[0].tolist()
    assert batch.tolist() == uncached.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_no_logits(family):
    model = adapted(family)
    ids = tokens(1, 11)
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], 1)
    mask = (torch.arange(16) >= 5).long()[None]
    position_ids = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = model(ids).logits
        left = model(padded, attention_mask=mask, position_ids=position_ids).logits[:, 5:]
        right = model(padded.roll(-5, 1), attention_mask=mask.roll(-5, 1)).logits
    assert torch.allclose(left, expected, **EXACT)
    assert torch.allclose(right[:, :11], expected, **EXACT)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "qwen3", "gpt_neox"])  # OPT cannot
def test_packed_documents_equal_separate_ones(family):
    model = adapted(family)
    a, b = tokens(1, 14, seed=1), tokens(1, 9, seed=2)
    position_ids = torch.cat([torch.arange(14), torch.arange(9)])[None]
    with torch.no_grad():
        both = model(torch.cat([a, b], 1), position_ids=position_ids, use_cache=False).logits
        assert torch.allclose(both[:, :14], model(a, use_cache=False).logits, **EXACT)
        assert torch.allclose(both[:, 14:], model(b, use_cache=False).logits, **EXACT)


def test_skipped_positions_of_one_document_do_not_make_the_mean_start_anew():
    model = adapted("gpt2", position_bias_enabled=False, landmark_position_buckets=0)
    landmark = model.base_model.lora_landmark["default"]
    ids = tokens(2, 12)
    positions = torch.arange(12).repeat(2, 1)
    positions[0, 5:] += 20
    positions[1, 9:] += 3
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 10:] = 0
    backbone, alpha = model.get_base_model().transformer, landmark.alpha_s.clone()
    given = {"attention_mask": mask, "position_ids": positions}
    with torch.no_grad():
        got = backbone(ids, **given).last_hidden_state
        landmark.alpha_s.zero_()
        h = backbone(ids, **given).last_hidden_state
        mean = torch.stack([h[:, : t + 1].mean(1) for t in range(10)], 1)
        gate = (mean @ landmark.W_g.T).softmax(-1)
        want = h[:, :10] + alpha * (gate @ landmark.L)
    assert torch.allclose(got[:, :10], want, **EXACT)
    assert (got - h).abs().max() > 1e-3


def test_a_cache_with_landmarks_cannot_be_rolled_back():
    model = adapted("gpt2")
    with torch.no_grad():
        cache = model(tokens(1, 5), use_cache=True).past_key_values
    assert not cache.is_croppable
    with pytest.raises(ValueError, match="rolled back"):
        cache.crop(-1)


def test_a_cache_can_be_repeated_reordered_and_selected():
    layer = LandmarkCacheLayer("default")
    layer.reorder_cache(torch.tensor([0]))  # nothing seen yet
    layer.state = PooledState(torch.arange(6.0).view(2, 3), torch.tensor([[1.0], [2.0]]))
    layer.batch_repeat_interleave(2)
    layer.reorder_cache(torch.tensor([3, 0, 1, 2]))
    layer.batch_select_indices(torch.tensor([0, 1]))
    assert layer.state.sum_BK.tolist() == [[3.0, 4.0, 5.0], [0.0, 1.0, 2.0]]
    assert layer.state.count_B1.tolist() == [[2.0], [1.0]]


def test_merging_landmarks_is_refused_and_tuples_are_understood():
    model = adapted("gpt2", position_bias_enabled=False)
    ids = tokens(1, 7)
    with torch.no_grad():
        backbone = model.get_base_model().transformer
        expected = backbone(ids).last_hidden_state
        assert torch.equal(backbone(ids, return_dict=False)[0], expected)
        assert torch.equal(backbone(ids, None, torch.ones_like(ids)).last_hidden_state, expected)
    with pytest.raises(ValueError, match=r"cannot be merged.*landmarks"):
        model.merge_and_unload()
