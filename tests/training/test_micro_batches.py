"""Memory that runs out halves the micro-batch: the same tokens a step, exactly continued."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest
import torch
from training.test_loop import CPU, lines, make_training

from hylorada.process.seeding import seed_everything
from hylorada.training.checkpoint import load_newest
from hylorada.training.micro_batches import in_parts_that_fit


def out_of_memory(kind):
    return {
        "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        "host": MemoryError(),
        "torch": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you ..."),
        "oneDNN": RuntimeError("could not create a primitive"),
    }[kind]


def fits(training, most, kind="gpu", first_step=1):
    """No more than so many sequences fit, from a step on; what did not fit had been begun."""
    plain = training.loss_model

    def loss_model(input_ids, **rest):
        if len(input_ids) > most and training.counters.step >= first_step:
            torch.rand(3)  # dropout has drawn before memory ran out
            raise out_of_memory(kind)
        return plain(input_ids=input_ids, **rest)

    training.loss_model = loss_model
    return training


SETTINGS = {
    "micro_batch_size": 5, "gradient_accumulation_steps": 2, "max_steps": 4,
    "lr_scheduler": "constant", "warmup_ratio": 0.0,  # a plan cut short has the same rates
}  # fmt: skip


def dropping(training):
    """With dropout, so that the state of the generators matters."""
    plain = training.loss_model

    def loss_model(**batch):
        sum_nll, count = plain(**batch)
        return sum_nll * (1 + 0.01 * torch.rand(())), count

    training.loss_model = loss_model
    return training


@pytest.mark.parametrize("kind", ["gpu", "host", "torch", "oneDNN"])
def test_it_is_halved_until_it_fits_and_the_tokens_of_a_step_stay(tmp_path, caplog, kind):
    seed_everything(0)
    with caplog.at_level(logging.WARNING):
        training = fits(make_training(tmp_path / "halved", **SETTINGS), 2, kind)
        training.run()
    plain = make_training(tmp_path / "plain", **SETTINGS)
    plain.run()
    assert training.counters.micro_batch_size == 2  # 5, 3, 2
    assert [r.args for r in caplog.records] == [(5, 3), (3, 2)]
    halved, whole = lines(tmp_path / "halved"), lines(tmp_path / "plain")
    for a, b in zip(halved, whole, strict=True):
        assert a["train/tokens"] == b["train/tokens"]
        # The same sums in another order.
        assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-5)
        assert a["train/grad_norm"] == pytest.approx(b["train/grad_norm"], rel=1e-3)


def test_the_step_that_ran_out_leaves_no_trace(tmp_path):
    """Bytes of a run that has had the smaller micro-batch from the beginning."""
    smaller = {**SETTINGS, "micro_batch_size": 2, "gradient_accumulation_steps": 5}
    for name, settings in (("ran-out", SETTINGS), ("small", smaller)):
        seed_everything(0)
        training = fits(dropping(make_training(tmp_path / name, **settings)), 2)
        training.run()
    for name in ("metrics.jsonl", "checkpoints/step-00000004/trainables.safetensors"):
        assert (tmp_path / "ran-out" / name).read_bytes() == (
            tmp_path / "small" / name
        ).read_bytes()


def test_a_run_that_goes_on_keeps_what_fitted(tmp_path, caplog):
    settings = {**SETTINGS, "max_steps": 6, "save_every": 3}

    def make(folder, most):
        return fits(dropping(make_training(folder, **settings)), most, first_step=2)

    seed_everything(0)
    make(tmp_path / "whole", 3).run()
    seed_everything(0)
    cut = make(tmp_path / "cut", 3)
    plan = cut.plan
    cut.plan = type(plan)(plan.blocks, plan.batch, 3 * plan.batch)
    cut.run()
    checkpoint = load_newest(tmp_path / "cut" / "checkpoints")
    assert checkpoint.state["micro_batch_size"] == 3
    caplog.clear()
    again = make(tmp_path / "cut", 3)
    again.run(checkpoint)
    assert "out of memory" not in caplog.text
    for name in ("metrics.jsonl", "checkpoints/step-00000006/trainables.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_checkpoint_from_before_there_was_this_goes_on(tmp_path):
    training = make_training(tmp_path, **SETTINGS, save_every=2)
    training.run()
    (checkpoint,) = [load_newest(tmp_path / "checkpoints")]
    del checkpoint.state["micro_batch_size"]
    again = make_training(tmp_path, **SETTINGS)
    again.run(checkpoint)
    assert again.counters.micro_batch_size == 5
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 4


def test_one_sequence_that_does_not_fit_is_the_end(tmp_path):
    training = fits(make_training(tmp_path, **SETTINGS), 0)
    with pytest.raises(torch.OutOfMemoryError):
        training.run()
    assert training.counters.micro_batch_size == 5
    assert not (tmp_path / "metrics.jsonl").exists()


def test_another_error_is_not_taken_for_it():
    def backward(batch):
        raise RuntimeError("shapes do not match")

    rows = [{"input_ids": torch.zeros(3), "labels": torch.zeros(3)}] * 4
    with pytest.raises(RuntimeError, match="shapes"):
        in_parts_that_fit(rows, 4, backward, lambda: None, CPU)


@pytest.mark.long
def test_memory_that_really_runs_out(tmp_path):
    """A limit on the address space of a process, which 64 sequences at once do not keep.

    Without kernels of oneDNN, which does not forget what it once could not create.
    """
    code = f"""
