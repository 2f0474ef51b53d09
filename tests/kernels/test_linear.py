"""The fast product beside F.linear, for every way its operands can lie in memory."""

import time

import pytest
import torch
import torch.nn.functional as F

from hylorada.kernels import linear
from hylorada.kernels.linear import fast_linear, product_dtype


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
