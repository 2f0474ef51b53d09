import itertools
import math

import pytest
import torch
from torch import nn

from hylorada.config import TrainConfig
from hylorada.training.optim import (
    learning_rate,
    make_optimizer,
    set_learning_rate,
    step_if,
)


def test_decay_acts_on_matrices_and_leaves_vectors_alone():
    matrix, vector = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3))
    settings = TrainConfig(lr=0.1, weight_decay=0.5)
    optimizer = make_optimizer([("m", matrix), ("v", vector)], settings)
    matrix.grad, vector.grad = torch.zeros(3, 2), torch.zeros(3)
    optimizer.step()
    assert torch.equal(matrix.detach(), torch.full((3, 2), 1 - 0.1 * 0.5))
    assert torch.equal(vector.detach(), torch.ones(3))


def test_decay_leaves_vectors_alone_that_are_kept_as_matrices():
    """IA3 keeps its factors, which start at one, as [n, 1]; LoRA's A of rank 1 is a matrix."""
    names = ("q_proj.ia3_l.default", "q_proj.lora_A.default.weight")
    column, row = nn.Parameter(torch.ones(3, 1)), nn.Parameter(torch.ones(1, 3))
    optimizer = make_optimizer(
        list(zip(names, (column, row), strict=True)), TrainConfig(lr=0.1, weight_decay=0.5)
    )
    column.grad, row.grad = torch.zeros(3, 1), torch.zeros(1, 3)
    optimizer.step()
    assert torch.equal(column.detach(), torch.ones(3, 1))
    assert torch.equal(row.detach(), torch.full((1, 3), 1 - 0.1 * 0.5))


def test_step_is_adamw_with_the_settings_of_the_config():
    parameter = nn.Parameter(torch.tensor([[2.0]]))
    settings = TrainConfig(
        lr=0.1, weight_decay=0.1, adam_beta1=0.8, adam_beta2=0.9, adam_epsilon=1e-3
    )
    optimizer = make_optimizer([("p", parameter)], settings)
    value, m, v = 2.0, 0.0, 0.0
    for t, gradient in enumerate((0.5, -2.0, 1.0), start=1):
        parameter.grad = torch.tensor([[gradient]])
        optimizer.step()
        m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
        value -= 0.1 * 0.1 * value
        value -= 0.1 * (m / (1 - 0.8**t)) / (math.sqrt(v / (1 - 0.9**t)) + 1e-3)
    assert parameter.item() == pytest.approx(value, rel=1e-5)  # float32


def test_warm_up_is_linear_and_every_step_moves():
    settings = TrainConfig(lr=1.0, warmup_ratio=0.1)
    rates = [learning_rate(step, 100, settings) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert max(rates) == rates[9] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[9:]))
    assert 0 < rates[-1] < 1e-3


def test_cosine_passes_the_middle_halfway_to_its_floor():
    settings = TrainConfig(lr=2.0, warmup_ratio=0.0, min_lr_ratio=0.2)
    assert learning_rate(50, 99, settings) == pytest.approx(2.0 * (0.2 + 0.8 * 0.5))
    assert learning_rate(99, 99, settings) == pytest.approx(0.4, rel=1e-2)


def test_constant_stays():
    settings = TrainConfig(lr=3.0, lr_scheduler="constant", warmup_ratio=0.0)
    assert {learning_rate(step, 7, settings) for step in range(1, 8)} == {3.0}


def test_rate_reaches_every_group():
    parameters = [("m", nn.Parameter(torch.ones(2, 2))), ("v", nn.Parameter(torch.ones(2)))]
    optimizer = make_optimizer(parameters, TrainConfig())
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


def test_parameters_with_a_rate_of_their_own_move_as_under_an_optimizer_of_their_own():
    """Decay included, which AdamW multiplies by the rate."""
    torch.manual_seed(0)
    shapes = {"a": (3, 2), "v": (3,), "b": (3, 2), "w": (2,)}
    rates = {"b": 16.0, "w": 4.0}
    start = {name: torch.randn(shape) for name, shape in shapes.items()}
    gradients = [{name: torch.randn(shape) for name, shape in shapes.items()} for _ in range(3)]

    def trained(names, rates, base):
        parameters = {name: nn.Parameter(start[name].clone()) for name in names}
        optimizer = make_optimizer(parameters.items(), TrainConfig(weight_decay=0.5), rates)
        for rate, gradient in zip((base, base / 2, base), gradients, strict=True):
            set_learning_rate(optimizer, rate)
            for name, parameter in parameters.items():
                parameter.grad = gradient[name].clone()
            optimizer.step()
        return {name: parameter.detach() for name, parameter in parameters.items()}

    together = trained(list(shapes), rates, 2**-6)
    for name, moved in together.items():
        alone = trained([name], {}, 2**-6 * rates.get(name, 1.0))
        assert torch.equal(moved, alone[name]), name
    assert not torch.equal(together["b"], trained(["b"], {}, 2**-6)["b"])


def test_without_rates_of_their_own_there_are_two_groups_in_the_order_of_the_model():
    names = {"m": (2, 2), "v": (2,), "n": (3, 2), "w": (3,)}
    parameters = {name: nn.Parameter(torch.ones(shape)) for name, shape in names.items()}
    optimizer = make_optimizer(parameters.items(), TrainConfig(lr=0.1))
    found = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    assert found == [[id(parameters[name]) for name in pair] for pair in ("mn", "vw")]
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]


def test_a_step_that_moves_nothing_is_none_at_all():
    """Also not for AdamW's counter, by which it corrects its moments."""
    torch.manual_seed(0)
    start, gradients = torch.randn(5, 3), torch.randn(3, 5, 3)
    results = []
    for skipped in ((), (0,), (1, 2)):
        parameter = nn.Parameter(start.clone())
        optimizer = make_optimizer([("p", parameter)], TrainConfig(lr=0.1))
        for at, gradient in enumerate(gradients):
            for _ in range(skipped.count(at)):
                parameter.grad = torch.full((5, 3), math.nan)
                step_if(optimizer, torch.tensor(False))
            parameter.grad = gradient.clone()
            step_if(optimizer, torch.tensor(True))
        results.append([parameter.detach(), *optimizer.state[parameter].values()])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert results[0][1] == 3