import logging, resource, sys
from pathlib import Path
import torch
from torch import nn
from hylorada.config import TrainConfig
from hylorada.process.progress import Reporter
from hylorada.process.signals import Stop
from hylorada.training.loop import Training

logging.basicConfig(format="%(message)s")
torch.set_num_threads(1)
WIDTH, LENGTH, SEQUENCES = 256, 128, 64

class Blocks:
    length = LENGTH
    def __len__(self):
        return SEQUENCES
    def __getitem__(self, i):
        ids = torch.arange(LENGTH) * (i + 1) % 50
        return {{"input_ids": ids, "labels": ids.clone()}}

torch.manual_seed(0)
layers = [part for _ in range(8) for part in (nn.Linear(WIDTH, WIDTH), nn.Tanh())]
model = nn.Sequential(nn.Embedding(50, WIDTH), *layers, nn.Linear(WIDTH, 50))

def loss_model(input_ids, labels):
    logits = model(input_ids)[:, :-1].reshape(-1, 50)
    return nn.functional.cross_entropy(logits, labels[:, 1:].reshape(-1), reduction="sum"), None

def train(name):
    folder = Path({str(tmp_path)!r}) / name
    folder.mkdir()
    training = Training(
        model=model, loss_model=loss_model, blocks=Blocks(),
        settings=TrainConfig(max_steps=1, micro_batch_size=SEQUENCES, save_every=0),
        seed=0, device=torch.device("cpu"), autocast=None, run_dir=folder, stop=Stop(),
        reporter=Reporter(),
    )
    return training.run()

state = {{name: value.clone() for name, value in model.state_dict().items()}}
free = train("free")
model.load_state_dict(state)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (used + (70 << 20), hard))
limited = train("limited")
print(limited.micro_batch_size, limited.tokens, limited.last_loss)
print(free.micro_batch_size, free.tokens, free.last_loss)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        # What was freed goes back to the system, and is not there for the limited run to take.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1",
             "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    limited, free = (line.split() for line in done.stdout.splitlines())
    assert 1 <= int(limited[0]) < int(free[0]) == 64
    assert "out of memory with micro-batches of 64 sequences" in done.stderr
    assert limited[1] == free[1]
    assert float(limited[2]) == pytest.approx(float(free[2]), rel=1e-5)
