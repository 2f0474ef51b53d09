"""What one training step costs: forward, backward, AdamW; seconds and peak memory, arm by arm.

    python benchmarks/step.py                                     # everything, hours
    python benchmarks/step.py --model tiny --lengths 512,2048 --arms peft-sdpa,hylorada

Each arm lives in a process of its own. The processes take turns, one step each, round after round,
so that a machine that slows down slows all arms alike; the table gives medians and their ratio to
`peft-sdpa` in the same rounds. Peak memory is the high-water mark of the resident set in one step
above the loaded model (Linux: /proc/self/clear_refs, VmHWM), after a short warm-up step that loads
libraries. Rows already in the results file are not measured again.

Models have random weights and no dropout, so nothing is downloaded; the time does not depend on the
weights. `tiny` has the architecture of the embedded base model.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

BASELINE = "peft-sdpa"
ARMS = {
    "peft-sdpa": "peft LoRA, SDPA attention, the model's own loss",
    "peft-sdpa+ckpt": "the same as `peft-sdpa` with activation checkpointing",
    "peft-eager": "peft LoRA, eager attention, the model's own loss",
    "loss": "peft LoRA, SDPA, chunked loss",
    "loss+kernels": "peft LoRA, SDPA, chunked loss, frozen kernels",
    "loss+kernels+s2": "peft LoRA, S2 attention (g = n/4), chunked loss, frozen kernels",
    "hylorada": "HyLoRADA by its adaptive rule (S2 with g = n/4 from 4096 tokens on)",
    "hylorada+ckpt": "the same as `hylorada` with activation checkpointing",
}
MODELS = {
    "tiny": {"vocab_size": 8192, "n_embd": 256, "n_layer": 6, "n_head": 8},
    "gpt2": {"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12},
}
TRAINED_LENGTH = 1024
LENGTHS = (512, 2048, 4096, 8192)
TARGETS = ["c_attn", "c_proj"]


# ------------------------------------------------------------------------- one arm, in its process


def build(arm: str, model_name: str, length: int) -> tuple[Any, Any]:
    """(loss of token ids, optimizer); imports torch, so call it in a worker."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.manual_seed(0)
    ours = arm.startswith("hylorada")
    config = GPT2Config(
        **MODELS[model_name],
        n_positions=TRAINED_LENGTH if ours else max(length, TRAINED_LENGTH),
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager" if arm == "peft-eager" else "sdpa",
    )
    base = GPT2LMHeadModel(config)
    if ours:
        from hylorada.methods import HyloradaConfig, adapt

        model = adapt(
            base,
            HyloradaConfig.for_length(
                length,
                trained_length=TRAINED_LENGTH,
                s2_group_size=length // 4,
                target_modules=TARGETS,
                fan_in_fan_out=True,
            ),
            max_length=length,
        )
    else:
        lora = LoraConfig(
            r=8, lora_alpha=16, use_rslora=True, target_modules=TARGETS, fan_in_fan_out=True
        )
        model = get_peft_model(base, lora)
    model.train()
    if arm == "loss+kernels+s2":
        from hylorada.methods.s2_attention import enable_s2

        enable_s2(model, length // 4, "layers")
    if arm.endswith("+ckpt"):
        lm = model.get_base_model()
        enable = getattr(lm, "activation_checkpointing_enable", lm.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=2e-4, weight_decay=0.01)
    if arm.startswith("peft-"):

        def loss_of(ids: Any) -> Any:
            return model(input_ids=ids, labels=ids, use_cache=False).loss

    else:
        from hylorada.kernels.frozen_layers import use_frozen_kernels
        from hylorada.training.loss import LossModel

        if arm != "loss":
            use_frozen_kernels(model)
        loss_model = LossModel(model)

        def loss_of(ids: Any) -> Any:
            sum_nll, tokens = loss_model(ids, ids)
            return sum_nll / tokens

    return loss_of, optimizer


def proc_kib(path: str, field: str) -> int:
    """A line of a file in /proc, in KiB."""
    for line in Path(path).read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise KeyError(field)


def status_kib(field: str) -> int:
    """A line of this process's status."""
    return proc_kib("/proc/self/status", field)


def worker(pipe: Any, arm: str, model_name: str, length: int, precision: str, threads: int) -> None:
    """Load, measure one step's memory, then answer each "step" with its seconds."""
    import warnings

    import torch

    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(threads)
    available = proc_kib("/proc/meminfo", "MemAvailable") * 1024

    try:
        loss_of, optimizer = build(arm, model_name, length)

        def step(ids: Any) -> float:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = loss_of(ids)
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, MODELS[model_name]["vocab_size"], (1, length), generator=generator)
        step(ids[:, :64])
        optimizer.zero_grad(set_to_none=True)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        # beyond this an allocation fails with an error instead of the kernel killing something
        limit = status_kib("VmSize") * 1024 + int(available * 0.9)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM := VmRSS
        loaded = status_kib("VmRSS")
        loss = step(ids)
        peak = status_kib("VmHWM") - loaded
        pipe.send({"peak_mib": peak / 1024, "loss": loss})
        while pipe.recv() == "step":
            wall, cpu = time.perf_counter(), time.process_time()
            step(ids)
            pipe.send((time.perf_counter() - wall, time.process_time() - cpu))
    except (RuntimeError, MemoryError) as error:
        if "alloc" not in str(error) and not isinstance(error, MemoryError):
            raise
        pipe.send({"error": f"does not fit in {available / 2**30:.0f} GiB"})


