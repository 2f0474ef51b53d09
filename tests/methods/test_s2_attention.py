"""Shifted sparse attention against a dense, masked, obvious reference."""

from __future__ import annotations

import bisect
import functools
import sys
import threading

import pytest
import torch
from helpers.families import FAMILIES, VOCAB, make_model, tokens
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    BloomConfig,
    LlamaConfig,
    MistralConfig,
)

from hylorada.errors import ConfigError
from hylorada.methods.s2_attention import (
    disable_s2,
    enable_s2,
    record_s2_layers,
    s2_heads,
)
from hylorada.methods.s2_limits import SHIFTS, full_heads, full_layers

G = 8
LONG = 4 * G + 37
# fp32 sums in another order; logits here are of size 10, so 1e-5 is 1e-6 relative.
TOLERANCE = 1e-5

_reference_documents: torch.Tensor | None = None  # [B, N], 0 = padding
_reference_full: set[int] = set()  # layers that attend fully
_reference_full_heads = 0  # the first query heads of each layer attend fully


def segment_bounds(length: int, group_size: int, shifted: bool) -> list[int]:
    """The segment boundaries, from 0 to ``length``, in tokens."""
    first = group_size // 2 if shifted else group_size
    return [0, *range(first, length, group_size), length]


@functools.cache
def _same_segment(length: int, shifted: bool) -> torch.Tensor:
    bounds = segment_bounds(length, G, shifted)
    segment = torch.tensor([bisect.bisect_right(bounds, p) for p in range(length)])
    return (segment[:, None] == segment[None]).tril()


