"""The gradients of a step are one value to the bit, whoever adds them up in whatever order."""

from __future__ import annotations

import hashlib
import itertools
import random
from typing import Any

import pytest
import torch
from process.test_ranks import in_processes
from training.test_loop import lines, make_training

from hylorada.process.ranks import ALONE, Ranks
from hylorada.training.exact_sum import ExactSum

SHAPES = [(7, 5), (3,), ()]
MICRO_BATCHES = 9


def parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.zeros(shape)) for shape in SHAPES]


def gradients() -> list[list[torch.Tensor]]:
    """Of each micro-batch: numbers of widely different scale, as gradients are."""
    torch.manual_seed(0)
    return [
        [torch.randn(shape) * 10.0 ** torch.randint(-5, 2, shape) for shape in SHAPES]
        for _ in range(MICRO_BATCHES)
    ]


def added_up(order: list[int], ranks: Ranks = ALONE) -> tuple[list[Any], float, int]:
    own, all_gradients = parameters(), gradients()
    with ExactSum(own, ranks) as sums:
        loss = torch.zeros((), dtype=torch.float64)
        for batch in order:
            sum((p * g).sum() for p, g in zip(own, all_gradients[batch], strict=True)).backward()
            assert all(p.grad is None for p in own)
            loss += 0.1 * torch.tensor(float(batch))
        loss, size = sums.give(loss, 4 - ranks.rank)
    assert not any(p._post_accumulate_grad_hooks for p in own)
    return [p.grad.tolist() for p in own], float(loss), size


def test_any_order_gives_the_same_bits_and_float32_does_not():
    orders = [list(range(MICRO_BATCHES)) for _ in range(20)]
    for number, order in enumerate(orders):
        random.Random(number).shuffle(order)
    first, *others = [added_up(order) for order in orders]
    assert all(other[0] == first[0] for other in others)
    naive = [sum(batch[0].double() for batch in gradients()).float().tolist()]
    assert first[0][0] == naive[0]
    plain = []
    for order in orders:
        total = torch.zeros(SHAPES[0])
        for batch in order:
            total += gradients()[batch][0]
        plain.append(total.tolist())
    assert any(other != plain[0] for other in plain)  # what this is for


def test_a_single_micro_batch_is_left_as_it_is():
    found, _, size = added_up([3])
    assert found == [gradient.tolist() for gradient in gradients()[3]]
    assert size == 4


def shared(ranks: Ranks) -> Any:
    return added_up(list(ranks.share(MICRO_BATCHES)), ranks)


def strided(ranks: Ranks) -> Any:
    return added_up(list(range(ranks.rank, MICRO_BATCHES, ranks.world)), ranks)


@pytest.mark.parametrize(("world", "work"), [(2, shared), (3, strided)])
def test_processes_come_to_what_one_comes_to(world, work):
    alone = added_up(list(range(MICRO_BATCHES)))
    found, codes = in_processes(world, work)
    assert codes == [0] * world
    for each in found:
        assert each[0] == alone[0]
        assert each[1] == pytest.approx(alone[1], rel=1e-15)
        assert each[2] == 5 - world  # the smallest of all


def unused(ranks: Ranks) -> Any:
    own = parameters()
    with ExactSum(own, ranks) as sums:
        if ranks.rank == 1:  # the other process has no micro-batch at all
            (own[0].sum() * 2).backward()
        sums.give(torch.zeros((), dtype=torch.float64), 1)
    return [None if p.grad is None else p.grad.tolist() for p in own]


def test_what_no_process_uses_has_no_gradient_and_an_idle_process_gets_that_of_the_others():
    found, codes = in_processes(2, unused)
    assert codes == [0, 0]
    assert found == [[torch.full(SHAPES[0], 2.0).tolist(), None, None]] * 2


def test_a_step_that_fails_leaves_neither_gradients_nor_hooks(tmp_path):
    training = make_training(tmp_path, micro_batch_size=1, gradient_accumulation_steps=2)
    plain, calls = training.optimizer_step._backward, itertools.count()

    def second_fails(loss_model: Any, batch: Any, tokens: int) -> Any:
        if next(calls) == 1:
            raise ValueError("broken")
        return plain(loss_model, batch, tokens)

    training.optimizer_step._backward = second_fails
    with pytest.raises(ValueError, match="broken"):
        training.run()
    assert all(p.grad is None and not p._post_accumulate_grad_hooks for _, p in training.trainables)
    training.optimizer_step._backward = plain
    training.counters.step = 0
    training.run()
    other = make_training(tmp_path / "other", micro_batch_size=1, gradient_accumulation_steps=2)
    other.run()
    assert lines(tmp_path) == lines(tmp_path / "other")


def trained(ranks: Ranks, folder: str) -> Any:
    from pathlib import Path

    training = make_training(
        Path(folder) / f"{ranks.world}-{ranks.rank}",
        micro_batch_size=2, gradient_accumulation_steps=3, max_steps=0, epochs=2.0, save_every=2,
    )  # fmt: skip
    training.ranks = ranks
    training.__post_init__()
    training.run()
    return {name: digest(p) for name, p in training.trainables}


def digest(p: Any) -> str:
    return hashlib.sha256(p.detach().numpy().tobytes()).hexdigest()


class Trained:
    """`trained` into a folder; pickled for the processes."""

    def __init__(self, folder: Any) -> None:
        self.folder = str(folder)

    def __call__(self, ranks: Ranks) -> Any:
        return trained(ranks, self.folder)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_training_on_several_processes_is_training_on_one(tmp_path, world):
    """14 sequences, 6 a step: in the last step some processes have nothing to do."""
    torch.set_num_threads(1)
    alone = trained(ALONE, str(tmp_path))
    found, codes = in_processes(world, Trained(tmp_path))
    assert codes == [0] * world
    assert all(each == alone for each in found)
    assert (tmp_path / f"{world}-0/metrics.jsonl").read_bytes() == (
        tmp_path / "1-0/metrics.jsonl"
    ).read_bytes()
    assert (tmp_path / f"{world}-0/checkpoints").is_dir()
    assert not (tmp_path / f"{world}-1/checkpoints").exists()
