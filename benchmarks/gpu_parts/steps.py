"""Stage 2: what a step costs, arm by arm; where it goes; what fits."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from gpu_parts import machine
from gpu_parts.arms import Arm, raced
from gpu_parts.place import Place
from gpu_parts.rows import Cell, Found, Rows, described
from gpu_parts.runs import training
from hylorada.kernels.frozen_layers import use_frozen_kernels
from hylorada.kernels.linear import product_dtype
from hylorada.methods.landmarks import running_mean
from hylorada.methods.position_bias import PositionBias
from hylorada.training.loss import chunked_cross_entropy

AT_8K = ["peft", "hyl", "ours", "s2", "peft-bf16", "hyl-f32", "hyl-nocudnn", "s2-nocudnn",
         "hyl+ckpt", "peft+ckpt", "eager"]  # fmt: skip
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaMemcpy ")
PARTS = [
    *(f"part/loss/{chunk}" for chunk in (256, 512, 1024, 2048, 4096)),
    "part/position_bias/once", "part/position_bias/36", "part/position_bias/210",
    "part/running_mean", "part/cast", "part/adamw/foreach", "part/adamw/fused",
    "part/rms_norm/model", "part/rms_norm/torch", "part/rms_norm/ours",
]  # fmt: skip


def cells(place: Place, rows: Rows) -> list[Cell]:
    """The most valuable first."""

    def race(stage: str, model: str, length: str, names: list[str], seconds: float) -> Cell:
        keys = [f"step/{model}/{length}/{name}" for name in names]
        return Cell(stage, keys, seconds, lambda missing: step(place, rows, model, length, missing))

    def fits(stage: str, model: str, length: str, name: str, cap: float, seconds: float) -> Cell:
        key = f"fits/{model}/{length}/{name}/{cap:g}gib"
        return Cell(stage, [key], seconds, lambda _: fit(place, model, length, name, cap, key))

    profiles = [
        f"profile/{model}/8k/{arm}" for model in ("gpt2", "smollm2") for arm in ("hyl", "peft")
    ]
    return [
        race("2a", "gpt2", "8k", AT_8K, 25),
        race("2a", "smollm2", "8k", AT_8K, 25),
        Cell("2a", profiles, 15, lambda keys: profile(place, keys)),
        Cell("2a", ["loop/smollm2/8k"], 6, lambda keys: loop(place)),
        Cell("2a", PARTS, 15, lambda keys: parts(place, keys)),
        fits("2a", "gpt2", "128k", "hyl+ckpt", 15.5, 10),
        fits("2a", "gpt2", "128k", "ours+ckpt", 15.5, 12),
        fits("2a", "gpt2", "128k", "hyl+ckpt+offload", 15.5, 12),
        race("2a", "llama1b", "8k", ["peft", "hyl", "ours", "peft-bf16"], 25),
        fits("2a", "llama1b", "128k", "hyl+ckpt", 80, 20),
        race("2a", "gpt2", "8k", ["hyl-compiled", "ours-compiled"], 45),
        race("2a", "smollm2", "8k", ["hyl-compiled", "ours-compiled"], 45),
        race("2b", "smollm2", "4k", ["peft", "hyl", "ours", "peft-bf16"], 10),
        race("2b", "gpt2", "4k", ["peft", "hyl", "ours", "peft-bf16"], 8),
        race("2b", "smollm2", "1k", ["peft", "hyl", "ours", "peft-bf16"], 8),
        race("2b", "smollm2", "16k", ["peft", "hyl", "hyl+ckpt", "ours"], 12),
        race("2b", "gpt2", "16k", ["peft", "hyl", "ours"], 10),
        race("2b", "smollm2", "32k", ["hyl", "hyl+ckpt", "ours"], 12),
        race("2b", "gpt2", "32k", ["hyl", "ours"], 10),
        race("2b", "gpt2", "64k", ["hyl+ckpt", "ours+ckpt"], 15),
    ]


# ---------------------------------------------------------------------------------- whole steps


def step(place: Place, rows: Rows, model: str, length: str, keys: list[str]) -> Found:
    """Each arm alone for its memory, then all that fit by turns; peft runs along as the measure."""
    n = place.tokens(length)
    long = length in ("64k", "128k")
    living: dict[str, Arm] = {}
    alone: dict[str, dict[str, Any]] = {}
    wanted = [key.rpartition("/")[2] for key in keys]
    for name in dict.fromkeys(["peft", *wanted] if not long else wanted):
        place.reset_peak()
        before = place.allocated()
        try:
            arm: Arm | None = Arm(place, name, model, n)
            weights = place.allocated() - before
            first_ms = place.once(arm.step)[1]
            place.reset_peak()
            loss = float(arm.step())
            alone[name] = {
                "loss": loss, "first_ms": first_ms, "weights_mib": weights,
                "saved_mib": arm.after_forward - before - weights,
                **{k: v - before if k == "peak_mib" else v for k, v in place.memory().items()},
            }  # fmt: skip
            living[name] = arm
            del arm
        except Exception as error:  # the others go on
            alone[name] = described(error)
            arm = None
        place.clean()
    if living:
        rounds = 2 if place.tiny else 3 if long else 7
        for arm in living.values():
            arm.step()
        found = raced(place, {name: arm.step for name, arm in living.items()}, rounds)
        first = next(iter(living))
        earlier = rows.known()
        for name in living:
            values = found[name]
            alone[name] |= values | {
                "of": first, "ratio": values["ms"] / found[first]["ms"], "spread": found["spread"],
                "tokens_per_s": n / values["ms"] * 1e3, "tokens": n, "rounds": rounds,
                "trainable_tensors": len(living[name].trainables),
                **machine.floor(place, model, name, n, earlier),
            }  # fmt: skip
            if "floor_ms" in alone[name]:
                alone[name]["of_floor"] = alone[name]["floor_ms"] / values["ms"]
    living.clear()
    for key in keys:
        yield key, alone[key.rpartition("/")[2]]


def fit(place: Place, model: str, length: str, name: str, cap: float, key: str) -> Found:
    """Three steps under a limit on this process's memory."""
    n = place.tokens(length)
    if place.device.type == "cuda":
        total = torch.cuda.get_device_properties(place.device).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(min(cap / total, 1.0), place.device)
    try:
        place.reset_peak()
        arm = Arm(place, name, model, n)
        times = [place.once(arm.step)[0] for _ in range(3)]
        yield (
            key,
            {"ms": min(times), "first_ms": times[0], "tokens": n, "cap_gib": cap, **place.memory()},
        )
    finally:
        if place.device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, place.device)


