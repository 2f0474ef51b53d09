"""The fast product beside F.linear, for every way its operands can lie in memory."""

import time
import weakref

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn

from hylorada.kernels import linear
from hylorada.kernels.frozen_layers import use_frozen_kernels
from hylorada.kernels.linear import fast_linear, product_dtype, rows


def lying(rows, columns, how):
    dense = torch.randn(rows, columns)
    if how == "dense":
        return dense
    if how == "transposed":
        return dense.t().contiguous().t()
    if how == "columns of a wider matrix":
        return torch.cat([dense, dense], 1)[:, :columns]
    return torch.randn(1, 1).expand(rows, columns)


LYING = ["dense", "transposed", "columns of a wider matrix", "expanded"]


@pytest.mark.parametrize("x_lies", LYING)
@pytest.mark.parametrize("w_lies", LYING)
@pytest.mark.parametrize("bias", [True, False])
def test_equals_f_linear(x_lies, w_lies, bias):
    x, w = lying(7, 12, x_lies), lying(5, 12, w_lies)
    b = torch.randn(5) if bias else None
    torch.testing.assert_close(fast_linear(x, w, b), F.linear(x, w, b), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not linear.onednn_serves(torch.device("cpu")), reason="no oneDNN here")
@pytest.mark.parametrize("x_lies", LYING[1:])
def test_strides_do_not_make_it_slow(x_lies):
    """oneDNN's own answer to a strided input takes 1000 times as long (0.4 s here)."""
    x, w = lying(256, 64, x_lies), lying(2048, 64, "columns of a wider matrix")
    fast_linear(x, w)
    start = time.process_time()
    fast_linear(x, w)
    assert time.process_time() - start < 0.1


def test_no_rows():
    assert fast_linear(torch.empty(0, 3), torch.ones(5, 3)).shape == (0, 5)


def test_product_dtype_follows_autocast():
    x = torch.ones(1)
    assert product_dtype(x) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert product_dtype(x) == torch.bfloat16
        assert product_dtype(x.double()) == torch.float64


def test_layers_that_read_one_input_share_one_cast_of_it():
    x = torch.randn(2, 5, 7)
    first = rows(x, torch.bfloat16)
    assert first.shape == (10, 7)
    assert torch.equal(first, x.reshape(10, 7).bfloat16())
    assert rows(x, torch.bfloat16) is first
    assert rows(x, torch.float16).dtype == torch.float16
    assert torch.equal(rows(x, torch.float32), x.reshape(10, 7))
    kept = rows(x, torch.bfloat16)
    with torch.no_grad():
        x.view(-1)[3] = 100.0  # through a view
    assert rows(x, torch.bfloat16)[0, 3] == 100.0
    assert kept[0, 3] != 100.0
    other = x.clone()
    assert rows(other, torch.bfloat16) is not rows(x, torch.bfloat16)


def test_a_cast_lives_no_longer_than_what_was_cast():
    x = torch.randn(5, 7)
    cast = weakref.ref(rows(x, torch.bfloat16))
    assert cast() is not None
    del x
    assert cast() is None
    with torch.inference_mode():  # nobody counts what is written there
        x = torch.randn(5, 7)
        assert torch.equal(rows(x, torch.bfloat16), x.bfloat16())
        x.zero_()
        assert not rows(x, torch.bfloat16).any()


def test_queries_keys_and_values_keep_their_input_once():
    layers = [nn.Linear(7, 7, bias=False) for _ in range(3)]
    model = get_peft_model(
        nn.ModuleDict({f"part{i}": layer for i, layer in enumerate(layers)}),
        LoraConfig(r=2, target_modules=[f"part{i}" for i in range(3)], init_lora_weights=False),
    )
    use_frozen_kernels(model)
    x = torch.randn(5, 7, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = [model.base_model.model[f"part{i}"](x) for i in range(3)]
    saved = [[t for t in y.grad_fn.saved_tensors if t is not None] for y in outputs]
    inputs = {t.data_ptr() for ts in saved for t in ts if t.shape == (5, 7)}
    assert len(inputs) == 1
