"""What transformers is told about packed documents is what it would have found."""

import threading

import pytest
import torch
from helpers.families import FAMILIES, make_model, tokens
from torch.utils._python_dispatch import TorchDispatchMode

from hylorada.architecture.packed_rows import one_document_a_row

PACKED = torch.cat([torch.arange(9), torch.arange(14)])[None]


class Reads(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "_local_scalar_dense" in func.__name__
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_logits_without_a_question(family):
    model, ids = make_model(family), tokens(2, 23)
    with torch.no_grad():
        want = model(ids, use_cache=False).logits
        with one_document_a_row(), Reads() as reads:
            got = model(ids, use_cache=False).logits
    assert torch.equal(got, want)
    assert reads.count == 0


def test_packed_documents_are_found_outside_and_in_other_threads():
    model, ids = make_model("llama"), tokens(1, 23)

    def logits():
        with torch.no_grad():
            return model(ids, position_ids=PACKED, use_cache=False).logits

    want, others = logits(), []
    with one_document_a_row():
        with one_document_a_row(False):
            assert not torch.allclose(logits(), want, atol=1e-3)  # a block inside wakes nothing
        thread = threading.Thread(target=lambda: others.append(logits()))
        thread.start()
        thread.join()
    assert torch.equal(others[0], want)
    assert torch.equal(logits(), want)
