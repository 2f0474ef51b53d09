"""Key-value heads are repeated where no fused kernel takes them, and the numbers stay."""

import pytest
import torch
from helpers.families import make_model, tokens
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hylorada.kernels import grouped_heads
from hylorada.methods.s2_attention import enable_s2


class _OnGpu:
    """As much of a tensor on a GPU as `fused` asks for."""

    device = torch.device("cuda")

    def __init__(self, dtype):
        self.dtype = dtype


@pytest.mark.parametrize(
    ("capability", "dtype", "fused"),
    [
        ((9, 0), torch.bfloat16, True),
        ((8, 0), torch.float16, True),
        ((8, 0), torch.float32, False),
        ((7, 5), torch.float16, False),
        ((7, 5), torch.float32, False),
    ],
)
def test_where_fused_kernels_take_grouped_heads(monkeypatch, capability, dtype, fused):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert grouped_heads.fused(_OnGpu(dtype)) is fused


def test_a_cpu_needs_no_help():
    assert grouped_heads.fused(torch.zeros(1))


@pytest.fixture
def asked(monkeypatch):
    """(grouped heads are asked for, key-value heads) of every call of SDPA."""
    calls, plain = [], torch.nn.functional.scaled_dot_product_attention

    def listening(query, key, *args, enable_gqa=False, **kwargs):
        calls.append((enable_gqa, key.shape[1]))
        return plain(query, key, *args, enable_gqa=enable_gqa, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", listening)
    return calls


@pytest.mark.parametrize("s2", [False, True], ids=["sdpa", "s2"])
def test_repeated_heads_give_the_same_numbers(monkeypatch, asked, s2):
    model = make_model("llama").train()
    heads, groups = model.config.num_attention_heads, model.config.num_key_value_heads
    assert groups < heads
    if s2:
        enable_s2(model, 8, "layers")
        asked.clear()
    ids = tokens(1, 29)
    monkeypatch.setitem(
        AttentionInterface._global_mapping, "sdpa", sdpa_attention_forward
    )  # put back afterwards
    AttentionInterface.register("sdpa", grouped_heads.sdpa)
    want = model(input_ids=ids).logits
    assert set(asked) == {(True, groups)}
    asked.clear()
    monkeypatch.setattr(grouped_heads, "fused", lambda query: False)
    got = model(input_ids=ids).logits
    assert set(asked) == {(False, heads)}
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_only_a_gpu_gets_it(monkeypatch):
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", sdpa_attention_forward)
    grouped_heads.use_here(torch.device("cpu"))
    assert AttentionInterface._global_mapping["sdpa"] is sdpa_attention_forward
    grouped_heads.use_here(torch.device("cuda"))
    assert AttentionInterface._global_mapping["sdpa"] is grouped_heads.sdpa