def loop(place: Place) -> Found:
    """The same steps through the run's own loop: what it adds to them."""
    n = place.tokens("8k")
    with tempfile.TemporaryDirectory() as folder:
        whole = training(place, Path(folder), 10**6, n)
        whole.settings.save_every = 0
        whole.model.train()
        count = iter(range(1, 10**6))
        for _ in range(2):
            whole._step(next(count))
        times = [
            place.once(lambda: whole._step(next(count)))[1] for _ in range(2 if place.tiny else 7)
        ]
    yield "loop/smollm2/8k", {"wall_ms": sorted(times)[len(times) // 2], "tokens": n}


def profile(place: Place, keys: list[str]) -> Found:
    """Kernels of one step: how many, how much of the time the device works, the longest."""
    from torch.profiler import ProfilerActivity

    activities = [ProfilerActivity.CPU]
    if place.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    for key in keys:
        _, model, length, name = key.split("/")
        arm = Arm(place, name, model, place.tokens(length))
        for _ in range(3):
            arm.step()
        place.wait()
        with torch.profiler.profile(activities=activities) as seen:
            wall = place.once(arm.step)[1]
        events = seen.key_averages()
        kernels = [e for e in events if str(e.device_type).endswith("CUDA")]
        chosen = kernels or events

        def spent(event: Any) -> float:
            return float(getattr(event, "self_device_time_total", 0.0) or event.self_cpu_time_total)

        top = sorted(chosen, key=spent, reverse=True)[:25]
        busy = sum(spent(e) for e in chosen) / 1e3
        yield key, {
            "kernels": sum(e.count for e in kernels),
            "launches": sum(e.count for e in events if e.key.startswith("cudaLaunch")),
            "operators": sum(e.count for e in events if e.key.startswith("aten::")),
            "waits": sum(e.count for e in events if e.key.startswith(WAITS)),
            "busy_ms": busy, "wall_ms": wall, "busy": busy / wall,
            "top": [[e.key[:100], e.count, round(spent(e) / 1e3, 4)] for e in top],
        }  # fmt: skip


# ---------------------------------------------------------------------------------- parts


def parts(place: Place, keys: list[str]) -> Found:
    """Milliseconds of single parts at 8K tokens, forward and backward."""
    n, device = place.tokens("8k"), place.device
    for key in keys:
        try:
            yield key, {"ms": _part(place, key.split("/")[1:], n, device)}
        except Exception as error:  # one part says nothing of the next
            yield key, described(error)


def _part(place: Place, what: list[str], n: int, device: torch.device) -> float:
    match what:
        case ["loss", chunk]:
            shape = place.shape("gpt2")
            h = torch.randn(n, shape["n_embd"], device=device, requires_grad=True)
            w = torch.randn(shape["vocab_size"], shape["n_embd"], device=device) * 0.02
            target = place.ids("gpt2", n)[0]

            def loss() -> Any:
                with place.bf16():
                    assert product_dtype(h) == torch.bfloat16
                    total = chunked_cross_entropy(h, w, None, target, chunk=int(chunk))
                return torch.autograd.grad(total, h)

            return place.milliseconds(loss)
        case ["position_bias", times]:
            count = 1 if times == "once" else int(times)
            bias = PositionBias(64, "log2", n).to(device)
            positions = torch.arange(n, device=device)[None]

            def scales() -> Any:
                total = sum(bias(positions).sum() for _ in range(count))
                return torch.autograd.grad(total, list(bias.parameters()))

            return place.milliseconds(scales)
        case ["running_mean"]:
            x = torch.randn(1, n, 8, device=device, requires_grad=True)
            positions = torch.arange(n, device=device)[None]
            return place.milliseconds(
                lambda: torch.autograd.grad(running_mean(x, positions, None, None)[0].sum(), x)
            )
        case ["cast"]:
            weights = [
                torch.randn(768, 768, device=device) for _ in range(2 if place.tiny else 144)
            ]
            return place.milliseconds(lambda: [w.to(torch.bfloat16) for w in weights])
        case ["adamw", kind]:
            shapes = [(8, 576), (576, 8)] * (4 if place.tiny else 210) + [(576,)] * 60
            ps = [torch.nn.Parameter(torch.randn(s, device=device)) for s in shapes]
            for p in ps:
                p.grad = torch.randn_like(p)
            optimizer = torch.optim.AdamW(ps, lr=1e-4, **{kind: True})
            return place.milliseconds(optimizer.step)
        case ["rms_norm", which]:
            from transformers.models.llama.modeling_llama import LlamaRMSNorm

            norm = LlamaRMSNorm(576).to(device)
            if which == "ours":
                assert use_frozen_kernels(norm) == 1
            x = torch.randn(1, n, 576, device=device, requires_grad=True)
            grad = torch.randn_like(x)
            call = partial(F.rms_norm, normalized_shape=(576,), weight=norm.weight, eps=1e-6)
            call = call if which == "torch" else norm
            return place.milliseconds(lambda: torch.autograd.grad(call(x), x, grad))
    raise ValueError(what)
