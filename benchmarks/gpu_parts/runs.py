"""Stage 1, whole programs: the gate, a run, continuing, the tests of the project."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpu_parts import arms
from gpu_parts.place import Place
from gpu_parts.rows import Cell, Found, read
from hylorada.config import RunConfig, TrainConfig
from hylorada.process.progress import Reporter
from hylorada.process.signals import Stop
from hylorada.runner.gate import prove
from hylorada.runner.run import run
from hylorada.training.checkpoint import load_newest
from hylorada.training.loop import Training
from hylorada.training.loss import LossModel

ROOT = Path(__file__).resolve().parents[2]
RESUMED = ("equal_bits", "largest_difference")


def cells(place: Place) -> list[Cell]:
    """The whole run last: its parts are looked at first."""
    gates = [f"gate/{model}/{p}" for model in ("gpt2", "smollm2") for p in ("fp32", "bf16")]
    return [
        Cell("1", gates, 12, lambda keys: gate(place, keys)),
        Cell("1", ["resume/default", "resume/strict"], 25, lambda keys: resume(place, keys)),
        Cell("1", ["run/embedded"], 25, lambda keys: embedded(place)),
    ]


def gate(place: Place, keys: list[str]) -> Found:
    """The integrity gate of a run, on its device and in its precision."""
    for key in keys:
        _, model, precision = key.split("/")
        n = 48 if place.tiny else 2048
        config = RunConfig(device=place.device.type)
        config.length.max_length = n
        method = arms.every_component(place, model, n)
        method.s2_group_size = 16 if place.tiny else 256
        made: Any = arms.adapt(arms.base(place, model, place.trained), method, n, seed=0)
        made.to(place.device)
        vocabulary: Any = place.shape(model)["vocab_size"]
        report = prove(made, vocabulary, config, autocast_of(precision), Stop())
        values = {
            "checks": {name: check.ok for name, check in report.checks.items()},
            "failed": report.failed,
            "warnings": report.warnings,
        }
        error = {"error": f"failed: {', '.join(report.failed)}"} if report.failed else {}
        yield key, error | values


def autocast_of(precision: str) -> Any:
    """What `prove` and `Training` take for a precision."""
    return torch.bfloat16 if precision == "bf16" else None


class Blocks:
    """Random tokens, a function of the block's number."""

    def __init__(self, place: Place, model: str, length: int) -> None:
        self.place, self.model, self.length = place, model, length

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        ids = self.place.ids(self.model, self.length, seed=i)[0].cpu()
        return {"input_ids": ids, "labels": ids.clone()}


def training(place: Place, folder: Path, steps: int, length: int) -> Training:
    """A training of every component, as a run makes it."""
    made = arms.adapted(place, "hyl", "smollm2", length)
    return Training(
        model=made, loss_model=LossModel(made), blocks=Blocks(place, "smollm2", length),
        settings=TrainConfig(max_steps=steps, save_every=3, lr=1e-3, lr_scheduler="constant"),
        seed=0, device=place.device, autocast=torch.bfloat16, run_dir=folder,
        stop=Stop(), reporter=Reporter(),
    )  # fmt: skip


@contextlib.contextmanager
def strict(on: bool) -> Any:
    """torch's deterministic mode, without exceptions for what has no such kernel."""
    torch.use_deterministic_algorithms(on)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def resume(place: Place, keys: list[str]) -> Found:
    """Six steps against three, a checkpoint, and three more in another object: the same bits?"""
    length = place.tokens("1k")
    for key in keys:
        fixed = "CUBLAS_WORKSPACE_CONFIG" in os.environ
        if key.endswith("strict") and place.device.type == "cuda" and not fixed:
            yield key, in_another_process(f"1/{key}")
            continue
        with tempfile.TemporaryDirectory() as name, strict(key.endswith("strict")):
            folders = [Path(name) / part for part in ("whole", "cut")]
            for folder in folders:
                folder.mkdir()
            whole = training(place, folders[0], 6, length)
            whole.run()
            first = training(place, folders[1], 6, length)
            first.plan = type(first.plan)(first.plan.blocks, first.plan.batch, 3)
            first.run()
            second = training(place, folders[1], 6, length)
            second.run(load_newest(folders[1] / "checkpoints"))
            pairs = list(zip(whole.trainables, second.trainables, strict=True))
            same = all(torch.equal(a, b) for (_, a), (_, b) in pairs)
            apart = max(float((a - b).abs().max()) for (_, a), (_, b) in pairs)
        yield key, {"equal_bits": same, "largest_difference": apart}