# ------------------------------------------------------------------------------- taking turns


def does_not_fit(arm: str, model_name: str, length: int) -> str | None:
    """Eager attention keeps at least one fp32 n x n matrix per head and layer for the backward."""
    if arm != "peft-eager":
        return None
    shape = MODELS[model_name]
    scores = shape["n_layer"] * shape["n_head"] * length**2 * 4
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if scores < 0.9 * memory:
        return None
    return f"does not fit (scores alone {scores / 2**30:.0f} GiB)"


def measure_cell(
    arms: list[str], model_name: str, length: int, precision: str, args: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """All arms of one (model, length, precision), taking turns."""
    context = multiprocessing.get_context("spawn")
    rows: dict[str, dict[str, Any]] = {}
    running: dict[str, tuple[Any, Any]] = {}
    try:
        for arm in arms:
            reason = does_not_fit(arm, model_name, length)
            if reason:
                rows[arm] = {"error": reason}
                continue
            here, there = context.Pipe()
            process = context.Process(
                target=worker, args=(there, arm, model_name, length, precision, args.threads)
            )
            process.start()
            there.close()
            try:
                rows[arm] = here.recv()
            except EOFError:
                process.join()
                killed = process.exitcode == -9
                rows[arm] = {"error": "does not fit (killed)" if killed else "failed"}
            if "error" in rows[arm]:
                process.join()
            else:
                running[arm] = (process, here)
            print(f"  {arm:18s} {describe_memory(rows[arm])}", flush=True)
        times: dict[str, list[tuple[float, float]]] = {arm: [] for arm in running}
        rounds = args.repeats
        done = 0
        while done < rounds:
            for arm, (_, here) in running.items():
                here.send("step")
                times[arm].append(here.recv())
            done += 1
            if times[next(iter(running))][0][0] > args.giant_seconds:
                rounds = min(rounds, args.giant_repeats)
    finally:
        for process, here in running.values():
            with contextlib.suppress(OSError):
                here.send("stop")
            process.join()
    baseline = rows.get(BASELINE, {})
    for arm in running:
        rows[arm] |= {
            "seconds": statistics.median(wall for wall, _ in times[arm]),
            "cpu_seconds": statistics.median(cpu for _, cpu in times[arm]),
            "all_seconds": [wall for wall, _ in times[arm]],
            "baseline_seconds": statistics.median(wall for wall, _ in times[BASELINE]),
            "baseline_cpu_seconds": statistics.median(cpu for _, cpu in times[BASELINE]),
            "baseline_peak_mib": baseline["peak_mib"],
        }
    return rows


def describe_memory(row: dict[str, Any]) -> str:
    return row.get("error") or f"peak {row['peak_mib']:8.0f} MiB, loss {row['loss']:.4f}"


# ------------------------------------------------------------------------------------- results


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    from importlib.metadata import version

    cpu, flags = platform.processor() or platform.machine(), ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
        if line.startswith("flags"):
            flags = line
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "avx512_bf16": "avx512_bf16" in flags,
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "python": platform.python_version(),
    } | {name: version(name) for name in ("torch", "transformers", "peft")}


