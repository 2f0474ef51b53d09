"""A step on a GPU: launched without waiting, read a step late, and the same in the strict mode."""

import pytest
import torch
from helpers.families import make_model, tokens

from hylorada.config import TrainConfig
from hylorada.kernels.frozen_weights import make_fast
from hylorada.methods import HyloradaConfig, adapt
from hylorada.methods.landmarks import prefix_sum
from hylorada.process.progress import Reporter
from hylorada.process.seeding import repeatable
from hylorada.process.signals import Stop
from hylorada.training.loop import Training
from hylorada.training.loss import LossModel

LENGTH = 96


class RandomBlocks:
    length = LENGTH

    def __len__(self):
        return 5

    def __getitem__(self, i):
        ids = tokens(1, LENGTH, seed=i)[0]
        return {"input_ids": ids, "labels": ids.clone()}


def make_training(path, device, family="llama", autocast=torch.bfloat16, **settings):
    path.mkdir(exist_ok=True)
    config = HyloradaConfig(
        r=2, position_bias_enabled=True, landmark_enabled=True, s2_attn_enabled=True,
        s2_group_size=32, train_norms=True, max_length=LENGTH,
    )  # fmt: skip
    model = adapt(make_model(family, LENGTH).to(device), config, LENGTH, seed=0)
    loss_model = LossModel(model, 32)
    make_fast(model, autocast)
    return Training(
        model=model, loss_model=loss_model, blocks=RandomBlocks(),
        settings=TrainConfig(
            **{"max_steps": 6, "gradient_accumulation_steps": 2, "save_every": 0, **settings}
        ),
        seed=3, device=device, autocast=autocast, run_dir=path, stop=Stop(), reporter=Reporter(),
    )  # fmt: skip


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("settings", [{}, {"loss_spike": "skip", "micro_batch_size": 2}])
def test_a_step_is_launched_without_asking_the_device(tmp_path, device, family, autocast, settings):
    training = make_training(tmp_path, device, family, autocast, **settings)
    training.model.train()
    training._step(1)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        launched = training._launch(2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert launched.read().loss > 0


def test_reading_a_step_late_changes_no_byte(tmp_path, device):
    with repeatable(device, strict=True):
        for name, late in (("now", False), ("late", True)):
            training = make_training(tmp_path / name, device, save_every=3, eval_every=0)
            assert training.settles_late
            training.settles_late = late
            training.run()
    for name in ("metrics.jsonl", "checkpoints/step-00000006/trainables.safetensors"):
        assert (tmp_path / "now" / name).read_bytes() == (tmp_path / "late" / name).read_bytes()


def test_the_prefix_sum_is_allowed_in_the_strict_mode_and_is_that_of_a_cpu(device):
    x = torch.randn(2, 5000, 9, dtype=torch.float64, requires_grad=True)
    with repeatable(device, strict=True):
        got = prefix_sum(x.to(device))
        (gradient,) = torch.autograd.grad(got.square().sum(), x)
    want = x.cumsum(1)
    torch.testing.assert_close(got.cpu(), want, rtol=1e-12, atol=1e-10)
    (expected,) = torch.autograd.grad(want.square().sum(), x)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-7)
