"""Generators are put back exactly, those of a GPU that the run is on included."""

import json
import os
import random

import numpy as np
import pytest
import torch

from hylorada.process.seeding import (
    deterministic,
    random_state,
    repeatable,
    restore_random_state,
    seed_everything,
)

CPU = torch.device("cpu")


def draw():
    return random.random(), float(np.random.random()), torch.rand(3).tolist()  # noqa: NPY002


def test_what_is_drawn_after_a_restoration_is_what_was_drawn_before():
    seed_everything(7)
    draw()
    state = json.loads(json.dumps(random_state(CPU)))
    drawn = draw()
    assert draw() != drawn
    restore_random_state(state, CPU)
    assert draw() == drawn
    assert state["cuda"] == []  # other devices are none of its business


@pytest.mark.parametrize(("index", "kept"), [(0, 0), (1, 1), (5, 2)])
def test_a_state_of_all_gpus_of_another_machine_gives_this_one_its_own(monkeypatch, index, kept):
    """Once all were kept; a machine with fewer or more of them can still go on."""
    state = random_state(CPU)
    other = [torch.Generator().manual_seed(seed).get_state() for seed in range(3)]
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: other[0])
    states = [random_state(torch.device("cuda", 0))["cuda"][0]]
    for generator in other[1:]:
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device, g=generator: g)
        states += random_state(torch.device("cuda", 0))["cuda"]
    put_back = []
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *given: put_back.append(given))
    device = torch.device("cuda", index)
    restore_random_state({**state, "cuda": states}, device)
    ((found, on),) = put_back
    assert on == device
    assert torch.equal(found, other[kept])


def switches():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.deterministic,
    )


@pytest.mark.parametrize(
    ("device", "strict", "inside"),
    [
        ("cpu", False, (True, True, False)),
        ("cpu", True, (True, True, False)),  # a CPU gives the same bits anyway
        ("cuda", False, (False, False, False)),
        ("cuda", True, (True, False, True)),
    ],
)
def test_what_is_asked_of_a_device_and_put_back(monkeypatch, device, strict, inside):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = switches()
    with deterministic():
        with repeatable(torch.device(device), strict):
            assert switches() == inside
            fixed = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
            assert fixed == (":4096:8" if device == "cuda" and strict else None)
        assert switches() == (True, True, False)
    assert switches() == before