def render(results: dict[str, Any]) -> str:
    """The results as markdown."""
    m = results["machine"]
    lines = [
        "# One training step: forward, backward, AdamW",
        "",
        f"{m['cpu']}, {m['cores']} cores"
        f"{' with avx512_bf16' if m['avx512_bf16'] else ''}, {m['memory_gib']} GiB; "
        f"torch {m['torch']}, transformers {m['transformers']}, peft {m['peft']}, "
        f"Python {m['python']}. Batch 1, random weights, no dropout.",
        "",
        "Median seconds, peak MiB above the loaded model; in brackets the ratio to `peft-sdpa` in "
        "the same rounds.\n`x3` marks medians of that many steps where they are fewer than five.",
        "",
        *(f"* `{arm}`: {text}" for arm, text in ARMS.items()),
    ]
    rows = results["rows"]
    for model_name in MODELS:
        for precision in ("fp32", "bf16"):
            cells = {k: v for k, v in rows.items() if k.startswith(f"{model_name}/{precision}/")}
            if not cells:
                continue
            lengths = sorted({int(key.split("/")[2]) for key in cells})
            lines += [
                "",
                f"## {model_name}, {precision}",
                "",
                "| | " + " | ".join(f"{n} tokens" for n in lengths) + " |",
                "|---" * (len(lengths) + 1) + "|",
            ]
            for arm in ARMS:
                if any(f"{model_name}/{precision}/{n}/{arm}" in cells for n in lengths):
                    texts = [
                        render_row(cells.get(f"{model_name}/{precision}/{n}/{arm}"))
                        for n in lengths
                    ]
                    lines.append(f"| {arm} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def render_row(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not measured"
    if "error" in row:
        return row["error"]
    steps = len(row["all_seconds"])
    return (
        f"{row['seconds']:.2f} s ({row['seconds'] / row['baseline_seconds']:.2f}), "
        f"{row['peak_mib']:.0f} MiB ({row['peak_mib'] / row['baseline_peak_mib']:.2f})"
        + (f" x{steps}" if steps < 5 else "")
    )


def cpu_ratio(row: dict[str, Any]) -> str:
    """On a busy machine CPU seconds say more than wall seconds."""
    if "error" in row:
        return ""
    ratio = row["cpu_seconds"] / row["baseline_cpu_seconds"]
    return f", CPU {row['cpu_seconds']:.2f} s ({ratio:.2f})"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def names(allowed: Any) -> Any:
        def convert(text: str) -> list[str]:
            chosen = text.split(",")
            unknown = [c for c in chosen if c not in allowed]
            if unknown:
                raise argparse.ArgumentTypeError(f"{unknown[0]}: choose from {', '.join(allowed)}")
            return chosen

        return convert

    add = parser.add_argument
    add("--model", type=names(MODELS), default=list(MODELS), help="tiny,gpt2")
    add("--lengths", type=lambda t: [int(n) for n in t.split(",")], default=list(LENGTHS))
    add("--precision", type=names(("fp32", "bf16")), default=["fp32", "bf16"])
    add("--arms", type=names(ARMS), default=list(ARMS), help=", ".join(ARMS))
    add("--repeats", type=int, default=5, help="timed steps per arm")
    add("--giant-seconds", type=float, default=60.0, help="a baseline step this long is a giant")
    add("--giant-repeats", type=int, default=3, help="timed steps per arm of a giant")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--out", type=Path, default=Path(__file__).parent / "results" / "step")
    return parser.parse_args(argv)


def main() -> None:
    args = parse()
    json_path, md_path = args.out.with_suffix(".json"), args.out.with_suffix(".md")
    results = json.loads(json_path.read_text()) if json_path.exists() else {"rows": {}}
    here = machine()
    if results.get("machine", here) != here:
        sys.exit(f"{json_path} was measured on another machine or torch; choose another --out")
    results["machine"] = here
    json_path.parent.mkdir(parents=True, exist_ok=True)
    for model_name in args.model:
        for length in args.lengths:
            for precision in args.precision:
                cell = f"{model_name}/{precision}/{length}"
                missing = [a for a in args.arms if f"{cell}/{a}" not in results["rows"]]
                if not missing:
                    print(f"{cell}: done before")
                    continue
                print(f"{cell}", flush=True)
                # the baseline always runs along: ratios are of the same rounds
                arms = [BASELINE, *(a for a in missing if a != BASELINE)]
                rows = measure_cell(arms, model_name, length, precision, args)
                for arm in missing:
                    results["rows"][f"{cell}/{arm}"] = rows[arm]
                    print(f"  {arm:18s} {render_row(rows[arm])}{cpu_ratio(rows[arm])}", flush=True)
                json_path.write_text(json.dumps(results, indent=1) + "\n")
                md_path.write_text(render(results))


if __name__ == "__main__":
    main()
