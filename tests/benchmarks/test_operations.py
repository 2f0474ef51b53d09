"""What a training step asks of a device does not grow: upper limits, from the committed table."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
spec = importlib.util.spec_from_file_location("operations", FOLDER / "operations.py")
operations = importlib.util.module_from_spec(spec)
spec.loader.exec_module(operations)
TABLE = json.loads((FOLDER / "results" / "operations.json").read_text())["rows"]
SPARE = 1.02  # versions of torch and transformers differ by a few calls


@pytest.mark.parametrize("model", ["gpt2", "smollm2"])
def test_hylorada_launches_no_more_than_the_table_says(model):
    counted = operations.count_operations("hylorada", model)
    assert counted["operations"] <= SPARE * TABLE[f"{model}/hylorada"]["operations"]
    assert counted["logits_bytes"] <= TABLE[f"{model}/hylorada"]["logits_bytes"]


def test_a_step_waits_no_more_often_than_the_table_says():
    counted = operations.count_step("hylorada", "gpt2")
    assert counted["synchronisations"] <= TABLE["gpt2/hylorada"]["synchronisations"]


def test_what_launches_is_no_view_no_allocation_and_no_read():
    with operations.Operations() as counted:
        x = torch.empty(3, 4)
        x.fill_(1.0)
        y = x.t().reshape(12).view(4, 3)  # a copy, since the rows are not contiguous
        (y @ x).sum().item()
    assert set(counted.by_name) == {"fill_.Scalar", "clone.default", "mm.default", "sum.default"}


def test_only_reads_of_what_the_device_has_computed_count():
    text, weight = torch.tensor([1.0, 2.0]), torch.ones(2)
    with operations.Synchronisations() as counted:
        counted.host(text)
        (text > 1).sum().item()  # the host's own
        moved = text.to(torch.device("cpu"))
        assert not counted.where
        (moved > 1).sum().item()
        (text * weight).tolist()
        weight[weight > 0]
        weight.nonzero()
    assert dict(counted.where) == {
        "_local_scalar_dense.default": 1, "tolist": 1, "index.Tensor": 1, "nonzero.default": 1,
    }  # fmt: skip