def _reference_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Every head, every pair of tokens, one n x n mask: the definition, written out."""
    B, H, N, D = query.shape
    repeats = H // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = query @ key.transpose(2, 3) * (D**-0.5 if scaling is None else scaling)
    if attention_mask is not None:  # only a caller's 4-D mask arrives here
        additive = attention_mask
        if attention_mask.dtype == torch.bool:
            additive = torch.zeros_like(scores).masked_fill(~attention_mask, -torch.inf)
        scores = scores + additive
    allowed = torch.zeros(B, H, N, N, dtype=torch.bool)
    F = _reference_full_heads
    for h in range(H):
        by_layer = module.layer_idx % 2 == 1
        in_second_half = h >= F + (H - F) // 2
        shifted = by_layer if module.config.s2_shift == "layers" else in_second_half
        allowed[:, h] = _same_segment(N, shifted)
        if module.layer_idx in _reference_full or h < F:
            allowed[:, h] = torch.ones(N, N, dtype=torch.bool).tril()
    if _reference_documents is not None:
        documents = _reference_documents
        allowed &= (documents[:, :, None] == documents[:, None, :])[:, None]
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    return (weights @ value).transpose(1, 2), None


AttentionInterface.register("reference", _reference_attention)  # no mask function: mask is None


def _run(model, ids, keep=None, **inputs):
    """Logits and parameter gradients in training mode; ``keep`` selects the tokens that count."""
    model.train()
    model.zero_grad()
    logits = model(input_ids=ids, use_cache=False, **inputs).logits
    kept = logits if keep is None else logits[keep]
    kept.square().mean().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    # The true gradient of a key bias is 0 (softmax ignores it): what is there is rounding.
    return kept.detach(), {n: g for n, g in gradients.items() if "k_proj.bias" not in n}


def _both(model, ids, documents=None, keep=None, **inputs):
    global _reference_documents
    got = _run(model, ids, keep, **inputs)
    model.set_attn_implementation("reference")
    _reference_documents = documents
    try:
        want = _run(model, ids, keep, **inputs)
    finally:
        _reference_documents = None
        model.set_attn_implementation("s2")
    return got, want


def _assert_equal(got, want, tolerance=TOLERANCE):
    assert (got[0] - want[0]).abs().max() <= tolerance
    for name, gradient in want[1].items():
        scale = max(1.0, gradient.abs().max().item())
        assert (got[1][name] - gradient).abs().max() / scale <= tolerance, name


def test_segments_are_as_the_paper_draws_them():
    assert segment_bounds(64, 16, shifted=False) == [0, 16, 32, 48, 64]
    assert segment_bounds(64, 16, shifted=True) == [0, 8, 24, 40, 56, 64]
    assert segment_bounds(23, 16, shifted=True) == [0, 8, 23]


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_equal_the_dense_reference(family, shift):
    model = make_model(family, 128)
    assert enable_s2(model, G, shift) == 3
    for length in (LONG, 4 * G, G + 7):  # ragged, whole groups, no full shifted group
        _assert_equal(*_both(model, tokens(2, length)))


@pytest.mark.parametrize(("share", "full"), [(0.3, {1}), (0.6, {0, 2})])
@pytest.mark.parametrize("shift", SHIFTS)
def test_a_share_of_the_layers_attends_fully(shift, share, full, monkeypatch):
    model = make_model("llama", 128)
    ids = tokens(2, LONG)
    enable_s2(model, G, shift)
    segments = _run(model, ids)
    monkeypatch.setattr(sys.modules[__name__], "_reference_full", full)
    assert enable_s2(model, G, shift, full=share) == 3 - len(full)
    got, want = _both(model, ids)
    _assert_equal(got, want)
    assert (got[0] - segments[0]).abs().max() > 0.01
    assert _leak(model, LONG, training=True) == 0.0
    disable_s2(model)
    assert not any("s2_full" in vars(module) for module in model.modules())


def _llama(heads, kv_heads, layers=3):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=8 * heads, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=128,
        head_dim=8,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


# (query heads, key-value heads, share, of the query heads those that attend fully)
HEADS = {
    "layers": [(4, 4, 0.25, 1), (6, 2, 0.5, 3), (9, 3, 0.33, 3), (5, 1, 0.4, 2)],
    "heads": [(4, 4, 0.5, 2), (8, 4, 0.25, 2), (9, 3, 0.33, 3), (6, 3, 0.67, 4), (5, 1, 0.2, 1)],
}


@pytest.mark.parametrize("rows", ["whole", "packed", "left", "right", "one_mask_per_head"])
@pytest.mark.parametrize(
    ("shift", "heads", "kv_heads", "share", "fully"),
    [(shift, *case) for shift in SHIFTS for case in HEADS[shift]],
)
def test_a_share_of_the_heads_attends_fully(
    shift, heads, kv_heads, share, fully, rows, monkeypatch
):
    model, ids = _llama(heads, kv_heads).double(), tokens(2, LONG)
    real, inputs, documents = torch.ones(2, LONG, dtype=torch.long), {}, None
    if rows == "packed":
        sizes = (7, 21, LONG - 28)
        positions = torch.cat([torch.arange(s) for s in sizes])[None].expand(2, -1)
        documents = torch.arange(1, 4).repeat_interleave(torch.tensor(sizes))[None].expand(2, -1)
        inputs = {"position_ids": positions}
    elif rows == "one_mask_per_head":
        generator = torch.Generator().manual_seed(1)
        mask = (torch.rand(2, heads, LONG, LONG, generator=generator) < 0.6).tril()
        inputs = {"attention_mask": mask | torch.eye(LONG, dtype=torch.bool)}
    elif rows in ("left", "right"):
        real[0, slice(0, 11) if rows == "left" else slice(LONG - 11, LONG)] = 0
        inputs, documents = {"attention_mask": real}, real
    monkeypatch.setattr(sys.modules[__name__], "_reference_full_heads", fully)
    assert enable_s2(model, G, shift, share_of_heads=share) == 3
    assert s2_heads(model) == dict.fromkeys(range(3), (heads - fully, heads))
    got, want = _both(model, ids, documents, real.bool(), **inputs)
    _assert_equal(got, want, 1e-12)  # of float64
    model.config.s2_full_heads = 0
    without, _ = _run(model, ids, real.bool(), **inputs)
    assert (got[0] - without).abs().max() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_with_heads_that_attend_fully_the_past_never_depends_on_the_future(family):
    model = make_model(family, 128)
    share = 0.5 if family != "qwen2" else 0.25  # whose four heads share one of keys and values
    enable_s2(model, G, "layers", in_evaluation=True, share_of_heads=share)
    for training in (True, False):
        assert _leak(model, LONG, training) == 0.0
    disable_s2(model)
    assert not any(name.startswith("s2_") for name in vars(model.config))


def test_heads_that_attend_fully_go_with_their_keys_and_some_are_left():
    assert full_heads(8, 8, 0.0) == 0
    assert full_heads(8, 8, 0.25) == 2
    assert full_heads(9, 3, 0.33) == 3
    assert full_heads(32, 8, 0.1) == 4
    assert full_heads(7, 1, 0.3) == 2
    for heads, kv_heads, share, told in (
        (8, 8, 0.05, "of 8 heads is no head"),
        (9, 3, 0.1, "of 3 key-value heads is no head"),
        (9, 3, 0.9, "of 3 key-value heads is every head"),
    ):
        with pytest.raises(ConfigError, match=f"{told}; use .*full_heads=0"):
            full_heads(heads, kv_heads, share)
    with pytest.raises(ConfigError, match="no head"):
        enable_s2(_llama(4, 2), G, "layers", share_of_heads=0.1)
    with pytest.raises(ConfigError, match=r"even number of heads in segments, .* has 3 of 4 \(use"):
        enable_s2(_llama(4, 4), G, "heads", share_of_heads=0.25)
    model = _llama(4, 2)
    vars(model.config)["num_attention_heads"] = [4, 4, 4]
    with pytest.raises(ConfigError, match="how many heads LlamaForCausalLM has its config"):
        enable_s2(model, G, "layers", share_of_heads=0.5)
    enable_s2(model, G, "layers")
    model.config.s2_full_heads = 1
    with pytest.raises(ConfigError, match=r"1 of 4 heads .* do not go with their 2"):
        model.train()(tokens(1, LONG))
    model = _llama(3, 3)
    assert enable_s2(model, G, "heads", share_of_heads=0.3) == 3  # without: an odd number of heads


def test_layers_that_attend_fully_are_spread_evenly_and_some_are_left():
    assert full_layers(6, 0.0) == []
    assert full_layers(6, 0.25) == [1, 5]
    assert full_layers(12, 0.25) == [1, 5, 9]
    assert full_layers(4, 0.5) == [0, 2]
    assert len(full_layers(30, 0.1)) == 3
    for share, which in ((0.05, "no layer"), (0.95, "every layer")):
        with pytest.raises(ConfigError, match=f"of 6 layers is {which}"):
            full_layers(6, share)


@pytest.mark.parametrize(("full", "heads"), [(0.0, 0.0), (0.3, 0.0), (0.6, 0.0), (0.0, 0.25)])
def test_the_products_of_attention_are_those_of_its_layers_and_heads(full, heads):
    model = make_model("gpt2", 256).train()
    length, group = 192, 48  # shifted: 24, 3 x 48, 24
    enable_s2(model, group, "layers", full=full, share_of_heads=heads)
    counted = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "scaled_dot_product" in func.__name__ and "backward" not in func.__name__:
                batch, heads, queries, width = args[0].shape
                counted.append(4 * batch * heads * queries * args[1].shape[2] * width)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Products():
        model(tokens(1, length), use_cache=False)
    each = 4 * model.config.hidden_size
    in_segments = [length * group, 3 * group**2 + 2 * (group // 2) ** 2, length * group]
    fully = full_layers(3, full)
    shares = [1 if i in fully else heads for i in range(3)]
    pairs = sum(share * length**2 + (1 - share) * in_segments[i] for i, share in enumerate(shares))
    assert sum(counted) == each * pairs


@pytest.mark.parametrize("heads", [(6, 3), (6, 2), (8, 1), (4, 4)])
def test_grouped_heads_split_or_repeat(heads):
    model = _llama(*heads, layers=2)
    enable_s2(model, G, "heads")
    _assert_equal(*_both(model, tokens(1, LONG)))


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_is_not_attended_to(family, side, shift):
    model = make_model(family, 128)
    enable_s2(model, G, shift)
    ids, real = tokens(2, LONG), torch.ones(2, LONG, dtype=torch.long)
    padding = slice(0, 11) if side == "left" else slice(LONG - 11, LONG)
    real[0, padding] = 0
    ids[0, padding] = 0
    got, want = _both(model, ids, documents=real, keep=real.bool(), attention_mask=real)
    _assert_equal(got, want)


# OPT does not tell transformers its positions, so it cannot detect packed documents.
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "opt"])
def test_packed_documents_do_not_see_each_other(family, shift):
    model = make_model(family, 128)
    enable_s2(model, G, shift)
    sizes = (7, 21, LONG - 28)
    positions = torch.cat([torch.arange(s) for s in sizes])[None].expand(2, -1)
    documents = torch.arange(1, 4).repeat_interleave(torch.tensor(sizes))[None].expand(2, -1)
    _assert_equal(*_both(model, tokens(2, LONG), documents=documents, position_ids=positions))


@pytest.mark.parametrize("kind", ["bool", "float", "one_row_per_head"])
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_callers_four_dimensional_mask_is_cut_into_blocks(family, shift, kind):
    model = make_model(family, 128)
    enable_s2(model, G, shift)
    heads = 4 if kind == "one_row_per_head" else 1
    generator = torch.Generator().manual_seed(1)
    mask = (torch.rand(2, heads, LONG, LONG, generator=generator) < 0.6).tril()
    mask |= torch.eye(LONG, dtype=torch.bool)
    if kind == "float":
        noise = torch.randn(mask.shape, generator=generator)
        mask = noise.masked_fill(~mask, torch.finfo(torch.float32).min)
    positions = torch.arange(LONG)[None].expand(2, -1)  # OPT would read them off a 2-D mask
    _assert_equal(*_both(model, tokens(2, LONG), attention_mask=mask, position_ids=positions))


def _leak(model, length, training):
    """How far logits before a changed token move, at the worst of several cut points."""
    model.train(training)
    ids = tokens(1, length)
    with torch.no_grad():
        base = model(input_ids=ids, use_cache=False).logits
        worst = 0.0
        for cut in (1, G // 2, G, length // 2, length - G // 2, length - 1):
            other = ids.clone()
            other[:, cut:] = (other[:, cut:] + 5) % VOCAB
            logits = model(input_ids=other, use_cache=False).logits
            worst = max(worst, (logits - base)[:, :cut].abs().max().item())
    return worst


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_past_never_depends_on_the_future(family, shift):
    model = make_model(family, 128)
    enable_s2(model, G, shift, in_evaluation=True)
    for training in (True, False):
        for length in (LONG, 4 * G):
            assert _leak(model, length, training) == 0.0


def test_the_shift_carries_information_across_groups():
    model = make_model("llama", 128).train()
    ids = tokens(1, 4 * G)
    other = ids.clone()
    other[:, 0] += 1
    for shift in SHIFTS:
        enable_s2(model, G, shift)
        with torch.no_grad():
            change = (model(ids).logits - model(other).logits).abs().amax((0, 2))
        assert change[G + 2] > 0  # the second plain group hears of token 0
        assert change[-1] == 0  # three layers do not reach the last group


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_evaluation_and_short_sequences_are_ordinary_sdpa(family, shift):
    model = make_model(family, 128)
    ids, real = tokens(2, LONG), torch.ones(2, LONG, dtype=torch.long)
    real[0, :9] = 0
    short = tokens(2, G)
    with torch.no_grad():
        want = model(ids).logits, model(ids, attention_mask=real).logits[real.bool()]
        want_short = model.train()(short).logits
        enable_s2(model, G, shift)
        got_short = model(short).logits
        model.eval()
        got = model(ids).logits, model(ids, attention_mask=real).logits[real.bool()]
    assert torch.equal(got_short, want_short)
    assert torch.equal(got[0], want[0])
    assert (got[1] - want[1]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_generation_with_a_cache_is_full_attention(family):
    model = make_model(family, 128)
    ids, real = tokens(2, 3 * G), torch.ones(2, 3 * G, dtype=torch.long)
    real[1, :5] = 0
    options = {"attention_mask": real, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    want = model.generate(ids, **options)
    enable_s2(model, G, "heads")
    assert torch.equal(model.generate(ids, **options), want)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_gradient_checkpointing_changes_nothing(share):
    model = make_model("llama", 128)
    enable_s2(model, G, "heads", share_of_heads=share)
    plain = _run(model, tokens(2, LONG))
    model.activation_checkpointing_enable({"use_reentrant": False})
    checkpointed = _run(model, tokens(2, LONG))
    assert torch.equal(plain[0], checkpointed[0])
    assert all(torch.equal(g, checkpointed[1][n]) for n, g in plain[1].items())


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_autocast_stays_close_to_float32(family):
    model = make_model(family, 128)
    enable_s2(model, G, "heads")
    exact, _ = _run(model, tokens(1, LONG))
    with torch.autocast("cpu", torch.bfloat16):
        rounded, gradients = _run(model, tokens(1, LONG))
    # bf16 keeps 8 bits: half a percent a layer, of logits whose spread is `exact.std()`.
    assert (rounded.float() - exact).abs().mean() <= 0.05 * exact.std()
    assert all(g.isfinite().all() for g in gradients.values())


class _LargestTensor(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.elements = max(self.elements, storage)
        return out


@pytest.mark.parametrize("length", [64, 72, 77])  # a whole number of groups, of half groups; odd
@pytest.mark.parametrize(("shift", "share"), [("layers", 0.0), ("heads", 0.0), ("layers", 0.25)])
def test_no_gradient_is_put_together_by_filling_zeros_and_adding(length, shift, share):
    model = make_model("gpt2", trained_length=128).train()
    enable_s2(model, 16, shift, share_of_heads=share)
    ids, seen = tokens(2, length), []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.__name__)
            return func(*args, **(kwargs or {}))

    hidden = model.transformer(ids, use_cache=False).last_hidden_state
    with Names():
        hidden.sum().backward()
    assert any("flash_attention" in name for name in seen)
    assert not any("slice_backward" in name or "zeros" in name for name in seen)


@pytest.mark.parametrize("padded", [False, True])
def test_no_tensor_of_length_squared_exists(padded):
    n, g = 1200, 32
    model = make_model("llama", n).train()
    enable_s2(model, g, "heads")
    real = torch.ones(1, n, dtype=torch.long)
    real[:, : 3 * padded] = 0
    with _LargestTensor() as largest:
        model(tokens(1, n), attention_mask=real, use_cache=False).logits.sum().backward()
    assert largest.elements <= max(n * VOCAB, 4 * n * g)
    assert largest.elements < n * n / 5


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_full_graph_compiles(share):
    model = make_model("llama", 128).train()
    enable_s2(model, G, "heads", share_of_heads=share)
    ids = tokens(1, LONG)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        want = model(ids, use_cache=False).logits
        assert (compiled(ids, use_cache=False).logits - want).abs().max() <= TOLERANCE


def test_layers_are_counted_by_running():
    model = make_model("gpt2", 128)
    assert len(s2_heads(model)) == 0
    state = torch.random.get_rng_state()
    assert enable_s2(model, G, "layers") == 3
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not model.training
    assert model.config.s2_group_size == G
    model.transformer.h[1].attn.is_causal = False
    assert len(s2_heads(model)) == 2
    model.config._attn_implementation = "sdpa"  # the settings alone do not count
    assert len(s2_heads(model)) == 0


def test_only_training_takes_the_segments_unless_asked():
    model = make_model("gpt2", 128)
    for in_evaluation in (False, True):
        enable_s2(model, G, "heads", in_evaluation=in_evaluation)
        with record_s2_layers() as taken:
            model.eval()(tokens(1, LONG), use_cache=False)
        assert len(taken) == 3 * in_evaluation


def test_a_recording_is_of_its_own_block_and_thread():
    model = make_model("gpt2", 128).train()
    enable_s2(model, G, "heads")

    def run():
        model(tokens(1, LONG), use_cache=False)

    with record_s2_layers() as outer:
        with record_s2_layers() as inner:
            run()
        assert (len(inner), len(outer)) == (3, 0)
        other = threading.Thread(target=run)
        other.start()
        other.join()
        assert not outer
        run()
    assert len(outer) == 3
    run()
    assert len(outer) == 3


def test_layers_computed_again_in_the_backward_pass_are_recorded():
    model = make_model("gpt2", 128).train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    enable_s2(model, G, "heads")
    loss = model(tokens(1, LONG), use_cache=False).logits.sum()
    with record_s2_layers() as taken:
        loss.backward()
    assert len(taken) == 3


def test_disabling_restores_the_model():
    model = make_model("qwen2", 128)
    before = model.config.to_dict()
    enable_s2(model, G, "heads")
    enable_s2(model, 2 * G, "layers")  # switching again keeps the original implementation
    disable_s2(model)
    assert model.config._attn_implementation == "sdpa"
    assert model.config.to_dict() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"group_size": 7}, "not an even number"),
        ({"group_size": 0}, "not an even number"),
        ({"group_size": 64, "max_length": 64}, "do not split a sequence of 64"),
        ({"shift": "roll"}, "not one of layers, heads"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, words):
    model = make_model("gpt2", 128)
    with pytest.raises(ConfigError, match=words) as error:
        enable_s2(model, **{"group_size": G, "shift": "heads", **options})
    assert "\n" not in str(error.value)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            LlamaConfig(
                num_attention_heads=3,
                num_key_value_heads=1,
                hidden_size=24,
                vocab_size=VOCAB,
                intermediate_size=8,
                num_hidden_layers=1,
            ),
            "has 3 .use shift=layers",
        ),
        (
            MistralConfig(
                sliding_window=8,
                hidden_size=32,
                num_attention_heads=4,
                vocab_size=VOCAB,
                num_key_value_heads=2,
                intermediate_size=8,
                num_hidden_layers=1,
            ),
            "a window of 8 tokens",
        ),
        (
            BloomConfig(hidden_size=32, n_head=4, n_layer=1, vocab_size=VOCAB),
            "attention of Bloom.* AttentionInterface",
        ),
    ],
    ids=["odd heads", "sliding window", "own attention"],
)
def test_models_that_cannot_take_it_are_refused(config, words):
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ConfigError, match=words):
        enable_s2(model, G, "heads")
    assert len(s2_heads(model)) == 0
    assert not hasattr(model.config, "s2_group_size")