def in_another_process(key: str) -> dict[str, Any]:
    """A row made where cuBLAS starts with a fixed workspace, as the strict mode wants it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.jsonl"
        words = ["--stages", "1", "--only", key, "--out", str(out), "--no-suite"]
        subprocess.run(
            [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *words],
            env={**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}, check=False,
        )  # fmt: skip
        (row,) = read(out)
    return {name: row[name] for name in ("error", "trace", *RESUMED) if name in row}


def embedded(place: Place) -> Found:
    """A whole run of the base that the package ships: gate, base, training, evaluation, record."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = random.Random(0)
        for split in ("train", "validation", "test"):
            path = folder / "texts" / split / "a.txt"
            path.parent.mkdir(parents=True)
            count = 300 if place.tiny else 20000
            path.write_text(
                " ".join(words.choice(("alpha", "beta", "gamma")) for _ in range(count))
            )
        config = RunConfig(device=place.device.type, output_root=str(folder / "runs"))
        config.dataset.kind, config.dataset.path = "local", str(folder / "texts")
        config.dataset.name, config.dataset.cache_dir = "words", str(folder / "cache")
        config.length.max_length = 128 if place.tiny else 4096
        config.train.max_steps, config.track.kind = 2 if place.tiny else 6, "off"
        config.eval.perplexity.max_blocks = 1
        config.eval.lost_in_middle.enabled = False
        config.integrity.enabled = not place.tiny  # `gate` is it
        place.reset_peak()
        with contextlib.redirect_stdout(sys.stderr):
            record = run(config)
        place.clean()
        values = {
            "status": record["status"],
            "ppl": record["metrics"]["eval/ppl"]["value"],
            "left_allocated_mib": place.allocated(),
            **{
                k: record["training"][k]
                for k in ("precision", "tokens_per_second", "peak_memory_bytes")
            },
        }
    yield "run/embedded", values


class Suite:
    """Some of the project's own tests, in a process.

    Args:
        place: where; a tiny place only asks which tests there are.
        words: for pytest.
        hidden: whether the process sees no GPU.
    """

    def __init__(self, place: Place, words: list[str], hidden: bool) -> None:
        only = ["--collect-only"] if place.tiny else []
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *only]
        here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *sys.path])}
        here |= {"OMP_NUM_THREADS": "1"} | ({"CUDA_VISIBLE_DEVICES": ""} if hidden else {})
        # A file, so that it never waits for us.
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - `stop` closes it
        self.process = subprocess.Popen(
            [*command, *words], cwd=ROOT, env=here, stdout=self.log, stderr=self.log
        )

    def row(self) -> dict[str, Any]:
        """Wait for its end; the last line."""
        code = self.process.wait()
        self.log.seek(0)
        lines = [line for line in self.log.read().splitlines() if line.strip()]
        values = {"exit": code, "tail": lines[-1][:200] if lines else ""}
        fine = code in (0, 5)  # 5: no test was asked for
        return values if fine else {"error": "tests fail", "lines": lines[-15:], **values}

    def stop(self) -> None:
        """End it if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()


CPU_TESTS = [
    "tests/methods/test_s2_attention.py", "tests/kernels/test_frozen_layers.py",
    "tests/training/test_loss.py",
]  # fmt: skip


def suites(place: Place) -> tuple[Cell, Cell]:
    """Kernels on the GPU, at once; and what takes longer, at the end of a call.

    None runs beside anything that is timed.
    """

    def kernels(keys: list[str]) -> Found:
        words = [*GPU, "tests/cuda/test_kernels.py"]
        yield from _ended("suite/kernels", Suite(place, words, hidden=False))

    def rest(keys: list[str]) -> Found:
        words = [*GPU, "tests/cuda", "--deselect", "tests/cuda/test_kernels.py"]
        yield from _ended("suite/runs", Suite(place, words, hidden=False))
        yield from _ended("suite/cpu", Suite(place, CPU_TESTS, hidden=True))

    now = Cell("1", ["suite/kernels"], 20, kernels)
    return now, Cell("1", ["suite/runs", "suite/cpu"], 120, rest)


GPU = ("-m", "cuda")


def _ended(key: str, suite: Suite) -> Found:
    try:
        yield key, suite.row()
    finally:
        suite.stop()
